"""SAM's image encoder, a ViT with optional adapters inside its blocks.

Shapes: N frames or windows, g = grid, D channels.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.derived import Derived
from refervos.ops.linear import linear
from refervos.sam.config import SamConfig
from refervos.sam.layers import NORM_EPSILON, channels_first, channels_last, pointwise

BIAS_BYTES = 128 * 2**20
"""Memory budget for position biases at inference in bytes; one global block at the published size would need 800 MB."""


class BlockAdapters(Protocol):
    """Adapters of one block, see ``VitBlock``."""

    def after_attention(self, attended: Tensor) -> Tensor:
        """Replace the output of the attention, same shape."""
        ...

    def beside_feedforward(self, normed: Tensor) -> Tensor:
        """Compute a term to add to the feed-forward network's output, from the same input."""
        ...


class PatchEmbedding(nn.Module):
    """Embedding of non-overlapping patches.

    Args:
        width: Channels D.
        patch: Side of a patch in pixels.
    """

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """Embed the patches: (N, 3, S, S) -> (N, g, g, D)."""
        return channels_last(self.projection(pixels.to(self.projection.weight.dtype)))


class FeedForward(nn.Module):
    """Two linear layers with a GELU between them, four times as wide inside.

    Args:
        width: Channels D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, 4 * width)
        self.lin2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network: (..., D) -> (..., D)."""
        return linear(linear(x, self.lin1, "gelu"), self.lin2)


class RelativeAttention(nn.Module):
    """Attention with decomposed relative positions (Li et al. 2022, arXiv 2112.01526).

    Args:
        width: Channels D.
        heads: Attention heads.
        side: Side of the input maps.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h, self.rel_pos_w = (nn.Parameter(torch.zeros(2 * side - 1, width // heads)) for _ in range(2))
        self.derived = Derived()

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend within windows or whole maps: (N, h, w, D) -> same shape."""
        count, height, width, _ = tokens.shape
        packed = linear(tokens, self.qkv).reshape(count, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = packed.flatten(1, 2)  # (N*heads, h*w, d) each
        step = len(query)
        if not torch.is_grad_enabled():
            step = max(1, BIAS_BYTES // ((height * width) ** 2 * query.element_size()))
        parts = []
        for start in range(0, len(query), step):
            rows = slice(start, start + step)
            bias = self._bias(query[rows], height, width)  # (n, h*w, h*w)
            # As heads of a single image, because torch's CPU kernel needs four axes.
            q, k, v = (tensor[None, rows] for tensor in (query, key, value))  # (1, n, h*w, d)
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])[0])  # (n, h*w, d)
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return linear(attended.unflatten(0, (count, self.heads)).transpose(1, 2).reshape(tokens.shape), self.proj)

    def _bias(self, query: Tensor, height: int, width: int) -> Tensor:
        """Compute the position bias of the scores of queries (n, h*w, d): (n, h*w, h*w)."""
        maps = query.unflatten(1, (height, width))  # (n, h, w, d)
        down = self.derived.get(("down", height), [self.rel_pos_h], lambda: relative_embeddings(self.rel_pos_h, height))
        across = self.derived.get(
            ("across", width), [self.rel_pos_w], lambda: relative_embeddings(self.rel_pos_w, width)
        )
        rows = torch.einsum("nhwd,hkd->nhwk", maps, down)  # (n, h, w, h)
        columns = torch.einsum("nhwd,wkd->nhwk", maps, across)  # (n, h, w, w)
        return (rows.unsqueeze(-1) + columns.unsqueeze(-2)).flatten(3).flatten(1, 2)


def relative_embeddings(table: Tensor, side: int) -> Tensor:
    """Look up the embedding of the relative position of every pair of positions along one axis.

    Args:
        table: Embeddings of relative positions from -(n - 1) to n - 1 (2n - 1, d), interpolated if ``side`` is not n.
        side: Number of positions.

    Returns:
        (side, side, d): for each query position, the embedding of each key position.
    """
    distances = 2 * side - 1
    if len(table) != distances:
        table = F.interpolate(table.t()[None], size=distances, mode="linear")[0].t()
    places = torch.arange(side, device=table.device)
    return table[places[:, None] - places[None, :] + side - 1]


class VitBlock(nn.Module):
    """ViT block: attention within windows or over the whole map, then a feed-forward network.

    Args:
        config: The model's shape.
        window: Side of the windows, 0 for the whole map.
    """

    def __init__(self, config: SamConfig, window: int) -> None:
        super().__init__()
        self.window = window
        self.layer_norm1 = nn.LayerNorm(config.vit_width, NORM_EPSILON)
        self.attn = RelativeAttention(config.vit_width, config.vit_heads, window or config.grid)
        self.layer_norm2 = nn.LayerNorm(config.vit_width, NORM_EPSILON)
        self.mlp = FeedForward(config.vit_width)

    def forward(self, tokens: Tensor, adapters: BlockAdapters | None = None) -> Tensor:
        """Run the block.

        Args:
            tokens: (N, g, g, D).
            adapters: Adapters of the block; they act on single tokens, so they can run after windows are merged.

        Returns:
            Same shape.
        """
        attended = self._attend(self.layer_norm1(tokens))
        if adapters is not None:
            attended = adapters.after_attention(attended)
        tokens = tokens + attended
        normed = self.layer_norm2(tokens)
        output = self.mlp(normed)
        if adapters is not None:
            output = output + adapters.beside_feedforward(normed)
        changed: Tensor = tokens + output
        return changed

    def _attend(self, tokens: Tensor) -> Tensor:
        if not self.window:
            whole: Tensor = self.attn(tokens)
            return whole
        count, height, width, _ = tokens.shape
        side = self.window
        down, across = -height % side, -width % side
        padded = F.pad(tokens, (0, 0, 0, across, 0, down))  # zeros, which take part as keys
        rows, columns = padded.shape[1] // side, padded.shape[2] // side
        windows = padded.reshape(count, rows, side, columns, side, -1).transpose(2, 3).flatten(0, 2)
        attended = self.attn(windows).reshape(count, rows, columns, side, side, -1)
        return attended.transpose(2, 3).reshape(padded.shape)[:, :height, :width]


class Neck(nn.Module):
    """Neck from the ViT's channels to the hidden width.

    Args:
        inputs: Channels D.
        outputs: Channels C.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)
        self.layer_norm1 = nn.LayerNorm(outputs, NORM_EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.layer_norm2 = nn.LayerNorm(outputs, NORM_EPSILON)

    def forward(self, tokens: Tensor) -> Tensor:
        """Project the features: (N, g, g, D) -> (N, C, g, g)."""
        x = self.layer_norm1(pointwise(tokens, self.conv1))
        return channels_first(self.layer_norm2(channels_last(self.conv2(channels_first(x)))))


class ImageEncoder(nn.Module):
    """Patch embedding, blocks and neck, which ``Sam.encode`` runs.

    Args:
        config: The model's shape.
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(config.vit_width, config.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid, config.grid, config.vit_width))
        self.layers = nn.ModuleList(
            VitBlock(config, 0 if index in config.vit_global_blocks else config.vit_window)
            for index in range(config.vit_layers)
        )
        self.neck = Neck(config.vit_width, config.hidden)
