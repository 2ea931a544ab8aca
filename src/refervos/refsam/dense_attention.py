"""Dense Attention from pixels to words, and Hierarchical Dense Attention at two levels of the encoder.

Shapes: V frames, N sentences (V divides N, the sentences about a frame are adjacent), P rows of a sentence,
C = SAM's hidden width, D = the image encoder's, g = grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.linear import product
from refervos.refsam.config import Fusion
from refervos.sam.layers import pointwise


def attention_over_words(visual: Tensor, rows: Tensor, keep: Tensor) -> Tensor:
    """Compute attention weights of pixels over words: a softmax of scaled dot products, without projections.

    All vectors have length 1, so that no weight is more than exp(1/8) = 1.133 times another (with C = 256).

    Args:
        visual: Pixels (N, g*g, C).
        rows: Words (N, P, C).
        keep: bool (N, P), False for padding.

    Returns:
        Weights (N, g*g, P) that sum to 1 for each pixel.
    """
    scores = visual @ rows.transpose(1, 2) / math.sqrt(visual.shape[-1])
    return scores.masked_fill(~keep.unsqueeze(1), -math.inf).softmax(dim=-1)


class DenseAttention(nn.Module):
    """Dense Attention: a 1 x 1 convolution (2C -> C) over each pixel and its attention-weighted mean of the words.

    Args:
        width: Channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * width, width, kernel_size=1)

    def forward(self, visual: Tensor, rows: Tensor, keep: Tensor) -> Tensor:
        """Compute dense embeddings.

        The convolution is linear: its image half is computed once per frame, its language half once per word.

        Args:
            visual: Image features of length 1 at each pixel (V, C, g, g).
            rows: Word vectors of length 1 (N, P, C).
            keep: bool (N, P), False for padding.

        Returns:
            Dense embeddings (N, C, g, g).
        """
        width = visual.shape[1]
        pixels = visual.flatten(2).transpose(1, 2)  # (V, g*g, C)
        of_image, of_language = self.conv.weight.flatten(1).split(width, dim=1)  # (C, C) each
        image = product(pixels, of_image.contiguous(), self.conv.bias)
        sentences = len(rows) // len(visual)
        weights = attention_over_words(pixels.repeat_interleave(sentences, dim=0), rows, keep)  # (N, g*g, P)
        dense = torch.baddbmm(image.repeat_interleave(sentences, dim=0), weights, rows @ of_language.t())
        return dense.transpose(1, 2).unflatten(2, visual.shape[2:])


class Laterals(nn.Module):
    """Merging of the image encoder's intermediate maps into one; reconstructed, see ``docs/refsam.md``.

    Args:
        count: Number of maps.
        vision_width: Channels D.
        width: Channels C.
        norm: Normalise every pixel of the result to length 1.
    """

    def __init__(self, count: int, vision_width: int, width: int, *, norm: bool) -> None:
        super().__init__()
        self.levels: Any = nn.ModuleList(nn.Conv2d(vision_width, width, kernel_size=1) for _ in range(count))
        self.smooth = nn.Conv2d(width, width, kernel_size=3, padding=1)
        self.norm = norm

    def forward(self, between: Sequence[Tensor]) -> Tensor:
        """Merge maps (V, g, g, D), channels last, into one (V, C, g, g)."""
        levels = [pointwise(tokens, lateral) for lateral, tokens in zip(self.levels, between, strict=True)]
        merged: Tensor = self.smooth(torch.stack(levels).sum(0).permute(0, 3, 1, 2))
        return F.normalize(merged, dim=1) if self.norm else merged


class HierarchicalDenseAttention(nn.Module):
    """Dense Attention on the last and on the intermediate features, merged.

    Args:
        width: Channels C.
        fusion: How they are merged, see ``RefSamConfig``.
    """

    def __init__(self, width: int, fusion: Fusion) -> None:
        super().__init__()
        self.last = DenseAttention(width)
        self.between = DenseAttention(width)
        self.weight = nn.Parameter(torch.tensor(0.5)) if fusion == "weighted" else None
        self.join = nn.Conv2d(2 * width, width, kernel_size=1) if fusion == "concatenated" else None

    def forward(self, visual: Tensor, merged: Tensor, rows: Tensor, keep: Tensor) -> Tensor:
        """Compute dense embeddings.

        Args:
            visual: Image features of length 1 at each pixel (V, C, g, g).
            merged: Output of ``Laterals`` (V, C, g, g).
            rows: Word vectors (N, P, C).
            keep: bool (N, P).

        Returns:
            Dense embeddings (N, C, g, g).
        """
        last, between = self.last(visual, rows, keep), self.between(merged, rows, keep)
        if self.weight is not None:
            return self.weight * last + (1 - self.weight) * between
        if self.join is not None:
            joined: Tensor = self.join(torch.cat([last, between], dim=1))
            return joined
        return last + between
