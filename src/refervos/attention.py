"""Multi-head attention whose weights are never materialised."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from refervos.linear import linear, product


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with a packed projection, the parameters of ``torch.nn.MultiheadAttention``.

    Args:
        width: Channels of queries, keys, values and output.
        heads: Number of heads; must divide ``width``.
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
            mask: bool, broadcastable to (B, 1, Q, K), True where a key may be looked at; default everywhere.

        Returns:
            (B, Q, width).
        """
        width = query.shape[-1]
        weight, bias = self.in_proj.weight, self.in_proj.bias
        q = product(query, weight[:width], bias[:width])
        k, v = product(memory, weight[width:], bias[width:]).chunk(2, dim=-1)
        q, k, v = (tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2) for tensor in (q, k, v))  # (B, h, *, width/h)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return linear(attended.transpose(1, 2).flatten(2), self.out_proj)  # (B, Q, width)
