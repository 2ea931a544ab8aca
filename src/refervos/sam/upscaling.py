"""Upscaling of the two-way transformer's image to mask logits at four times its resolution (SAM paper, appendix A)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.derived import Derived
from refervos.ops.linear import column_major, product
from refervos.ops.precision import without_autocast


def upscale(image: Tensor, convolution: nn.ConvTranspose2d, derived: Derived) -> Tensor:
    """Apply a 2 x 2 transposed convolution of stride 2 as one matrix product.

    Args:
        image: (N, H, W, C).
        convolution: C -> D.
        derived: Cache for the rearranged weights.

    Returns:
        (N, 2H, 2W, D).
    """

    def rearrange() -> tuple[Tensor, Tensor]:
        assert convolution.bias is not None
        weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        return column_major(weight), convolution.bias.repeat(4)

    weights = [convolution.weight, *([] if convolution.bias is None else [convolution.bias])]
    weight, bias = derived.get(("upscale", id(convolution)), weights, rearrange)
    count, height, width = image.shape[:3]
    four = product(image, weight, bias).reshape(count, height, width, 2, 2, -1)
    return four.transpose(2, 3).reshape(count, 2 * height, 2 * width, -1)


class UpscalingParts(Protocol):
    """Parts of a mask decoder that compute masks from the transformer's output, with published parameter names."""

    upscale_conv1: nn.ConvTranspose2d
    upscale_layer_norm: nn.LayerNorm
    upscale_conv2: nn.ConvTranspose2d
    output_hypernetworks_mlps: nn.ModuleList
    derived: Derived


def predict_masks(
    decoder: UpscalingParts, image: Tensor, tokens: Tensor, wanted: range, finer: Sequence[Tensor] = ()
) -> Tensor:
    """Upscale the image twice and multiply each pixel with the mask tokens.

    The products are in float32 or wider, even in mixed precision, because they are compared with a threshold.

    Args:
        decoder: The weights.
        image: (N, g, g, C).
        tokens: All K mask tokens (N, K, C).
        wanted: Indices of the M tokens whose masks to compute.
        finer: High-resolution features that SAM2 adds at each step (N, 2g, 2g, C/4) and (N, 4g, 4g, C/8), or none.

    Returns:
        Mask logits (N, M, 4g, 4g).
    """
    image = upscale(image, decoder.upscale_conv1, decoder.derived)
    image = F.gelu(decoder.upscale_layer_norm(image + finer[0] if finer else image))
    image = upscale(image, decoder.upscale_conv2, decoder.derived)
    features = F.gelu(image + finer[1] if finer else image)  # (N, 4g, 4g, C/8)
    weights = torch.stack([decoder.output_hypernetworks_mlps[k](tokens[:, k]) for k in wanted], dim=1)  # (N, M, C/8)
    exact = torch.promote_types(weights.dtype, torch.float32)
    with without_autocast(weights):
        logits = weights.to(exact) @ features.flatten(1, 2).to(exact).transpose(1, 2)
    return logits.unflatten(2, features.shape[1:3])
