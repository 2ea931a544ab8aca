"""Numbers that must not be rounded: positions, and logits that are compared with a threshold."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Compute in the types of the operands, also under autocast, which would multiply in bfloat16 or float16.

    Args:
        x: Tells the device.

    Returns:
        A context.
    """
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
