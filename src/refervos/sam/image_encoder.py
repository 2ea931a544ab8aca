"""SAM's ViT block by block, so that adapters can stand inside a block and the maps between blocks can be read."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.linear import linear

BIAS_BYTES = 128 * 2**20
"""Bytes of position biases that exist at once at inference: a global block of the published size would need 800 MB."""


class BlockAdapters(Protocol):
    """What may change a block: see ``run_block``."""

    def after_attention(self, attended: Tensor) -> Tensor:
        """What replaces the attention's output, same shape."""
        ...

    def beside_feedforward(self, normed: Tensor) -> Tensor:
        """What is added to the feed-forward network's output, from the same input."""
        ...


def run_block(block: Any, tokens: Tensor, adapters: BlockAdapters | None = None) -> Tensor:
    """Run one block of SAM's ViT.

    Args:
        block: A ``SamVisionLayer``; global where its ``window_size`` is 0.
        tokens: (N, g, g, D).
        adapters: What changes it; they work on single tokens, so it does not matter that windows are closed already.

    Returns:
        Same shape.
    """
    normed = block.layer_norm1(tokens)
    if block.window_size:
        windows, padded = block.window_partition(normed, block.window_size)
        attended = attend(block.attn, windows)
        attended = block.window_unpartition(attended, block.window_size, padded, normed.shape[1:3])
    else:
        attended = attend(block.attn, normed)
    if adapters is not None:
        attended = adapters.after_attention(attended)
    tokens = tokens + attended
    normed = block.layer_norm2(tokens)
    output = linear(linear(normed, block.mlp.lin1, "gelu"), block.mlp.lin2)
    if adapters is not None:
        output = output + adapters.beside_feedforward(normed)
    return tokens + output


def attend(attention: Any, tokens: Tensor) -> Tensor:
    """Attention with SAM's decomposed relative positions.

    Args:
        attention: A ``SamVisionAttention``.
        tokens: Windows or whole maps (N, h, w, D).

    Returns:
        Same shape.
    """
    count, height, width, _ = tokens.shape
    heads = attention.num_attention_heads
    packed = linear(tokens, attention.qkv).reshape(count, height * width, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = packed.flatten(1, 2)  # (N*heads, h*w, d) each
    step = len(query)
    if not torch.is_grad_enabled():
        step = max(1, BIAS_BYTES // ((height * width) ** 2 * query.element_size()))
    parts = []
    for some in range(0, len(query), step):
        rows = slice(some, some + step)
        bias = attention.get_decomposed_rel_pos(
            query[rows], attention.rel_pos_h, attention.rel_pos_w, (height, width), (height, width)
        ).flatten(1, 2)  # (n, h*w, h, w)
        # As heads of one image: torch has a kernel for that on a CPU, and none for three axes.
        q, k, v = (tensor[None, rows] for tensor in (query, key, value))  # (1, n, h*w, d)
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(2)[None])[0])  # (n, h*w, d)
    attended = torch.cat(parts).unflatten(0, (count, heads)).transpose(1, 2).reshape(tokens.shape)
    return linear(attended, attention.proj)
