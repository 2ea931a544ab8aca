"""Helpers for the training device, whatever its kind."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def read_back(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy small tensors to the CPU in one transfer, with a single synchronisation.

    Args:
        tensors: Tensors of any shapes and types on one device.

    Returns:
        The same values on the CPU, in float32, or in float64 if any of them has it.
    """
    if not tensors:
        return []
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    flat = torch.cat([tensor.detach().to(dtype).reshape(-1) for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def device_name(device: torch.device) -> str:
    """Return a readable name of a device: ``cpu``, or the GPU's name."""
    if device.type == "mps":
        return "Apple GPU (mps)"
    get_name = getattr(getattr(torch, device.type, None), "get_device_name", None)  # torch.cuda and torch.xpu have it
    return device.type if get_name is None else str(get_name(device))
