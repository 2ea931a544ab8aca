"""SAM2's memory attention (SAM2 paper, section 4; rotary positions: Su et al. 2021, arXiv 2104.09864).

Memory tokens are 64 wide and are projected to keys and values four times as wide. Attention is linear in the values, so
at inference they are averaged first and projected afterwards: the same result with 37 % fewer operations.

Shapes: N tracks, P = g * g cells of the grid, C = hidden width, M maps and L pointer tokens in memory, both 64 wide.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from refervos.ops.attention import attend
from refervos.ops.derived import Derived
from refervos.ops.linear import column_major, linear, on_cpu_path, product
from refervos.sam2.config import Sam2Config

DROPOUT = 0.1
"""Dropout probability of attention weights and activations in training."""

ROTARY_BASE = 10000.0
"""The slowest rotation turns by one radian over this many cells."""


def rotary_tables(side: int, width: int) -> Tensor:
    """Compute the rotation of each channel pair at each cell of a grid.

    The first half of the pairs encodes the column, the second half the row.

    Args:
        side: Side of the grid.
        width: Channels C; adjacent channels form a pair.

    Returns:
        Cosines and sines, float32 (2, side * side, C/2).
    """
    quarter = width // 4
    frequencies = 1 / ROTARY_BASE ** (torch.arange(quarter, dtype=torch.float32, device="cpu") / quarter)  # (C/4,)
    places = torch.arange(side * side, device="cpu")
    columns, rows = (places % side).float(), torch.div(places, side, rounding_mode="floor").float()
    angles = torch.cat([torch.outer(columns, frequencies), torch.outer(rows, frequencies)], dim=1)  # (P, C/2)
    return torch.stack([angles.cos(), angles.sin()])


class RotaryAttention(nn.Module):
    """Single-head attention with rotary positions on queries and keys.

    Args:
        width: Channels C of the queries and inside.
        memory_width: Channels of keys and values.
    """

    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(memory_width, width)
        self.v_proj = nn.Linear(memory_width, width)
        self.o_proj = nn.Linear(width, width)
        self.dropout_p = DROPOUT
        self.derived = Derived()

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend, given projected and rotated queries, keys and values, (N, ., C) each."""
        dropout = self.dropout_p if self.training else 0.0
        return attend(query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1), dropout=dropout).squeeze(1)

    def projected(self, x: Tensor, *projections: nn.Linear) -> Tensor:
        """Project, with the output channels in the order that ``rotate_halves`` expects.

        Queries and keys are permuted alike, so their products do not change.

        Args:
            x: (..., C).
            projections: ``q_proj``, ``k_proj`` or both.

        Returns:
            (..., projections, C).
        """
        weights = [tensor for each in projections for tensor in (each.weight, each.bias)]
        halves = not on_cpu_path(x)

        def join() -> tuple[Tensor, Tensor]:
            ordered = [torch.cat([part[0::2], part[1::2]]) for part in weights] if halves else weights
            return column_major(torch.cat(ordered[0::2])), torch.cat(ordered[1::2])

        weight, bias = self.derived.get(("projected", halves, *map(id, projections)), weights, join)
        both = product(x, weight, bias)
        return both.view(*x.shape[:-1], len(projections), both.shape[-1] // len(projections))

    def rotated(self, x: Tensor, rotary: Tensor, *projections: nn.Linear) -> Tensor:
        """Project and rotate by position.

        Args:
            x: (..., P, C).
            rotary: See ``rotary_tables``.
            projections: See ``projected``.

        Returns:
            (..., P, projections, C).
        """
        projected = self.projected(x, *projections)
        if not on_cpu_path(x):
            return rotate_halves(projected, rotary)
        exact = projected.to(torch.promote_types(torch.promote_types(projected.dtype, rotary.dtype), torch.float32))
        table = self.derived.get(
            ("turns", exact.dtype), [rotary], lambda: torch.complex(*rotary.to(exact.dtype)).unsqueeze(1)
        )  # (P, 1, C/2)
        pairs = torch.view_as_complex(exact.view(*exact.shape[:-1], -1, 2))  # (..., P, projections, C/2)
        return torch.view_as_real(pairs * table).flatten(-2).to(projected.dtype)


def rotate_halves(halves: Tensor, rotary: Tensor) -> Tensor:
    """Rotate channel pairs whose members are in the two halves of the channels, in float32 or wider.

    At inference on a CPU, pairs are adjacent instead and rotated as complex numbers, in a quarter of the time; ONNX and
    some compilers do not support complex numbers.

    Args:
        halves: (..., P, n, C).
        rotary: See ``rotary_tables``.

    Returns:
        Same shape and type.
    """
    first, second = halves.to(torch.promote_types(halves.dtype, rotary.dtype)).chunk(2, dim=-1)
    cosines, sines = rotary.unsqueeze(2)  # (P, 1, C/2) each
    both = torch.cat([first * cosines - second * sines, first * sines + second * cosines], dim=-1)
    return both.to(halves.dtype)


class MemoryAttentionLayer(nn.Module):
    """Layer of self-attention over the frame, cross-attention to the memory, and a feed-forward network.

    Args:
        config: The tracker's shape.
    """

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        width, inner = config.hidden, config.memory_feedforward
        self.self_attn = RotaryAttention(width, width)
        self.cross_attn_image = RotaryAttention(width, config.memory_width)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.layer_norm1, self.layer_norm2, self.layer_norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, tokens: Tensor, places: Tensor, values: Tensor, pointers: Tensor, rotary: Tensor) -> Tensor:
        """Run the layer.

        Args:
            tokens: Tokens of the frame (N, P, C).
            places: Tokens of the maps plus their spatial and temporal encodings (N, M, P, 64).
            values: Tokens of maps and pointers without positions (N, M*P + L, 64).
            pointers: Pointer tokens plus their positions (N, L, 64).
            rotary: See ``rotary_tables``.

        Returns:
            (N, P, C).
        """
        normed = self.layer_norm1(tokens)
        own = self.self_attn
        query, key = own.rotated(normed, rotary, own.q_proj, own.k_proj).unbind(-2)
        attended = own.attend(query, key, linear(normed, own.v_proj))
        tokens = tokens + self.dropout(linear(attended, own.o_proj))

        across = self.cross_attn_image
        keys = across.rotated(places, rotary, across.k_proj).squeeze(-2).flatten(1, 2)  # (N, M*P, C)
        # Pointers have no spatial position, so they are not rotated.
        keys = torch.cat([keys, across.projected(pointers, across.k_proj).squeeze(-2)], dim=1)  # (N, M*P + L, C)
        query = across.rotated(self.layer_norm2(tokens), rotary, across.q_proj).squeeze(-2)
        if on_cpu_path(tokens) and not self.training:
            attended = linear(across.attend(query, keys, values), across.v_proj)
        else:
            attended = across.attend(query, keys, linear(values, across.v_proj))
        tokens = tokens + self.dropout(linear(attended, across.o_proj))

        hidden = linear(self.layer_norm3(tokens), self.linear1, "relu")
        changed: Tensor = tokens + self.dropout(linear(self.dropout(hidden), self.linear2))
        return changed


class MemoryAttention(nn.Module):
    """All layers of the memory attention.

    Args:
        config: The tracker's shape.
    """

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MemoryAttentionLayer(config) for _ in range(config.memory_layers))
        self.layer_norm = nn.LayerNorm(config.hidden)

    def forward(
        self,
        tokens: Tensor,
        maps: Tensor,
        codes: Tensor,
        pointers: Tensor,
        positions: Tensor,
        rotary: Tensor,
    ) -> Tensor:
        """Run all layers.

        Args:
            tokens: Tokens of the frame plus their positions (N, P, C).
            maps: Memory maps (N, M, P, 64).
            codes: Spatial and temporal encodings of each map's tokens (M, P, 64).
            pointers: Pointer tokens (N, L, 64); L may be 0.
            positions: Positions of the pointers (L, 64).
            rotary: See ``rotary_tables``.

        Returns:
            (N, P, C).
        """
        values = torch.cat([maps.flatten(1, 2), pointers], dim=1)  # (N, M*P + L, 64)
        places, placed = maps + codes, pointers + positions
        for layer in self.layers:
            tokens = layer(tokens, places, values, placed, rotary)
        normed: Tensor = self.layer_norm(tokens)
        return normed
