"""From the image that the two-way transformer leaves to mask logits, four times as fine (SAM paper, appendix A)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.derived import Derived
from refervos.ops.linear import laid_out, product
from refervos.ops.precision import without_autocast


def upscale(image: Tensor, convolution: nn.ConvTranspose2d, derived: Derived) -> Tensor:
    """Apply a transposed convolution of 2 x 2 with stride 2: each place becomes four, so it is one matrix product.

    Args:
        image: (N, H, W, C).
        convolution: C -> D.
        derived: Keeps the rearranged weights.

    Returns:
        (N, 2H, 2W, D).
    """

    def rearrange() -> tuple[Tensor, Tensor]:
        assert convolution.bias is not None
        weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()
        return laid_out(weight), convolution.bias.repeat(4)

    weights = [convolution.weight, *([] if convolution.bias is None else [convolution.bias])]
    weight, bias = derived.get(("upscale", id(convolution)), weights, rearrange)
    count, height, width = image.shape[:3]
    four = product(image, weight, bias).reshape(count, height, width, 2, 2, -1)
    return four.transpose(2, 3).reshape(count, 2 * height, 2 * width, -1)


def masks_of(features: Tensor, weights: Tensor) -> Tensor:
    """Mask logits as products of each pixel's features with each mask's weights, in float32 at least.

    What is compared with a threshold is not rounded, whatever is computed in.

    Args:
        features: (N, H, W, D).
        weights: (N, M, D).

    Returns:
        (N, M, H, W).
    """
    exact = torch.promote_types(weights.dtype, torch.float32)
    with without_autocast(weights):
        logits = weights.to(exact) @ features.flatten(1, 2).to(exact).transpose(1, 2)
    return logits.unflatten(2, features.shape[1:3])


def upscaled(
    image: Tensor,
    first: nn.ConvTranspose2d,
    norm: nn.LayerNorm,
    second: nn.ConvTranspose2d,
    derived: Derived,
    finer: Sequence[Tensor] = (),
) -> Tensor:
    """Upscale twice, as SAM's decoder does; SAM2's adds the finer features of the image encoder at each step.

    Args:
        image: (N, g, g, C).
        first: C -> C/4.
        norm: Layer norm after it.
        second: C/4 -> C/8.
        derived: Keeps the rearranged weights.
        finer: Features (N, 2g, 2g, C/4) and (N, 4g, 4g, C/8), or nothing.

    Returns:
        (N, 4g, 4g, C/8).
    """
    image = upscale(image, first, derived)
    image = F.gelu(norm(image + finer[0] if finer else image))
    image = upscale(image, second, derived)
    return F.gelu(image + finer[1] if finer else image)
