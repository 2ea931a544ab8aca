"""Visual adapters inside the image encoder's blocks."""

from __future__ import annotations

from torch import Tensor, nn

from refervos.ops.linear import linear

FEEDFORWARD_SCALE = 0.5
"""Scale of the adapter parallel to the feed-forward network."""


class Adapter(nn.Module):
    """Bottleneck adapter: down projection, GELU, up projection.

    Args:
        width: Input and output channels.
        inner: Channels inside.
        zero: Initialise the output to zero.
    """

    def __init__(self, width: int, inner: int, *, zero: bool = False) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        if zero:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the adapter: (..., width) -> (..., width)."""
        return linear(linear(tokens, self.down, "gelu"), self.up)


class BlockAdapter(nn.Module):
    """The two adapters of one block: after its attention, and parallel to its feed-forward network.

    Args:
        width: Channels of the image encoder.
        inner: Channels inside the adapters.
        zero: Initialise their outputs to zero.
    """

    def __init__(self, width: int, inner: int, *, zero: bool = False) -> None:
        super().__init__()
        self.space = Adapter(width, inner, zero=zero)
        self.mlp = Adapter(width, inner, zero=zero)

    def after_attention(self, attended: Tensor) -> Tensor:
        """Adapt the attention's output, with a residual connection inside the block's own."""
        return attended + self.space(attended)

    def beside_feedforward(self, normed: Tensor) -> Tensor:
        """Adapt the feed-forward network's input and halve the result, without a residual connection."""
        scaled: Tensor = FEEDFORWARD_SCALE * self.mlp(normed)
        return scaled
