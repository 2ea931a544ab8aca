"""Movement features, an extension of this project: frame differences as an input of the first adapter.

HSA's tokens carry no velocity: the position and time embeddings are too weak beside the appearance. Frame differences
carry it directly (on synthetic clips a linear probe explains a third to half of the velocity's variance from them, and
none from HSA's tokens).

Shapes: V videos, T frames, P earlier frames, s = half the model's image size, A channels inside the adapter.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAGS = (1, 2, 4)
"""Distances in frames to the earlier frames that a frame is compared with."""

COMPARED_CHANNELS = 3 * (1 + len(LAGS))
"""Channels of ``compare_frames``."""


def small_frames(pixels: Tensor) -> Tensor:
    """Halve placed frames: (V, T, 3, S, S) -> (V, T, 3, S/2, S/2)."""
    return F.avg_pool2d(pixels.flatten(0, 1), 2).unflatten(0, pixels.shape[:2])


def compare_frames(frames: Tensor, past: Tensor | None = None) -> Tensor:
    """Join each small frame with its differences to the frames ``LAGS`` earlier.

    Args:
        frames: Small frames (V, T, 3, s, s).
        past: Earlier small frames, oldest first (V, P, 3, s, s); default none. A frame with too few earlier frames
            is compared with the oldest available.

    Returns:
        (V, T, 12, s, s).
    """
    known = frames if past is None else torch.cat([past, frames], dim=1)  # (V, P + T, 3, s, s)
    begin, end = known.shape[1] - frames.shape[1], known.shape[1]
    seen = [frames]
    for lag in LAGS:
        # Slices, because a list of indices would be copied to the device, which waits for all earlier work.
        earlier = [known[:, max(0, time - lag)] for time in range(begin, end)]
        seen.append(frames - torch.stack(earlier, dim=1))
    return torch.cat(seen, dim=2)


class MotionFeatures(nn.Module):
    """A small convolutional network over a frame and its differences to earlier ones.

    Its last layer starts at zero, so that it does not change an adapter trained without it.

    Args:
        width: Channels A of the first adapter.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(COMPARED_CHANNELS, 32, kernel_size=5, stride=2, padding=2)
        self.second = nn.Conv2d(32, 64, kernel_size=3, stride=2, padding=1)
        self.third = nn.Conv2d(64, width, kernel_size=3, padding=1)
        nn.init.zeros_(self.third.weight)
        assert self.third.bias is not None
        nn.init.zeros_(self.third.bias)

    def forward(self, compared: Tensor) -> Tensor:
        """Compute the features of T frames.

        Args:
            compared: Output of ``compare_frames`` (V, T, 12, s, s).

        Returns:
            Channels last (V*T, s/4, s/4, A).
        """
        x = compared.flatten(0, 1).to(self.first.weight.dtype)
        x = torch.relu(self.second(torch.relu(self.first(x))))
        return self.third(x).permute(0, 2, 3, 1)
