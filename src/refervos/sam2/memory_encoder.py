"""SAM2's memory encoder, from a frame and its mask to a memory map (SAM2 paper, section 4). Channels last throughout.

Shapes: N tracks, C = hidden width, M = width of a memory map, g = grid, S = image size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.derived import Derived
from refervos.ops.linear import column_major, linear, on_cpu_path, product
from refervos.sam.layers import NORM_EPSILON, channels_first, channels_last, pointwise
from refervos.sam2.config import Sam2Config

SMALL = 2**15
"""Masks and images of at most this many values (181 x 181 pixels) count as small."""

PATCHES_PAY = 16
"""From this many channels on, unfolding patches is cheaper than calling oneDNN, and rows are long enough for torch's
layer norm."""

SCALE_AT_START = 1e-6
"""Initial scale of the fuser's residual branches."""


class MaskDownsamplerLayer(nn.Module):
    """Strided convolution that halves the resolution and quadruples the channels."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1)
        self.layer_norm = nn.LayerNorm(outputs, NORM_EPSILON)
        self.derived = Derived()

    def forward(self, x: Tensor) -> Tensor:
        """Downsample: (N, H, W, inputs) -> (N, H/2, W/2, outputs)."""
        if not on_cpu_path(x) or x.numel() > SMALL:
            return F.gelu(self.layer_norm(channels_last(self.conv(channels_first(x)))))
        # For small masks torch's own choices are slow: a convolution without oneDNN, a norm row by row.
        weight, bias, norm = self.conv.weight, self.conv.bias, self.layer_norm
        assert bias is not None
        if x.shape[-1] < PATCHES_PAY:
            image = torch.mkldnn_convolution(channels_first(x), weight, bias, [1, 1], [2, 2], [1, 1], 1).contiguous()
            image = image - image.mean(1, keepdim=True)  # (N, outputs, H/2, W/2)
            image = image * torch.rsqrt(image.square().mean(1, keepdim=True) + norm.eps)
            return channels_last(F.gelu(torch.addcmul(norm.bias[:, None, None], image, norm.weight[:, None, None])))
        cells = F.pad(x, (0, 0, 1, 0, 1, 0)).unfold(1, 3, 2).unfold(2, 3, 2)  # (N, H/2, W/2, inputs, 3, 3)
        patches = cells.movedim(3, -1).flatten(3)  # (N, H/2, W/2, 9 * inputs)
        flat = self.derived.get("flat", [weight], lambda: weight.permute(0, 2, 3, 1).flatten(1).t().contiguous().t())
        return F.gelu(norm(F.linear(patches, flat, bias)))


class MaskDownsampler(nn.Module):
    """Downsampling of a full-size mask to the grid, by 16 in four steps.

    Args:
        width: Output channels C.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MaskDownsamplerLayer(4**step, 4 ** (step + 1)) for step in range(4))
        self.final_conv = nn.Conv2d(4**4, width, kernel_size=1)

    def forward(self, mask: Tensor) -> Tensor:
        """Downsample: (N, S, S, 1) -> (N, g, g, C)."""
        for layer in self.layers:
            mask = layer(mask)
        return pointwise(mask, self.final_conv)


class ConvNextBlock(nn.Module):
    """ConvNeXt block (Liu et al. 2022, arXiv 2201.03545).

    Args:
        width: Channels C.
        inner: Channels inside the feed-forward network.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.depthwise_conv = nn.Conv2d(width, width, kernel_size=7, padding=3, groups=width)
        self.layer_norm = nn.LayerNorm(width, NORM_EPSILON)
        self.pointwise_conv1 = nn.Linear(width, inner)
        self.pointwise_conv2 = nn.Linear(inner, width)
        self.scale = nn.Parameter(torch.full((width,), SCALE_AT_START))
        self.derived = Derived()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block: (N, H, W, C) -> same shape."""
        second, scale = self.pointwise_conv2, self.scale

        def scaled() -> tuple[Tensor, Tensor]:
            return column_major(second.weight * scale.unsqueeze(1)), second.bias * scale

        weight, bias = self.derived.get("scaled", [second.weight, second.bias, scale], scaled)
        hidden = self.layer_norm(channels_last(self.depthwise_conv(channels_first(x))))
        return x + product(linear(hidden, self.pointwise_conv1, "gelu"), weight, bias)


class Fuser(nn.Module):
    """Two ConvNeXt blocks that mix the frame and its mask."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConvNextBlock(width, inner) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Run both blocks: (N, H, W, C) -> same shape."""
        for layer in self.layers:
            x = layer(x)
        return x


class MemoryEncoder(nn.Module):
    """SAM2's memory encoder.

    Args:
        config: The tracker's shape.
    """

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownsampler(config.hidden)
        self.feature_projection = nn.Conv2d(config.hidden, config.hidden, kernel_size=1)
        self.memory_fuser = Fuser(config.hidden, config.fuser_feedforward)
        self.projection = nn.Conv2d(config.hidden, config.memory_width, kernel_size=1)

    def forward(self, top: Tensor, mask: Tensor) -> Tensor:
        """Encode a frame and its mask into a memory map.

        Args:
            top: Stride-16 features (N, g, g, C).
            mask: (N, S, S, 1).

        Returns:
            (N, g, g, M).
        """
        fused = pointwise(top, self.feature_projection) + self.mask_downsampler(mask)
        return pointwise(self.memory_fuser(fused), self.projection)
