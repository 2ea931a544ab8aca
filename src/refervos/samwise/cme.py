"""CME, the Conditional Memory Encoder: it decides when the tracked object is no longer the one that the sentence means.

SAMWISE paper, section 3.3: a memory-free look at the frame tells what the sentence points at now; when that differs
from what the tracker follows, the frame's memory is rewritten so that the tracker can change its mind.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from refervos.attention import MultiheadAttention

SwitchMode = Literal["reweight", "all_mask", "avg"]


class ConditionalMemoryEncoder(nn.Module):
    """A decision token looks at the memory-aware and the memory-free object and says whether to switch.

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
        # Never read, in the released code either; kept so that checkpoints and parameter counts stay complete.
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, feedforward)
        self.linear2 = nn.Linear(feedforward, width)
        self.norm3 = nn.LayerNorm(width)
        self.head = nn.Linear(width, 2)

    def forward(self, tracked: Tensor, unbiased: Tensor) -> Tensor:
        """Decide.

        Args:
            tracked: Object pointer of the memory-aware mask (N, width).
            unbiased: Early mask token of the memory-free pass (N, width).

        Returns:
            Logits (N, 2); class 1 means that the sentence now points at another object.
        """
        decision = self.decision_token.expand(tracked.shape[0], -1)
        tokens = torch.stack([decision, tracked, unbiased], dim=1)  # (N, 3, width)
        tokens = self.norm1(tokens + self.attention(tokens, tokens))
        tokens = self.norm3(tokens + self.linear2(torch.relu(self.linear1(tokens))))
        return self.head(tokens[:, 0])


def rewrite_memory_mask(tracked: Tensor, unbiased: Tensor, mode: SwitchMode) -> Tensor:
    """The mask logits that go into memory after a switch.

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
