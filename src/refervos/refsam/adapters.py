"""Visual adapters inside the image encoder's blocks."""

from __future__ import annotations

from torch import Tensor, nn

from refervos.ops.linear import linear

FEEDFORWARD_SCALE = 0.5
"""What the adapter beside the feed-forward network is multiplied by."""


class Adapter(nn.Module):
    """Down, GELU, up.

    Args:
        width: Channels outside.
        inner: Channels inside.
        zero: Whether it starts as zero.
    """

    def __init__(self, width: int, inner: int, *, zero: bool = False) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return linear(linear(tokens, self.down, "gelu"), self.up)


class BlockAdapter(nn.Module):
    """The two adapters of one block: one after its attention, one beside its feed-forward network.

    Args:
        width: Channels of the image encoder.
        inner: Channels inside the adapters.
        zero: Whether they start as zero.
    """

    def __init__(self, width: int, inner: int, *, zero: bool = False) -> None:
        super().__init__()
        self.space = Adapter(width, inner, zero=zero)
        self.mlp = Adapter(width, inner, zero=zero)

    def after_attention(self, attended: Tensor) -> Tensor:
        """The attention's output with a skip around the adapter, before the block's own skip."""
        return attended + self.space(attended)

    def beside_feedforward(self, normed: Tensor) -> Tensor:
        """Half of what the adapter makes of the feed-forward network's input, without a skip."""
        scaled: Tensor = FEEDFORWARD_SCALE * self.mlp(normed)
        return scaled
