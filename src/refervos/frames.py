"""Frames in: any size, RGB or gray, placed into the model's square. Mask logits out: back to the frame's own size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import FrameError

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def as_rgb(frame: Any) -> Tensor:
    """Check a frame and make it an RGB tensor.

    Args:
        frame: uint8 array or tensor (H, W, 3), (H, W, 1) or (H, W).

    Returns:
        uint8 tensor (3, H, W), a view where possible.

    Raises:
        FrameError: When type, shape or size is something else.
    """
    if isinstance(frame, np.ndarray):
        if frame.dtype != np.uint8:
            raise FrameError(f"the frame has values of type {frame.dtype}; it must be uint8 from 0 to 255.")
        tensor = torch.from_numpy(np.ascontiguousarray(frame) if frame.flags.writeable else frame.copy())
    elif isinstance(frame, Tensor):
        if frame.dtype != torch.uint8:
            raise FrameError(f"the frame has values of type {frame.dtype}; it must be uint8 from 0 to 255.")
        tensor = frame
    else:
        raise FrameError(f"the frame is a {type(frame).__name__}; it must be a uint8 array or tensor (H, W, 3).")
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(-1)
    if tensor.ndim != 3 or tensor.shape[-1] not in (1, 3):
        raise FrameError(f"the frame has shape {tuple(frame.shape)}; it must be (H, W, 3) in RGB, or (H, W) in gray.")
    if 0 in tensor.shape:
        raise FrameError(f"the frame has shape {tuple(frame.shape)}; it has no pixels.")
    return tensor.permute(2, 0, 1).expand(3, -1, -1)  # (3, H, W)


@dataclass(frozen=True)
class Placement:
    """Where a frame lies in the model's square image: resized, at the top left, zeros to the right and below.

    Attributes:
        frame_size: Height and width of the frame.
        resized: Height and width inside the square.
        image_size: Side of the square.
        first: Height and width that the frame is brought to before, None for none: a detour that loses detail, which
            some published protocols take.
    """

    frame_size: tuple[int, int]
    resized: tuple[int, int]
    image_size: int
    first: tuple[int, int] | None = None

    def place(self, frame: Tensor) -> Tensor:
        """Resize, normalise and pad a frame.

        The resize is bilinear with antialiasing on bytes, within one grey level of Pillow's (the released code's).

        Args:
            frame: uint8 (3, H, W).

        Returns:
            float32 (3, S, S).
        """
        for size in (self.first, self.resized):
            if size is not None and size != tuple(frame.shape[1:]):
                frame = F.interpolate(frame.unsqueeze(0), size=size, mode="bilinear", antialias=True)[0]
        mean = torch.tensor(IMAGE_MEAN, device=frame.device).reshape(3, 1, 1)
        std = torch.tensor(IMAGE_STD, device=frame.device).reshape(3, 1, 1)
        pixels = (frame.float() / 255 - mean) / std
        height, width = self.resized
        return F.pad(pixels, (0, self.image_size - width, 0, self.image_size - height))

    def restore(self, mask_logits: Tensor) -> Tensor:
        """Bring low-resolution mask logits back to the frame: up to the square, crop, then to the frame's size.

        Args:
            mask_logits: (N, h, w) over the whole square.

        Returns:
            float32 (N, H, W).
        """
        logits = mask_logits.float().unsqueeze(0)  # (1, N, h, w)
        square = (self.image_size, self.image_size)
        logits = F.interpolate(logits, size=square, mode="bilinear", align_corners=False)
        logits = logits[..., : self.resized[0], : self.resized[1]]
        if self.resized != self.frame_size:
            logits = F.interpolate(logits, size=self.frame_size, mode="bilinear", align_corners=False)
        return logits[0]


def enlarge(mask_logits: Tensor, image_size: int) -> Tensor:
    """Low-resolution mask logits to the model's square, bilinear and in float32 at least.

    Args:
        mask_logits: (N, M, h, w).
        image_size: Side S of the square.

    Returns:
        (N, M, S, S).
    """
    exact = mask_logits.to(torch.promote_types(mask_logits.dtype, torch.float32))
    return F.interpolate(exact, size=(image_size, image_size), mode="bilinear", align_corners=False)


def letterbox(frame_size: tuple[int, int], image_size: int, short_side: int) -> Placement:
    """Keep the aspect ratio: short side to ``short_side``, long side to ``image_size`` at most (sizes truncated).

    Args:
        frame_size: Height and width of the frame.
        image_size: Side of the square.
        short_side: What the short side becomes unless the long side would be too long; at most ``image_size``.

    Returns:
        The placement; 854 x 480 becomes 1024 x 575 in a square of 1024, as in the released evaluation.
    """
    short, long = sorted(frame_size)
    new_short, new_long = short_side, int(short_side * long / short)
    if new_long > image_size:
        new_short, new_long = max(1, int(image_size * new_short / new_long)), image_size
    resized = (new_short, new_long) if frame_size[0] <= frame_size[1] else (new_long, new_short)
    return Placement(frame_size, resized, image_size)


def stretch(frame_size: tuple[int, int], image_size: int) -> Placement:
    """Fill the square and give up the aspect ratio, as SAM2 does."""
    return Placement(frame_size, (image_size, image_size), image_size)
