"""Splitting of batches: on a CPU large activations cause page faults and save no time."""

from __future__ import annotations

import torch
from torch import Tensor


def must_stay_whole() -> bool:
    """Return True if batches must not be split: with gradients, and in graphs, where sizes may be dynamic."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def should_split(x: Tensor) -> bool:
    """Return True if a batch should be processed in parts: at inference on a CPU.

    Args:
        x: The batch.
    """
    return x.device.type == "cpu" and not must_stay_whole()
