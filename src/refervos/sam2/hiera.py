"""Hiera, SAM2's image encoder (Ryali et al. 2023, arXiv 2306.00989).

Tokens are kept in the order of their attention windows, so that they are moved only where the window size changes.
Where the image does not fill whole windows, padding takes part as keys only; its outputs are never computed.

Shapes: N frames, H x W tokens a frame, M tokens in total, C channels.
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
from refervos.ops.precision import KeepsPrecision, without_autocast
from refervos.ops.splitting import should_split
from refervos.sam.layers import NORM_EPSILON
from refervos.sam2.config import Sam2Config

TOKENS_AT_ONCE = 4096
"""Tokens that go through a block at once on a CPU: few enough that their hidden layer fits the cache and causes no page
faults."""

POOLING = 2
"""Side of the pooling at the start of every stage but the first."""


@dataclass(frozen=True)
class WindowShape:
    """Group of windows of one shape.

    Attributes:
        count: Number of windows in an image.
        height: Rows of tokens in each window.
        width: Columns of tokens in each window.
        padding: Keys outside the image that each window also attends to: zeros before the projection.
    """

    count: int
    height: int
    width: int
    padding: int

    @property
    def tokens(self) -> int:
        """Total number of tokens."""
        return self.count * self.height * self.width


@dataclass(frozen=True)
class Windows:
    """Partition of an image of tokens into square windows, which may be partial at the right and lower edge.

    Attributes:
        height: Rows of the image.
        width: Columns of the image.
        side: Side of a full window.
    """

    height: int
    width: int
    side: int

    def shapes(self) -> list[WindowShape]:
        """Group the windows by shape: full, partial at the right, partial at the bottom, partial at both."""
        return [
            WindowShape(rows * columns, high, wide, self.side**2 - high * wide)
            for _, rows, high in _spans(self.height, self.side)
            for _, columns, wide in _spans(self.width, self.side)
        ]

    def order(self, device: torch.device) -> Tensor:
        """Return the row-major image index of each token in window order, int64 (height * width,)."""
        places = torch.arange(self.height * self.width, device=device).reshape(self.height, self.width)
        parts = [
            places[top : top + rows * high, left : left + columns * wide]
            .reshape(rows, high, columns, wide)
            .transpose(1, 2)
            .flatten()
            for top, rows, high in _spans(self.height, self.side)
            for left, columns, wide in _spans(self.width, self.side)
        ]
        return torch.cat(parts)

    def pooled(self) -> Windows:
        """Return the partition after 2 x 2 pooling, which keeps the order of the tokens."""
        return Windows(self.height // 2, self.width // 2, self.side // 2)


def _spans(length: int, side: int) -> list[tuple[int, int, int]]:
    """Return start, count and length of the full and of the partial windows along one axis."""
    whole = length // side
    spans = [(0, whole, side), (whole * side, 1, length - whole * side)]
    return [span for span in spans if span[1] and span[2]]


class PatchEmbedding(nn.Module):
    """Embedding of overlapping patches of 7 x 7 pixels at stride 4.

    Args:
        width: Channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, kernel_size=7, stride=4, padding=3)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed the patches: (N, 3, S, S) -> (N, S/4, S/4, C)."""
        pixels = pixels.to(self.projection.weight.dtype).contiguous(memory_format=torch.channels_last)
        return self.projection(pixels).permute(0, 2, 3, 1)


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside.

    Args:
        width: Channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, 4 * width)
        self.proj_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network: (..., C) -> (..., C)."""
        return linear(linear(x, self.proj_in, "gelu"), self.proj_out)


