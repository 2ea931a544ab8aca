"""Hiera, SAM2's image encoder (Ryali et al. 2023, arXiv 2306.00989).

Tokens are kept in the order of their attention windows, so that they move only where the window size changes, and
padding is never computed: where the image does not fill whole windows, padding takes part as keys alone.

Shapes: N frames, H x W tokens a frame, M tokens in all, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.attention import attend
from refervos.ops.derived import Derived
from refervos.ops.linear import linear
from refervos.ops.parts import in_parts
from refervos.ops.precision import KeepsPrecision, without_autocast
from refervos.sam.layers import NORM_EPSILON
from refervos.sam2.config import Sam2Config

TOKENS_AT_ONCE = 4096
"""On a CPU so many tokens go through a block together: their hidden layer stays near the cache and costs no page
faults."""

POOLING = 2
"""Side of the pooling at the start of every stage but the first."""


@dataclass(frozen=True)
class WindowShape:
    """Windows of one shape.

    Attributes:
        count: How many in an image.
        height: Rows of tokens in each.
        width: Columns.
        padding: Keys beyond the image that each also looks at: zeros before the projection.
    """

    count: int
    height: int
    width: int
    padding: int

    @property
    def tokens(self) -> int:
        """Tokens in all of them."""
        return self.count * self.height * self.width


@dataclass(frozen=True)
class Windows:
    """How an image of tokens falls into square windows; at the right and lower edge they may be cut.

    Attributes:
        height: Rows of the image.
        width: Columns.
        side: Side of a whole window.
    """

    height: int
    width: int
    side: int

    def shapes(self) -> list[WindowShape]:
        """The windows, those of one shape together: whole, cut at the right, below, at both."""
        return [
            WindowShape(rows * columns, high, wide, self.side**2 - high * wide)
            for _, rows, high in _cuts(self.height, self.side)
            for _, columns, wide in _cuts(self.width, self.side)
        ]

    def order(self, device: torch.device) -> Tensor:
        """Positions in the image, row by row, of the windows' tokens: int64 (height * width,)."""
        places = torch.arange(self.height * self.width, device=device).reshape(self.height, self.width)
        parts = [
            places[top : top + rows * high, left : left + columns * wide]
            .reshape(rows, high, columns, wide)
            .transpose(1, 2)
            .flatten()
            for top, rows, high in _cuts(self.height, self.side)
            for left, columns, wide in _cuts(self.width, self.side)
        ]
        return torch.cat(parts)

    def pooled(self) -> Windows:
        """The same windows after 2 x 2 pooling; the tokens' order is the same too."""
        return Windows(self.height // 2, self.width // 2, self.side // 2)


def _cuts(length: int, side: int) -> list[tuple[int, int, int]]:
    """Start, count and length of the whole and of the cut windows along one axis."""
    whole = length // side
    cuts = [(0, whole, side), (whole * side, 1, length - whole * side)]
    return [cut for cut in cuts if cut[1] and cut[2]]


class PatchEmbedding(nn.Module):
    """Overlapping patches of 7 x 7 pixels, four pixels apart.

    Args:
        width: Channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, kernel_size=7, stride=4, padding=3)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, S/4, S/4, C)."""
        pixels = pixels.to(self.projection.weight.dtype).contiguous(memory_format=torch.channels_last)
        return self.projection(pixels).permute(0, 2, 3, 1)


class FeedForward(nn.Module):
    """Two linear layers with GELU between, four times as wide inside.

    Args:
        width: Channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, 4 * width)
        self.proj_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return linear(linear(x, self.proj_in, "gelu"), self.proj_out)


class MultiScaleAttention(nn.Module):
    """Attention within windows; where it pools, the queries are the maxima over 2 x 2 tokens.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        heads: Attention heads.
        pools: Whether the resolution is halved.
    """

    def __init__(self, inputs: int, outputs: int, heads: int, *, pools: bool) -> None:
        super().__init__()
        self.heads, self.pools = heads, pools
        self.qkv = nn.Linear(inputs, 3 * outputs)
        self.proj = nn.Linear(outputs, outputs)

    def forward(self, tokens: Tensor, shapes: Sequence[WindowShape]) -> Tensor:
        """Attend.

        Args:
            tokens: (N, M, inputs) in the order of the windows.
            shapes: The windows.

        Returns:
            (N, M', outputs), where M' is M / 4 with pooling.
        """
        projected = linear(tokens, self.qkv)  # (N, M, 3 * outputs)
        if len(shapes) == 1:
            attended = self._attend(projected, shapes[0])
        else:
            parts = projected.split([shape.tokens for shape in shapes], dim=1)
            attended = torch.cat([self._attend(*part) for part in zip(parts, shapes, strict=True)], dim=1)
        return linear(attended, self.proj)

    def _attend(self, projected: Tensor, shape: WindowShape) -> Tensor:
        """Attention within windows of one shape: queries, keys and values (N, M, 3 * C) -> (N, M', C)."""
        channels = projected.shape[-1] // 3
        windows = projected.reshape(-1, shape.height * shape.width, 3, self.heads, channels // self.heads)
        query, key, value = windows.unbind(2)  # (n, h*w, heads, d) each
        if shape.padding:
            bias = self.qkv.bias.to(key.dtype).reshape(3, 1, self.heads, -1).expand(-1, shape.padding, -1, -1)
            key, value = (
                torch.cat([own, beyond.expand(own.shape[0], -1, -1, -1)], dim=1)
                for own, beyond in ((key, bias[1]), (value, bias[2]))
            )
        if self.pools:
            query = pool(query.flatten(2), shape).unflatten(-1, (self.heads, -1))
        attended = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))  # (n, heads, ., d)
        return attended.transpose(1, 2).reshape(projected.shape[0], -1, channels)


class MultiScaleBlock(nn.Module):
    """Attention within windows, then a feed-forward network; the first block of a stage pools and widens.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        heads: Attention heads.
        window: Side of the attention windows in tokens, 0 for the whole image.
        pools: Whether the resolution is halved.
    """

    def __init__(self, inputs: int, outputs: int, heads: int, window: int, *, pools: bool) -> None:
        super().__init__()
        self.window, self.pools = window, pools
        self.layer_norm1 = nn.LayerNorm(inputs, NORM_EPSILON)
        self.attn = MultiScaleAttention(inputs, outputs, heads, pools=pools)
        self.layer_norm2 = nn.LayerNorm(outputs, NORM_EPSILON)
        self.mlp = FeedForward(outputs)
        self.proj = nn.Linear(inputs, outputs) if inputs != outputs else None

    def forward(self, tokens: Tensor, shapes: Sequence[WindowShape]) -> Tensor:
        """Run the block, on a CPU some windows at a time.

        Args:
            tokens: (N, M, inputs) in the order of the windows.
            shapes: The windows.

        Returns:
            (N, M', outputs), where M' is M / 4 in a block that pools.
        """
        batches = _batches(shapes) if in_parts(tokens) and tokens.shape[1] > TOKENS_AT_ONCE else [shapes]
        if len(batches) == 1:
            return self._run(tokens, shapes)
        parts = tokens.split([sum(shape.tokens for shape in batch) for batch in batches], dim=1)
        return torch.cat([self._run(*part) for part in zip(parts, batches, strict=True)], dim=1)

    def _run(self, tokens: Tensor, shapes: Sequence[WindowShape]) -> Tensor:
        normed = self.layer_norm1(tokens)
        if self.proj is not None:
            tokens = linear(normed, self.proj)
            if self.pools:
                parts = tokens.split([shape.tokens for shape in shapes], dim=1)
                tokens = torch.cat([pool(*part) for part in zip(parts, shapes, strict=True)], dim=1)
        tokens = tokens + self.attn(normed, shapes)
        changed: Tensor = tokens + self.mlp(self.layer_norm2(tokens))
        return changed


class Hiera(KeepsPrecision):
    """The image encoder without its pyramid, in four stages.

    Args:
        config: The tracker's shape.
    """

    in_float32 = ("pos_embed", "pos_embed_window")

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        width, side = config.hiera_width, config.hiera_windows[0]
        self.patch_embed = PatchEmbedding(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, width, config.hiera_background, config.hiera_background))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, width, side, side))
        blocks: list[MultiScaleBlock] = []
        starts = []
        for stage, count in enumerate(config.hiera_blocks):
            starts.append(len(blocks))
            for place in range(count):
                opens = stage > 0 and place == 0
                # The block that opens a stage still attends within the windows of the stage before.
                window = config.hiera_windows[stage - 1 if opens else stage]
                blocks.append(
                    MultiScaleBlock(
                        inputs=config.stage_widths[stage - 1 if opens else stage],
                        outputs=config.stage_widths[stage],
                        heads=config.hiera_heads * 2**stage,
                        window=0 if len(blocks) in config.hiera_global_blocks else window,
                        pools=opens,
                    )
                )
        self.blocks: Any = nn.ModuleList(blocks)
        self.stages = [range(start, end) for start, end in zip(starts, [*starts[1:], len(blocks)], strict=True)]
        self.derived = Derived()

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Patch embedding with its position embedding.

        Args:
            pixels: Normalised frames (N, 3, S, S).

        Returns:
            Tokens (N, S/4, S/4, C).
        """
        tokens = self.patch_embed(pixels)
        size = (tokens.shape[1], tokens.shape[2])
        weights = [self.pos_embed, self.pos_embed_window]
        places = self.derived.get(("positions", *size), weights, lambda: self.positions(*size))
        return tokens + places.to(tokens.dtype)

    def positions(self, height: int, width: int) -> Tensor:
        """Position embedding of the patches: a coarse one, enlarged (bicubic), plus one that repeats in every window.

        Enlarging is linear and separable, so it is two matrix products.

        Args:
            height: Rows of patches.
            width: Columns.

        Returns:
            (H, W, C).
        """
        coarse, window = (part[0].permute(1, 2, 0) for part in (self.pos_embed, self.pos_embed_window))
        with without_autocast(coarse):
            rows, columns = (_enlarging(coarse, axis, length) for axis, length in enumerate((height, width)))
            image = columns @ (rows @ coarse.to(rows).flatten(1)).unflatten(1, coarse.shape[1:])  # (H, W, C)
        side = window.shape[0]
        tiles = image.reshape(height // side, side, width // side, side, -1) + window[:, None]
        return tiles.reshape(height, width, -1)

    def run_stage(self, stage: int, image: Tensor) -> Tensor:
        """Run the blocks of one stage.

        Args:
            stage: 0 to 3.
            image: Tokens (N, H, W, C).

        Returns:
            Tokens (N, H', W', C'); each stage after the first halves the grid and doubles the channels.
        """
        height, width = image.shape[1:3]
        if in_parts(image):
            frames_at_once = max(1, TOKENS_AT_ONCE // (height * width))
            if image.shape[0] > frames_at_once:
                return torch.cat([self.run_stage(stage, frames) for frames in image.split(frames_at_once)])
        in_rows = at = Windows(height, width, max(height, width))
        tokens = image.flatten(1, 2)  # (N, M, C)
        for index in self.stages[stage]:
            block = self.blocks[index]
            if block.window or block.pools:
                wanted = Windows(at.height, at.width, block.window or in_rows.side)
                tokens, at = self._reorder(tokens, at, wanted), wanted
                tokens = block(tokens, self._shapes(at))
            else:  # every token looks at every other, in whatever order
                tokens = block(tokens, [WindowShape(1, at.height, at.width, 0)])
            if block.pools:
                in_rows, at = in_rows.pooled(), at.pooled()
        return self._reorder(tokens, at, in_rows).unflatten(1, (at.height, at.width))

    def _shapes(self, windows: Windows) -> Sequence[WindowShape]:
        return self.derived.get(windows, [], windows.shapes)

    def _reorder(self, tokens: Tensor, at: Windows, wanted: Windows) -> Tensor:
        """Tokens (N, M, C) from the order of some windows into that of others."""
        if at == wanted:
            return tokens

        def compute() -> Tensor:
            order = at.order(tokens.device)
            now_at = torch.empty_like(order)  # for each place of the image
            now_at[order] = torch.arange(len(order), device=order.device)
            return now_at[wanted.order(tokens.device)]

        return tokens.index_select(1, self.derived.get((at, wanted, tokens.device), [], compute))


def pool(tokens: Tensor, shape: WindowShape) -> Tensor:
    """Maximum over 2 x 2 tokens, within windows: (..., M, C) -> (..., M / 4, C)."""
    image = tokens.reshape(-1, shape.height, shape.width, tokens.shape[-1]).permute(0, 3, 1, 2)  # (n, C, h, w)
    pooled = F.max_pool2d(image, POOLING, POOLING).permute(0, 2, 3, 1)
    return pooled.reshape(*tokens.shape[:-2], -1, tokens.shape[-1])


def _enlarging(coarse: Tensor, axis: int, length: int) -> Tensor:
    """The matrix of bicubic interpolation along one axis, (length, what it has now), in float32 at least."""
    now = coarse.shape[axis]
    unit = torch.eye(now, dtype=torch.promote_types(coarse.dtype, torch.float32), device=coarse.device)
    return F.interpolate(unit[None, None], size=(length, now), mode="bicubic")[0, 0]


def _batches(shapes: Sequence[WindowShape]) -> list[list[WindowShape]]:
    """Neighbouring windows together, up to ``TOKENS_AT_ONCE``."""
    batches: list[list[WindowShape]] = [[]]
    room = TOKENS_AT_ONCE
    for shape in shapes:
        left = shape.count
        while left:
            if room < shape.height * shape.width and batches[-1]:
                batches.append([])
                room = TOKENS_AT_ONCE
            some = replace(shape, count=min(left, max(1, room // (shape.height * shape.width))))
            batches[-1].append(some)
            left -= some.count
            room -= some.tokens
    return batches
