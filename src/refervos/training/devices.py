"""Between the processor and the device that trains, whichever kind it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def read_back(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy small tensors from their device together, so that its work is waited for once.

    Args:
        tensors: On one device, of any shapes and types.

    Returns:
        The same on the CPU, in float32 or, where one of them is, in float64.
    """
    if not tensors:
        return []
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    flat = torch.cat([tensor.detach().to(dtype).reshape(-1) for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def device_name(device: torch.device) -> str:
    """What a person calls a device: ``cpu``, or the GPU's name."""
    if device.type == "mps":
        return "Apple GPU (mps)"
    tell = getattr(getattr(torch, device.type, None), "get_device_name", None)  # as torch.cuda and torch.xpu have it
    return device.type if tell is None else str(tell(device))
