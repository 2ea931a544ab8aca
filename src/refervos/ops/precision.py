"""Numbers that must not be rounded: positions, and logits that are compared with a threshold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Compute in the types of the operands, also under autocast, which would multiply in bfloat16 or float16.

    Args:
        x: A tensor on the device in question.

    Returns:
        A context.
    """
    kind = x.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if mixed else nullcontext()


class KeepsPrecision(nn.Module):
    """Base class of modules with tensors that stay in float32 when a model is converted to half precision.

    ``model.to(torch.bfloat16)``, ``model.half()`` and ``model.bfloat16()`` convert everything else. Position tables in
    bfloat16 would move rotations by up to 0.07 and Fourier features by 0.15.

    Attributes:
        in_float32: Names of the parameters and buffers that are never stored in less than float32; None for all.
    """

    in_float32: tuple[str, ...] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply a conversion or a move, as ``nn.Module`` does, but keep the named tensors in float32."""
        own = {**dict(self.named_parameters(recurse=False)), **dict(self.named_buffers(recurse=False))}
        names = own if self.in_float32 is None else self.in_float32
        return super()._apply(keeping_float32(fn, [own[name] for name in names if name in own]), recurse)


def keeping_float32(fn: Callable[[Tensor], Tensor], exact: Iterable[Tensor]) -> Callable[[Tensor], Tensor]:
    """Restrict a conversion or a move, so that it leaves some tensors in float32.

    Args:
        fn: What ``nn.Module`` applies to each of its tensors.
        exact: Those that are never stored in less.

    Returns:
        What to apply instead.
    """
    kept = {id(tensor) for tensor in exact}

    def convert(tensor: Tensor) -> Tensor:
        converted = fn(tensor)
        if id(tensor) in kept and converted.is_floating_point() and converted.dtype.itemsize < 4:
            return tensor.to(converted.device, torch.float32)
        return converted

    return convert


class BatchNorm2d(KeepsPrecision, nn.BatchNorm2d):
    """Batch normalisation whose weights and running statistics stay in float32."""
