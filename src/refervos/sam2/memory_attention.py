"""SAM2's memory attention (SAM2 paper, section 4; rotary positions: Su et al. 2021, arXiv 2104.09864), on transformers'
weights.

Memory tokens are 64 wide and become keys and values four times as wide. Attention is linear in the values, so at
inference they are averaged as they are and widened afterwards: the same numbers for 37 % fewer operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from refervos.derived import Derived
from refervos.linear import fast, linear, product
from refervos.sam2.attention import attend


def rotary_tables(memory_attention: Any) -> Tensor:
    """Cosines and sines by which channel pairs are rotated at each place of the grid.

    Args:
        memory_attention: A ``Sam2VideoMemoryAttention``.

    Returns:
        float32 (2, g*g, C/2).
    """
    cosines, sines = memory_attention.rotary_emb(torch.zeros(()), memory_attention.position_ids)  # (1, g*g, C)
    return torch.cat([cosines, sines])[..., ::2].clone()  # neighbouring channels are a pair


def look_back(
    memory_attention: Any,
    tokens: Tensor,
    maps: Sequence[Tensor],
    codes: Sequence[Tensor],
    pointers: tuple[Tensor, Tensor] | None,
    rotary: Tensor,
    derived: Derived,
) -> Tensor:
    """Let a frame's tokens look at each other and at what is remembered.

    Args:
        memory_attention: A ``Sam2VideoMemoryAttention``.
        tokens: (N, g*g, C), positions added.
        maps: Memory maps (N, 64, g*g) each.
        codes: Position of each map's tokens in place and time (g*g, 64).
        pointers: Pointer tokens (N, P, 64) and their positions (P, 64), if there are any.
        rotary: See ``rotary_tables``.
        derived: Keeps rearranged weights.

    Returns:
        (N, g*g, C).
    """
    places = torch.stack([each.transpose(1, 2) + code for each, code in zip(maps, codes, strict=True)], dim=1)
    values = torch.cat([*maps, pointers[0].transpose(1, 2)] if pointers else list(maps), dim=2).transpose(1, 2)
    for layer in memory_attention.layers:
        normed = layer.layer_norm1(tokens)
        own = layer.self_attn
        attended = _attend(
            own,
            _rotated(normed, own.q_proj, rotary, derived),
            _rotated(normed, own.k_proj, rotary, derived),
            linear(normed, own.v_proj),
        )
        tokens = tokens + layer.dropout1(linear(attended, own.o_proj))

        across = layer.cross_attn_image
        keys = [_rotated(places, across.k_proj, rotary, derived).flatten(1, 2)]  # (N, maps * g*g, C)
        if pointers:  # these have no place, so they are not rotated
            keys.append(_paired(pointers[0] + pointers[1], across.k_proj, derived))
        query = _rotated(layer.layer_norm2(tokens), across.q_proj, rotary, derived)
        if fast(tokens) and not across.training:
            attended = linear(_attend(across, query, torch.cat(keys, dim=1), values), across.v_proj)
        else:
            attended = _attend(across, query, torch.cat(keys, dim=1), linear(values, across.v_proj))
        tokens = tokens + layer.dropout2(linear(attended, across.o_proj))

        hidden = linear(layer.layer_norm3(tokens), layer.linear1, "relu")
        tokens = tokens + layer.dropout3(linear(layer.dropout(hidden), layer.linear2))
    normed_tokens: Tensor = memory_attention.layer_norm(tokens)
    return normed_tokens


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with one head, (N, L, ...) each."""
    dropout = attention.dropout_p if attention.training else 0.0
    query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    return attend(query, key, value, dropout=dropout).squeeze(1)


def _paired(x: Tensor, projection: nn.Linear, derived: Derived) -> Tensor:
    """A projection whose even channels come first and then the odd ones, so that pairs lie in two halves.

    Queries and keys change places alike, so their products stay the same.
    """

    def rearrange() -> tuple[Tensor, ...]:
        return tuple(torch.cat([part[0::2], part[1::2]]) for part in (projection.weight, projection.bias))

    weight, bias = derived.get(("paired", id(projection)), [projection.weight, projection.bias], rearrange)
    return product(x, weight, bias)


def _rotated(x: Tensor, projection: nn.Linear, rotary: Tensor, derived: Derived) -> Tensor:
    """Queries or keys (N, g*g, C) with their places in them, turned in float32 at least."""
    turning = _paired(x, projection, derived)
    first, second = turning.to(torch.promote_types(turning.dtype, rotary.dtype)).chunk(2, dim=-1)
    cosines, sines = rotary
    turned = torch.cat([first * cosines - second * sines, first * sines + second * cosines], dim=-1)
    return turned.to(turning.dtype)
