"""Auxiliary task of the adapters: predict the movement of the contents of each cell.

A sentence about movement gives one label a clip, too little to learn to perceive movement from. These heads predict
displacement, growth and rotation from the output of Hierarchical Selective Attention and are discarded after training.
The idea is that of auxiliary dense prediction; the published training has no such loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from refervos.samwise.cmt import (
    CrossModalTemporalAdapter,
    HierarchicalSelectiveAttention,
    for_each_sentence,
    out_of_patches,
)
from refervos.training.stages.world_tensors import MOVEMENT_CHANNELS
from refervos.training.step_means import Mean, mean_of_batch


class MovementHeads(nn.Module):
    """Small networks over the image tokens of adapters after HSA, one for each adapter.

    Args:
        adapters: The adapters; each must have HSA.
        width: Channels A inside the adapters.
    """

    def __init__(self, adapters: Sequence[CrossModalTemporalAdapter], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, MOVEMENT_CHANNELS))
            for _ in adapters
        )
        self._seen: list[list[Tensor]] = [[] for _ in adapters]
        self._sides: list[int] = []
        self._hooks: list[RemovableHandle] = []
        for number, adapter in enumerate(adapters):
            assert adapter.hsa is not None
            self._sides.append(adapter.hsa.side)
            self._hooks.append(adapter.hsa.register_forward_hook(self._keep(number)))

    def _keep(self, number: int):  # type: ignore[no-untyped-def]
        def hook(_: HierarchicalSelectiveAttention, given: tuple[Tensor, int], change: Tensor) -> None:
            if self.training:
                window, frames = given
                self._seen[number].append(window[:, :, -frames:] + change)  # (V, P, T, S, A)

        return hook

    def forward(self, movements: Tensor, mean: Mean = mean_of_batch) -> Tensor:
        """Compute the loss of the movements predicted from the adapters' last forward pass, and clear its tokens.

        Args:
            movements: Targets (V, T, n, n, 6), NaN where there is none, see ``cell_movements``.
            mean: Averages over the known movements; called with ``movement 0`` and so on, one for each adapter.

        Returns:
            A scalar: the smooth L1 loss, summed over the adapters.
        """
        videos, _, cells = movements.shape[:3]
        total = movements.new_zeros(())
        for number, (head, seen, side) in enumerate(zip(self.heads, self._seen, self._sides, strict=True)):
            tokens = torch.cat(seen, dim=2)  # (N, P, T, S, A)
            seen.clear()
            count, _, frames, _, _ = tokens.shape
            tokens = image_of(tokens, side)  # (N*T, g, g, A)
            tokens = F.avg_pool2d(tokens.permute(0, 3, 1, 2), tokens.shape[1] // cells).permute(
                0, 2, 3, 1
            )  # (N*T, n, n, A)
            predicted = head(tokens).unflatten(0, (count, frames))  # (N, T, n, n, 6)
            target = for_each_sentence(movements, count)[:, -frames:] if count > videos else movements[:, -frames:]
            known = ~target.isnan()
            error = F.smooth_l1_loss(predicted, torch.where(known, target, predicted.detach()), reduction="none")
            total = total + mean(f"movement {number}", (error * known).sum(), known.sum())
        return total


def image_of(tokens: Tensor, side: int) -> Tensor:
    """Reorder the tokens of a square image from patches into rows and columns: (N, P, T, S, A) -> (N*T, g, g, A)."""
    grid = round((tokens.shape[1] * side * side) ** 0.5)
    return out_of_patches(tokens.transpose(1, 2).flatten(0, 1), side, grid, grid)
