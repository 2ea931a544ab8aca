"""SAM2's image encoder: Hiera and its feature pyramid (SAM2 paper, section 4 and appendix C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from refervos.ops.derived import Derived
from refervos.ops.linear import product
from refervos.sam2.config import Sam2Config
from refervos.sam2.hiera import Hiera


class FeaturePyramid(nn.Module):
    """Feature pyramid: a 1 x 1 convolution per Hiera stage; only the two coarsest levels are summed.

    Args:
        config: The tracker's shape.
    """

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        # From the coarsest stage to the finest, as in the published files.
        widths = config.stage_widths[::-1]
        self.convs: Any = nn.ModuleList(nn.Conv2d(width, config.hidden, kernel_size=1) for width in widths)
        self.derived = Derived()

    def lateral(self, stage: int, image: Tensor, *after: nn.Conv2d) -> Tensor:
        """Apply a stage's convolution and those after it, folded into one.

        Args:
            stage: 0 to 3, from the finest to the coarsest.
            image: Output of the stage (N, H, W, C).
            after: 1 x 1 convolutions that follow.

        Returns:
            (N, H, W, D).
        """
        convolutions: Sequence[nn.Conv2d] = [self.convs[3 - stage], *after]
        weights = [parameter for each in convolutions for parameter in each.parameters()]

        def multiply() -> tuple[Tensor, Tensor]:
            weight: Tensor
            bias: Tensor
            weight, bias = weights[0].flatten(1), weights[1]
            for outer, offset in zip(weights[2::2], weights[3::2], strict=True):
                weight, bias = outer.flatten(1) @ weight, outer.flatten(1) @ bias + offset
            return weight, bias

        return product(image, *self.derived.get(("lateral", stage, len(after)), weights, multiply))

    def coarsest(self, third: Tensor, fourth: Tensor) -> Tensor:
        """Compute the level that the tracker uses: the third stage plus the fourth, upsampled by 2 (nearest).

        Args:
            third: (N, g, g, C).
            fourth: (N, g/2, g/2, 2C).

        Returns:
            (N, g, g, hidden).
        """
        coarse = self.lateral(3, fourth)[:, :, None, :, None]  # (N, g/2, 1, g/2, 1, hidden)
        top = self.lateral(2, third)
        summed = top.reshape(*coarse.shape[:2], 2, coarse.shape[3], 2, -1) + coarse  # (N, g/2, 2, g/2, 2, hidden)
        return summed.reshape(top.shape)


class ImageEncoder(nn.Module):
    """Hiera and its feature pyramid.

    Args:
        config: The tracker's shape.
    """

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.backbone = Hiera(config)
        self.neck = FeaturePyramid(config)
