"""Protection of positions and mask logits from rounding in mixed and half precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Self

import torch
from torch import Tensor, nn


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Return a context that disables autocast, if enabled, for exact products in the types of the operands.

    Args:
        x: A tensor on the device of the computation.

    Returns:
        The context.
    """
    kind = x.device.type
    mixed = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if mixed else nullcontext()


class KeepsPrecision(nn.Module):
    """Base class of modules with tensors that stay in float32 when a model is converted to half precision.

    ``model.to(torch.bfloat16)``, ``model.half()`` and ``model.bfloat16()`` convert everything else. Position tables in
    bfloat16 would move rotations by up to 0.07 and Fourier features by 0.15.

    Attributes:
        in_float32: Names of the parameters and buffers kept in float32 or wider; None for all.
    """

    in_float32: tuple[str, ...] | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply a conversion or move like ``nn.Module``, but keep the named tensors in float32."""
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
