"""CME, the Conditional Memory Encoder: detects when the sentence no longer refers to the tracked object.

SAMWISE paper, section 3.3: a memory-free pass finds the object that the sentence refers to now; when it differs from
the tracked object, the memory of the frame is rewritten so that the tracker can switch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.multihead_attention import MultiheadAttention

SwitchMode = Literal["reweight", "all_mask", "avg"]

IGNORED_LABEL = -1
"""CME label of a frame that is left out of the loss."""

MIN_VISIBLE_PIXELS = 50
"""A predicted mask of at most this many pixels counts as empty."""

MIN_OVERLAP = 0.1
"""Two masks show different objects when they share less than this fraction of the smaller one."""


class ConditionalMemoryEncoder(nn.Module):
    """Decision token that attends to the memory-aware and the memory-free object and predicts whether to switch.

    Args:
        width: Channels of a pointer.
        heads: Attention heads.
        feedforward: Width of the feed-forward network.
    """

    def __init__(self, width: int, heads: int = 8, feedforward: int = 128) -> None:
        super().__init__()
        self.decision_token = nn.Parameter(torch.empty(1, width).normal_())
        self.attention = MultiheadAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        # Never used, not even in the released code; kept so that checkpoints and parameter counts stay complete.
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm3 = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)

    def forward(self, tracked: Tensor, unbiased: Tensor) -> Tensor:
        """Predict whether to switch.

        Args:
            tracked: Object pointer of the memory-aware mask (N, width).
            unbiased: Early mask token of the memory-free pass (N, width).

        Returns:
            Logits (N, 2); class 1 means that the sentence now refers to another object.
        """
        decision = self.decision_token.expand(tracked.shape[0], -1)
        tokens = torch.stack([decision, tracked, unbiased], dim=1)  # (N, 3, width)
        tokens = self.norm1(tokens + self.attention(tokens, tokens))
        tokens = self.norm3(tokens + self.linear2(torch.relu(self.linear1(tokens))))
        return self.head(tokens[:, 0])


def rewrite_memory_mask(tracked: Tensor, unbiased: Tensor, mode: SwitchMode) -> Tensor:
    """Compute the mask logits that are stored in memory on a switch.

    Args:
        tracked: Memory-aware mask logits, any shape.
        unbiased: Memory-free mask logits, same shape.
        mode: ``reweight`` takes ten times the memory-free logits where they are positive and keeps the rest,
            ``all_mask`` takes the memory-free logits, ``avg`` the mean of both.

    Returns:
        Mask logits, same shape.
    """
    if mode == "all_mask":
        return unbiased
    if mode == "avg":
        return (tracked + unbiased) / 2
    return torch.where(unbiased > 0, 10 * unbiased, tracked)


def cme_labels(tracked: Tensor, unbiased: Tensor, score: Tensor | None, *, published: bool = False) -> Tensor:
    """Compute the target labels of the CME's decisions.

    Args:
        tracked: Memory-aware predicted masks, bool (K, H, W).
        unbiased: Memory-free predicted masks, bool (K, H, W).
        score: Object score logits of the memory-free pass (K,), or None.
        published: Use label 0 when exactly one mask is empty, as the released code does although its comment says 1.

    Returns:
        int64 (K,): 1 where the two masks show different objects, 0 where they show the same, ``IGNORED_LABEL`` where
        both are empty or the memory-free pass sees no object.
    """
    areas = tracked.flatten(1).sum(1), unbiased.flatten(1).sum(1)  # (K,) each
    smaller = torch.minimum(*areas)
    overlap = (tracked & unbiased).flatten(1).sum(1) / smaller.clamp(min=1)
    different = overlap < MIN_OVERLAP
    if published:
        different = different & (smaller > 0)
    ignored = (areas[0] <= MIN_VISIBLE_PIXELS) & (areas[1] <= MIN_VISIBLE_PIXELS)
    if score is not None:
        ignored = ignored | (score < 0)
    return torch.where(ignored, IGNORED_LABEL, different.long())


def _own_mean(total: Tensor, weight: Tensor) -> Tensor:
    return total / weight.clamp(min=1.0)


def cme_loss(logits: Tensor, labels: Tensor, mean: Callable[[Tensor, Tensor], Tensor] = _own_mean) -> Tensor:
    """Compute the cross-entropy of the CME's decisions, with weight 2 for switches.

    Args:
        logits: (K, 2).
        labels: int64 (K,), ``IGNORED_LABEL`` for rows to leave out.
        mean: Divides a weighted sum by the sum of the weights, both scalars, in distributed training over all
            processes.

    Returns:
        A scalar, zero (with a gradient path) when every label is ignored.
    """
    weights = torch.tensor([1.0, 2.0], dtype=logits.dtype, device=logits.device)
    total = F.cross_entropy(logits, labels, weight=weights, ignore_index=IGNORED_LABEL, reduction="sum")
    return mean(total, (weights[labels.clamp(min=0)] * (labels != IGNORED_LABEL)).sum())
