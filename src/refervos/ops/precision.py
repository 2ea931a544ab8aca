"""Numbers that must not be rounded: positions, and logits that are compared with a threshold."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


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
