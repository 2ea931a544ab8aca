"""Hiera, SAM2's image encoder (Ryali et al. 2023, arXiv 2306.00989), on transformers' weights.

Tokens are kept in the order of their attention windows, so that they move only where the window size changes, and
what is no token is never computed: transformers pads the image to whole windows, here the padding is keys alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.derived import Derived
from refervos.linear import linear
from refervos.precision import without_autocast
from refervos.sam2.attention import attend

TOKENS_AT_ONCE = 4096
"""On a CPU so many tokens go through a block together: their hidden layer stays near the cache and costs no page
faults."""


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
        """Where in the image, row by row, the tokens of the windows are: int64 (height * width,)."""
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


def embed_patches(backbone: Any, pixels: Tensor, derived: Derived) -> Tensor:
    """Patch embedding with its position embedding.

    Args:
        backbone: A ``Sam2HieraDetModel``.
        pixels: Normalised frames (N, 3, S, S).
        derived: Keeps the position embedding of a size.

    Returns:
        Tokens (N, S/4, S/4, C).
    """
    projection = backbone.patch_embed.projection
    pixels = pixels.to(projection.weight.dtype).contiguous(memory_format=torch.channels_last)
    tokens = projection(pixels).permute(0, 2, 3, 1)  # (N, H, W, C)
    size = (tokens.shape[1], tokens.shape[2])
    weights = [backbone.pos_embed, backbone.pos_embed_window]
    places = derived.get(("patch positions", *size), weights, lambda: positions(backbone, *size))
    return tokens + places.to(tokens.dtype)


def positions(backbone: Any, height: int, width: int) -> Tensor:
    """Position embedding of the patches: a coarse one, enlarged (bicubic), plus one that repeats in every window.

    Enlarging is linear and separable, so it is two matrix products.

    Args:
        backbone: A ``Sam2HieraDetModel``.
        height: Rows of patches.
        width: Columns.

    Returns:
        (H, W, C).
    """
    coarse, window = (part[0].permute(1, 2, 0) for part in (backbone.pos_embed, backbone.pos_embed_window))
    with without_autocast(coarse):
        rows, columns = (_enlarging(coarse, axis, length) for axis, length in enumerate((height, width)))
        image = columns @ (rows @ coarse.to(rows).flatten(1)).unflatten(1, coarse.shape[1:])  # (H, W, C)
    side = window.shape[0]
    tiles = image.reshape(height // side, side, width // side, side, -1) + window[:, None]
    return tiles.reshape(height, width, -1)


def _enlarging(coarse: Tensor, axis: int, length: int) -> Tensor:
    """The matrix of bicubic interpolation along one axis, (length, what it has now), in float32 at least."""
    now = coarse.shape[axis]
    unit = torch.eye(now, dtype=torch.promote_types(coarse.dtype, torch.float32), device=coarse.device)
    return F.interpolate(unit[None, None], size=(length, now), mode="bicubic")[0, 0]


def run_stage(blocks: Sequence[Any], image: Tensor, derived: Derived) -> Tensor:
    """Run the blocks of one stage.

    Args:
        blocks: ``Sam2MultiScaleBlock`` modules.
        image: Tokens (N, H, W, C).
        derived: Keeps the orders of windows.

    Returns:
        Tokens (N, H', W', C').
    """
    height, width = image.shape[1:3]
    frames_at_once = max(1, TOKENS_AT_ONCE // (height * width)) if _frugal(image) else len(image)
    if len(image) > frames_at_once:
        return torch.cat([run_stage(blocks, frames, derived) for frames in image.split(frames_at_once)])
    in_rows = at = Windows(height, width, max(height, width))
    tokens = image.flatten(1, 2)  # (N, M, C)
    for block in blocks:
        if block.window_size or block.query_stride:
            wanted = Windows(at.height, at.width, block.window_size or in_rows.side)
            tokens, at = _reorder(tokens, at, wanted, derived), wanted
            tokens = _run_block(block, tokens, at.shapes())
        else:  # every token looks at every other, in whatever order
            tokens = _run_block(block, tokens, [WindowShape(1, at.height, at.width, 0)])
        if block.query_stride:
            in_rows, at = in_rows.pooled(), at.pooled()
    return _reorder(tokens, at, in_rows, derived).unflatten(1, (at.height, at.width))


def _frugal(tokens: Tensor) -> bool:
    """Whether to go through the tokens part by part: a GPU wants them all at once, and so do gradients."""
    return tokens.device.type == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


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


def _reorder(tokens: Tensor, at: Windows, wanted: Windows, derived: Derived) -> Tensor:
    """Tokens (N, M, C) from the order of some windows into that of others."""
    if at == wanted:
        return tokens

    def compute() -> Tensor:
        order = at.order(tokens.device)
        now_at = torch.empty_like(order)  # for each place of the image
        now_at[order] = torch.arange(len(order), device=order.device)
        return now_at[wanted.order(tokens.device)]

    return tokens.index_select(1, derived.get(("order", at, wanted, tokens.device), [], compute))


def _run_block(block: Any, tokens: Tensor, shapes: Sequence[WindowShape]) -> Tensor:
    """One transformer block: attention within windows, then a feed-forward network.

    Args:
        block: A ``Sam2MultiScaleBlock``.
        tokens: (N, M, C) in the order of the windows.
        shapes: The windows.

    Returns:
        (N, M', C'), where M' is M / 4 in a block that pools.
    """
    batches = _batches(shapes) if _frugal(tokens) else [shapes]
    if len(batches) > 1:
        sizes = [sum(shape.tokens for shape in batch) for batch in batches]
        parts = zip(tokens.split(sizes, dim=1), batches, strict=True)
        return torch.cat([_run_block(block, *part) for part in parts], dim=1)
    sizes = [shape.tokens for shape in shapes]
    normed = block.layer_norm1(tokens)
    projected = linear(normed, block.attn.qkv)  # (N, M, 3 * C')
    attended = torch.cat(
        [_attend(block, *part) for part in zip(projected.split(sizes, dim=1), shapes, strict=True)], dim=1
    )  # (N, M', C')
    if block.dim != block.dim_out:
        shortcut = linear(normed, block.proj)  # (N, M, C')
        tokens = torch.cat(
            [_pool(block, *part) for part in zip(shortcut.split(sizes, dim=1), shapes, strict=True)], dim=1
        )  # (N, M', C')
    tokens = tokens + linear(attended, block.attn.proj)
    hidden = linear(block.layer_norm2(tokens), block.mlp.proj_in, "gelu")
    return tokens + linear(hidden, block.mlp.proj_out)


def _attend(block: Any, projected: Tensor, shape: WindowShape) -> Tensor:
    """Attention within windows of one shape.

    Args:
        block: A ``Sam2MultiScaleBlock``.
        projected: Queries, keys and values (N, M, 3 * C).
        shape: The windows, M tokens.

    Returns:
        (N, M', C).
    """
    heads = block.attn.num_attention_heads
    windows = projected.reshape(-1, shape.height * shape.width, 3, heads, projected.shape[-1] // (3 * heads))
    query, key, value = windows.unbind(2)  # (n, h*w, heads, d) each
    if shape.padding:
        bias = block.attn.qkv.bias.to(key.dtype).reshape(3, 1, heads, -1).expand(-1, shape.padding, -1, -1)
        key, value = (
            torch.cat([own, beyond.expand(len(own), -1, -1, -1)], dim=1)
            for own, beyond in ((key, bias[1]), (value, bias[2]))
        )
    if block.query_stride:
        query = _pool(block, query.flatten(2), shape).unflatten(-1, (heads, -1))
    attended = attend(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))  # (n, heads, ., d)
    return attended.transpose(1, 2).reshape(len(projected), -1, projected.shape[-1] // 3)


def _pool(block: Any, tokens: Tensor, shape: WindowShape) -> Tensor:
    """Maximum over 2 x 2 tokens, within windows: (..., M, C) -> (..., M / 4, C)."""
    if not block.query_stride:
        return tokens
    image = tokens.reshape(-1, shape.height, shape.width, tokens.shape[-1]).permute(0, 3, 1, 2)  # (n, C, h, w)
    pooled = F.max_pool2d(image, block.query_stride, block.query_stride).permute(0, 2, 3, 1)
    return pooled.reshape(*tokens.shape[:-2], -1, tokens.shape[-1])