class MultiScaleAttention(nn.Module):
    """Attention within windows; with pooling, the queries are the maxima over 2 x 2 tokens.

    Args:
        inputs: Channels in.
        outputs: Channels out.
        heads: Attention heads.
        pools: Whether to halve the resolution.
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
        """Attend within windows of one shape: queries, keys and values (N, M, 3 * C) -> (N, M', C)."""
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
        pools: Whether to halve the resolution.
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
        """Run the block, on a CPU a few windows at a time.

        Args:
            tokens: (N, M, inputs) in the order of the windows.
            shapes: The windows.

        Returns:
            (N, M', outputs), where M' is M / 4 in a block that pools.
        """
        batches = _batches(shapes) if should_split(tokens) and tokens.shape[1] > TOKENS_AT_ONCE else [shapes]
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
    """Image encoder in four stages, without the feature pyramid.

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
        """Embed patches and add the position embedding.

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
        """Compute the patches' position embedding: a coarse one, resized (bicubic), plus one repeated in every window.

        Resizing is linear and separable, so it is done as two matrix products.

        Args:
            height: Rows of patches.
            width: Columns of patches.

        Returns:
            (H, W, C).
        """
        coarse, window = (part[0].permute(1, 2, 0) for part in (self.pos_embed, self.pos_embed_window))
        with without_autocast(coarse):
            rows, columns = (_interpolation_matrix(coarse, axis, length) for axis, length in enumerate((height, width)))
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
        if should_split(image):
            frames_at_once = max(1, TOKENS_AT_ONCE // (height * width))
            if image.shape[0] > frames_at_once:
                return torch.cat([self.run_stage(stage, frames) for frames in image.split(frames_at_once)])
        row_major = current = Windows(height, width, max(height, width))
        tokens = image.flatten(1, 2)  # (N, M, C)
        for index in self.stages[stage]:
            block = self.blocks[index]
            if block.window or block.pools:
                windows = Windows(current.height, current.width, block.window or row_major.side)
                tokens, current = self._reorder(tokens, current, windows), windows
                tokens = block(tokens, self._shapes(current))
            else:  # every token attends to every other, so their order does not matter
                tokens = block(tokens, [WindowShape(1, current.height, current.width, 0)])
            if block.pools:
                row_major, current = row_major.pooled(), current.pooled()
        return self._reorder(tokens, current, row_major).unflatten(1, (current.height, current.width))

    def _shapes(self, windows: Windows) -> Sequence[WindowShape]:
        return self.derived.get(windows, [], windows.shapes)

    def _reorder(self, tokens: Tensor, current: Windows, target: Windows) -> Tensor:
        """Move tokens (N, M, C) from the order of one partition into that of another."""
        if current == target:
            return tokens

        def compute() -> Tensor:
            order = current.order(tokens.device)
            inverse = torch.empty_like(order)  # for each image index, its position in the current order
            inverse[order] = torch.arange(len(order), device=order.device)
            return inverse[target.order(tokens.device)]

        return tokens.index_select(1, self.derived.get((current, target, tokens.device), [], compute))


def pool(tokens: Tensor, shape: WindowShape) -> Tensor:
    """Take the maximum over 2 x 2 tokens within windows: (..., M, C) -> (..., M / 4, C)."""
    image = tokens.reshape(-1, shape.height, shape.width, tokens.shape[-1]).permute(0, 3, 1, 2)  # (n, C, h, w)
    pooled = F.max_pool2d(image, POOLING, POOLING).permute(0, 2, 3, 1)
    return pooled.reshape(*tokens.shape[:-2], -1, tokens.shape[-1])


def _interpolation_matrix(coarse: Tensor, axis: int, length: int) -> Tensor:
    """Return the matrix of bicubic interpolation along one axis, (length, old length), in float32 or wider."""
    old = coarse.shape[axis]
    unit = torch.eye(old, dtype=torch.promote_types(coarse.dtype, torch.float32), device=coarse.device)
    return F.interpolate(unit[None, None], size=(length, old), mode="bicubic")[0, 0]


def _batches(shapes: Sequence[WindowShape]) -> list[list[WindowShape]]:
    """Split windows into batches of at most ``TOKENS_AT_ONCE`` tokens, in order."""
    batches: list[list[WindowShape]] = [[]]
    room = TOKENS_AT_ONCE
    for shape in shapes:
        left = shape.count
        while left:
            if room < shape.height * shape.width and batches[-1]:
                batches.append([])
                room = TOKENS_AT_ONCE
            part = replace(shape, count=min(left, max(1, room // (shape.height * shape.width))))
            batches[-1].append(part)
            left -= part.count
            room -= part.tokens
    return batches
