"""Attention; at inference on a CPU as plain matrix products over blocks of queries, whose scores stay in the cache.

torch's fused kernel multiplies with MKL in float32 and is slow in bfloat16 without AMX; on an AMD EPYC it reaches
90 GFLOP/s in both, matrix products by oneDNN 180 and 300.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.ops.linear import on_cpu_path, product

SCORES_AT_ONCE = 2**24
"""Bytes of attention scores computed at once."""

SHORT = 256
"""Sequences of at most this many keys are processed as a batch instead of one by one."""


def attend(query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Compute scaled dot-product attention.

    Args:
        query: (B, h, Q, d).
        key: (B, h, K, d).
        value: (B, h, K, e); without ``on_cpu_path``, e other than d is slow.
        dropout: Dropout probability of the attention weights, in training.

    Returns:
        (B, h, Q, e).
    """
    length = key.shape[2]
    same_width = value.shape[3] == query.shape[3]  # otherwise torch has no fused kernel
    if dropout or not on_cpu_path(query) or (same_width and length <= SHORT and query.dtype == torch.float32):
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    query = query * query.shape[-1] ** -0.5
    few = query.shape[:3].numel() * length * query.element_size() <= SCORES_AT_ONCE // 8
    if length <= SHORT or few:
        return torch.matmul(torch.softmax(torch.matmul(query, key.transpose(2, 3)), dim=-1), value)
    rows = max(32, min(256, SCORES_AT_ONCE // (length * query.element_size())))
    attended = query.new_empty(*query.shape[:3], value.shape[3])
    for queries, keys, values, out in zip(*map(_sequences, (query, key, value, attended)), strict=True):
        keys, columns = keys.contiguous(), values.t().contiguous()  # (K, d), (e, K)
        for block, result in zip(queries.split(rows), out.split(rows), strict=True):
            scores = product(block, keys)  # (rows, K)
            torch.softmax(scores, dim=-1, out=scores)
            result.copy_(product(scores, columns))
    return attended


def _sequences(batch: Tensor) -> list[Tensor]:
    """Split (B, h, L, d) into B*h views (L, d)."""
    return [sequence for heads in batch for sequence in heads]
