"""Sine encodings of positions and ages, as in DETR and SAM2 (Carion et al. 2020, arXiv 2005.12872, appendix A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000


def grid_encoding(side: int, width: int) -> Tensor:
    """Encode the cells of a grid: rows and columns 1 to ``side``, each normalised to a full turn at the last.

    Args:
        side: Side of the grid.
        width: Channels, the first half for the row, the second for the column.

    Returns:
        float32 (side * side, width), row-major.
    """
    half = width // 2
    # On the CPU even when the model is built on the meta device, where these operations would import sympy.
    turns = torch.arange(1, side + 1, dtype=torch.float32, device="cpu")
    turns = turns / (side + 1e-6) * 2 * math.pi
    channel = torch.arange(half, dtype=torch.float32, device="cpu")
    angles = turns.unsqueeze(1) / TEMPERATURE ** (2 * torch.div(channel, 2, rounding_mode="floor") / half)
    line = torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)  # (side, half)
    rows, columns = line.unsqueeze(1).expand(-1, side, -1), line.unsqueeze(0).expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def age_encoding(ages: Tensor, width: int) -> Tensor:
    """Encode pointer ages (SAM2.1): (P,) in [0, 1] -> (P, width)."""
    half = width // 2
    powers = 2 * (torch.arange(half, dtype=torch.float32, device=ages.device) // 2) / half
    angles = ages.unsqueeze(-1) / TEMPERATURE**powers  # (P, half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
