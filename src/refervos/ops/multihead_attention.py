"""Multi-head attention without materialised attention weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.linear import linear, product


class MultiheadAttention(nn.Module):
    """Multi-head attention with a packed input projection, with the parameters of ``torch.nn.MultiheadAttention``.

    Args:
        width: Channels of queries, keys, values and output.
        heads: Number of heads, which must divide ``width``.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, width).
            memory: Keys and values (B, K, width).
            mask: bool, broadcastable to (B, 1, Q, K), False for keys to ignore; default none.

        Returns:
            (B, Q, width).
        """
        return self.attend(self.queries(query), *self.keys_and_values(memory), mask)

    def queries(self, x: Tensor) -> Tensor:
        """Project queries: (..., width) -> (..., width)."""
        width = x.shape[-1]
        return product(x, self.in_proj.weight[:width], self.in_proj.bias[:width])

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project keys and values: (..., width) -> (..., width) each."""
        width = x.shape[-1]
        key, value = product(x, self.in_proj.weight[width:], self.in_proj.bias[width:]).chunk(2, dim=-1)
        return key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend, given projected queries, keys and values; see ``forward``."""
        q, k, v = (
            x.view(*x.shape[:-1], self.heads, x.shape[-1] // self.heads).transpose(1, 2)  # (B, heads, *, width / heads)
            for x in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return linear(attended.transpose(1, 2).flatten(2), self.out_proj)  # (B, Q, width)
