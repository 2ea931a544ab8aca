"""When a batch is cut into parts: on a CPU large activations cost page faults and save nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def undivided() -> bool:
    """Tell whether a batch must stay whole: gradients want it at once, and in a graph its size stays open."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def in_parts(x: Tensor) -> bool:
    """Tell whether to go through a batch part by part: on a CPU at inference; a GPU wants all of it at once.

    Args:
        x: The batch.
    """
    return x.device.type == "cpu" and not undivided()
