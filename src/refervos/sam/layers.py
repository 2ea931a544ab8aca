"""Layers shared by SAM and SAM2, with parameter names as in transformers' files."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from refervos.ops.linear import linear, product
from refervos.ops.precision import KeepsPrecision, without_autocast

NORM_EPSILON = 1e-6
"""Epsilon of the layer norms over image features."""


class Mlp(nn.Module):
    """MLP with ReLU, for the heads of the mask decoder and the projection of object pointers.

    Args:
        width: Input channels.
        inner: Channels between the layers.
        output: Output channels.
        layers: Number of linear layers, at least 2.
    """

    def __init__(self, width: int, inner: int, output: int, layers: int = 3) -> None:
        super().__init__()
        self.proj_in = nn.Linear(width, inner)
        self.proj_out = nn.Linear(inner, output)
        self.layers: Any = nn.ModuleList(nn.Linear(inner, inner) for _ in range(layers - 2))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the MLP: (..., width) -> (..., output)."""
        x = linear(x, self.proj_in, "relu")
        for layer in self.layers:
            x = linear(x, layer, "relu")
        return linear(x, self.proj_out)


class FourierPositions(KeepsPrecision):
    """Random Fourier features of positions (SAM paper, appendix A; Tancik et al. 2020), always in float32.

    Args:
        width: Channels.
        parameter: Store the table as a parameter, as in SAM, instead of a buffer, as in SAM2.
    """

    positional_embedding: Tensor
    in_float32 = ("positional_embedding",)

    def __init__(self, width: int, *, parameter: bool = False) -> None:
        super().__init__()
        table = torch.empty(2, width // 2).normal_()
        if parameter:
            self.positional_embedding = nn.Parameter(table, requires_grad=False)
        else:
            self.register_buffer("positional_embedding", table)

    def forward(self, places: Tensor) -> Tensor:
        """Encode positions.

        Args:
            places: x, y as fractions of the square's side, from 0 to 1 (..., 2).

        Returns:
            (..., width), in the table's type.
        """
        table = self.positional_embedding
        with without_autocast(table):
            angles = 2 * math.pi * ((2 * places.to(table.dtype) - 1) @ table)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def grid(self, side: int) -> Tensor:
        """Encode the centres of the cells of a grid, row-major: (side * side, width)."""
        table = self.positional_embedding
        centres = (torch.arange(side, dtype=table.dtype, device=table.device) + 0.5) / side
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self(torch.stack([x, y], dim=-1).flatten(0, 1))


class MaskEmbedding(nn.Module):
    """Embedding of mask prompts, downsampled by 4 (SAM paper, appendix A, "prompt encoder").

    Args:
        width: Output channels C.
        inner: Channels before the last convolution.
    """

    def __init__(self, width: int, inner: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, inner // 4, kernel_size=2, stride=2)
        self.conv2 = nn.Conv2d(inner // 4, inner, kernel_size=2, stride=2)
        self.conv3 = nn.Conv2d(inner, width, kernel_size=1)
        self.layer_norm1 = nn.LayerNorm(inner // 4, NORM_EPSILON)
        self.layer_norm2 = nn.LayerNorm(inner, NORM_EPSILON)

    def forward(self, mask_logits: Tensor) -> Tensor:
        """Embed masks: (N, 1, 4g, 4g) -> (N, C, g, g)."""
        x = channels_last(self.conv1(mask_logits))  # (N, 2g, 2g, inner/4)
        x = channels_first(torch.nn.functional.gelu(self.layer_norm1(x)))
        x = channels_last(self.conv2(x))  # (N, g, g, inner)
        x = torch.nn.functional.gelu(self.layer_norm2(x))
        dense: Tensor = self.conv3(channels_first(x))
        return dense


class PromptEncoder(nn.Module):
    """Encoder of clicks, box corners and masks into prompt tokens and dense embeddings.

    Args:
        width: Channels C.
        image_size: Side S of the square.
        positions: Position encoding, shared with the image.
        stacked: Store the embeddings of the four kinds of points in one table, as in SAM2's files, instead of four.
    """

    def __init__(self, width: int, image_size: int, positions: FourierPositions, *, stacked: bool) -> None:
        super().__init__()
        self.image_size = image_size
        self.shared_embedding = positions
        self.mask_embed = MaskEmbedding(width)
        self.no_mask_embed = nn.Embedding(1, width)
        self.point_embed: nn.Embedding | nn.ModuleList = (
            nn.Embedding(4, width) if stacked else nn.ModuleList(nn.Embedding(1, width) for _ in range(4))
        )
        self.not_a_point_embed = nn.Embedding(1, width)

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Encode points.

        Args:
            points: Pixel positions x, y in the square (N, P, 2).
            labels: 1 on the object, 0 off it, 2 and 3 the corners of a box, -1 padding; (N, P).

        Returns:
            Tokens (N, P, C).
        """
        kinds = torch.cat(list(self.point_embed.parameters()))  # (4, C)
        places = self.shared_embedding((points + 0.5) / self.image_size).to(kinds.dtype)  # (N, P, C)
        known = places + kinds[labels.clamp(min=0)]
        return torch.where(labels.unsqueeze(-1) < 0, self.not_a_point_embed.weight, known)

    def padding(self, count: int) -> Tensor:
        """Return the "not a point" token, ``count`` times (1, count, C)."""
        return self.not_a_point_embed.weight.expand(1, count, -1)

    def no_mask(self) -> Tensor:
        """Return the dense embedding for the absence of a mask (1, C, 1, 1)."""
        return self.no_mask_embed.weight.reshape(1, -1, 1, 1)


def channels_last(image: Tensor) -> Tensor:
    """Permute (N, C, H, W) to (N, H, W, C), a view."""
    return image.permute(0, 2, 3, 1)


def channels_first(image: Tensor) -> Tensor:
    """Permute (N, H, W, C) to (N, C, H, W), a view."""
    return image.permute(0, 3, 1, 2)


def pointwise(image: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Apply a 1 x 1 convolution as a linear layer: (N, H, W, C) -> (N, H, W, D)."""
    return product(image, convolution.weight.flatten(1), convolution.bias)


def draw_weights(module: nn.Module) -> None:
    """Initialise a layer as in the published models: normal weights of standard deviation 0.02, zero biases.

    Args:
        module: Changed in place if it is a linear layer, a convolution or an embedding; for ``nn.Module.apply``.
    """
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
