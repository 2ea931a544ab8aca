"""Frames of a video for the two encoders and for SAM2: which ones, how large, how normalised.

All three consumers see the same frames differently: CLIP the square in the middle, InternVideo2 and SAM2 the whole
frame squashed to a square. Pillow resizes as in the released code; OpenCV's fixed-point interpolation, which the
released code applies for InternVideo2, is a few lines of integers here, so that OpenCV is no dependency.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from refervos.errors import FrameError
from refervos.ops.borders import FrameGuide
from refervos.placement import IMAGE_MEAN, IMAGE_STD, Placement, as_rgb, place_for_sam
from refervos.videoglamm.config import ClipConfig, InternVideoConfig, VideoGlammConfig

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

MOST_DECODED = 64
"""Frames of a video file that the released program reads at most."""

LONGEST = 16
"""The image encoder sees no more of a frame than this many times its short side, of which it then takes the middle."""

_FIXED_POINT = 2048
"""OpenCV's interpolation of bytes has weights in units of 1 / 2048."""

Rgb = npt.NDArray[np.uint8]


# Which frames.


def evenly(count: int, wanted: int) -> list[int]:
    """Choose frames at even distances, from the first to the last, rounded down; some twice where there are few.

    Args:
        count: How many there are, at least 1.
        wanted: How many to choose.

    Returns:
        Indices, ascending.
    """
    return [int(place) for place in np.linspace(0, count - 1, wanted)]


def encoder_frames(count: int, wanted: int) -> list[int]:
    """Choose the frames for the encoders: all of them, or evenly as many as are wanted.

    Args:
        count: How many there are, at least 1.
        wanted: How many the encoders see.

    Returns:
        Indices, ascending; fewer than wanted where there are fewer, which are then followed by the last one again.
    """
    return list(range(count)) if count <= wanted else evenly(count, wanted)


def decoded_frames(count: int, fps: float, most: int = MOST_DECODED) -> list[int]:
    """Choose frames of a video file as the released program does: about one a second, evenly thinned to a maximum.

    Args:
        count: Frames of the file, at least 1.
        fps: Its frames per second.
        most: The maximum.

    Returns:
        Indices, ascending.
    """
    seconds = list(range(0, count, max(1, round(fps))))
    return seconds if len(seconds) <= most else [seconds[place] for place in evenly(len(seconds), most)]


# For the encoders.


@dataclass(frozen=True)
class EncoderPixels:
    """Frames as the encoders read them.

    Attributes:
        clip: For the image encoder, float32 (F, 3, S, S).
        internvideo: For the video encoder, float32 (F, 3, s, s); None for a single image, or where there is none.
    """

    clip: Tensor
    internvideo: Tensor | None

    def to(self, device: torch.device) -> EncoderPixels:
        """The same on a device."""
        return EncoderPixels(self.clip.to(device), None if self.internvideo is None else self.internvideo.to(device))


def video_pixels(frames: Sequence[Any], config: VideoGlammConfig) -> EncoderPixels:
    """Sample and preprocess a video for the encoders.

    Args:
        frames: uint8 arrays or tensors (H, W, 3), at least one.
        config: How many frames, how large.

    Returns:
        As many frames as the configuration says; the last is repeated where there are fewer.

    Raises:
        FrameError: When there is no frame, or one is no picture.
    """
    if not len(frames):
        raise FrameError("the video has no frame; give at least one.")
    chosen = encoder_frames(len(frames), config.frames)
    chosen += chosen[-1:] * (config.frames - len(chosen))
    images = {index: _as_array(frames[index]) for index in chosen}
    clip = {index: clip_pixels(image, config.clip) for index, image in images.items()}
    stacked = torch.stack([clip[index] for index in chosen])
    if config.internvideo is None:
        return EncoderPixels(stacked, None)
    internvideo = {index: internvideo_pixels(image, config.internvideo) for index, image in images.items()}
    return EncoderPixels(stacked, torch.stack([internvideo[index] for index in chosen]))


def image_pixels(image: Any, config: VideoGlammConfig) -> EncoderPixels:
    """Preprocess a single image, which the image encoder alone reads.

    Args:
        image: uint8 array or tensor (H, W, 3).
        config: How large.

    Raises:
        FrameError: When it is no picture.
    """
    return EncoderPixels(clip_pixels(_as_array(image), config.clip).unsqueeze(0), None)


def _as_array(frame: Any) -> Rgb:
    return np.ascontiguousarray(as_rgb(frame).permute(1, 2, 0).cpu().numpy())


def clip_pixels(image: Rgb, config: ClipConfig) -> Tensor:
    """Short side to the square's side, bicubic; the square in the middle; CLIP's mean and deviation.

    Of frames that are many times as long as wide only the middle is resized.

    Args:
        image: uint8 (H, W, 3).
        config: The encoder's shape.

    Returns:
        float32 (3, S, S).
    """
    image = _middle(image)
    height, width = image.shape[:2]
    side, short = config.image_size, min(height, width)
    tall, wide = (side if edge == short else int(side * edge / short) for edge in (height, width))
    top, left = (tall - side) // 2, (wide - side) // 2
    resized = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC))
    return _normalised(resized[top : top + side, left : left + side], CLIP_MEAN, CLIP_STD, np.float32)


def _middle(image: Rgb) -> Rgb:
    """The middle of a frame, at most ``LONGEST`` times as long as wide."""
    longest = LONGEST * min(image.shape[:2])
    height, width = (min(edge, longest) for edge in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def internvideo_pixels(image: Rgb, config: InternVideoConfig) -> Tensor:
    """The whole frame squashed to a square, bilinear without antialiasing; ImageNet's mean and deviation.

    Args:
        image: uint8 (H, W, 3).
        config: The encoder's shape.

    Returns:
        float32 (3, s, s).
    """
    return _normalised(squash(image, config.image_size), IMAGE_MEAN, IMAGE_STD, np.float64)


def _normalised(image: Rgb, mean: Sequence[float], deviation: Sequence[float], exact: Any) -> Tensor:
    """uint8 (S, S, 3) -> float32 (3, S, S), computed in the type that the released code computes in."""
    values = (image.astype(exact) / exact(255) - np.array(mean, exact)) / np.array(deviation, exact)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), dtype=np.float32))


def squash(image: Rgb, side: int) -> Rgb:
    """Resize a frame to a square, bit for bit as OpenCV does: bilinear, weights of 11 bits, 4 bits dropped between.

    Interpolation in floats, rounded, differs by a grey level in one pixel out of eight.

    Args:
        image: uint8 (H, W, 3).
        side: Of the square.

    Returns:
        uint8 (side, side, 3).
    """
    if image.shape[:2] == (side, side):
        return image
    top, upper, lower = _taps(image.shape[0], side)
    left, before, after = _taps(image.shape[1], side)
    outside = (left < 0) | (left >= image.shape[1] - 1)  # rows are not treated alike: both weights stay
    before[outside], after[outside] = _FIXED_POINT, 0
    wide = image.astype(np.int32)
    rows = _edged(wide, left, 1) * before[:, None] + _edged(wide, left + 1, 1) * after[:, None]  # (H, side, 3)
    rows >>= 4
    above, below = _edged(rows, top, 0), _edged(rows, top + 1, 0)  # (side, side, 3)
    sums = ((above * upper[:, None, None]) >> 16) + ((below * lower[:, None, None]) >> 16)
    return ((sums + 2) >> 2).clip(0, 255).astype(np.uint8)


def _taps(length: int, side: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """For each of ``side`` places the neighbour before it among ``length``, and the weights of that and the next."""
    places = ((np.arange(side) + 0.5) * (1 / (side / length)) - 0.5).astype(np.float32)
    first = np.floor(places)
    share = places - first
    weights = [np.rint(part * np.float32(_FIXED_POINT)).astype(np.int32) for part in (np.float32(1) - share, share)]
    return first.astype(np.intp), weights[0], weights[1]


def _edged(values: npt.NDArray[np.int32], places: npt.NDArray[np.intp], axis: int) -> npt.NDArray[np.int32]:
    """Values at places, of which those outside count as at the edge."""
    return values.take(places, axis=axis, mode="clip")


# For SAM2.


@dataclass(frozen=True)
class SquashedPlacement(Placement):
    """Where a frame lies in SAM2's square: it fills it, without its aspect ratio, and masks come straight back.

    ``first`` is the size on the way: the long side is the square's, the aspect ratio still the frame's.
    """

    def place(self, frame: Tensor, device: torch.device | None = None) -> Tensor:
        """Resize in two steps and normalise a frame.

        Args:
            frame: uint8 (3, H, W).
            device: Where the result is wanted, default where the frame is.

        Returns:
            float32 (3, S, S).
        """
        device = frame.device if device is None else device
        height, width = self.first or self.resized
        image = Image.fromarray(np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy()))
        # A copy: Pillow's memory is not to be written to.
        resized = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
        pixels = resized.to(device).permute(2, 0, 1).float()  # (3, h, w)
        scaled = torch.tensor([IMAGE_MEAN, IMAGE_STD], device=device).unsqueeze(-1).unsqueeze(-1) * 255  # (2, 3, 1, 1)
        pixels = ((pixels - scaled[0]) / scaled[1]).unsqueeze(0)
        square = (self.image_size, self.image_size)
        return F.interpolate(pixels, size=square, mode="bilinear", align_corners=False)[0]

    def restore(self, mask_logits: Tensor, guide: FrameGuide | None = None) -> Tensor:
        """Bring low-resolution mask logits to the frame's size in a single step.

        Args:
            mask_logits: (N, h, w) over the whole square.
            guide: The frame, where borders are to follow its edges; default bilinear alone.

        Returns:
            float32 (N, H, W).
        """
        if guide is not None:
            return super().restore(mask_logits, guide)
        logits = mask_logits.float().unsqueeze(0)  # (1, N, h, w)
        return F.interpolate(logits, size=self.frame_size, mode="bilinear", align_corners=False)[0]


def place_squashed(frame_size: tuple[int, int], image_size: int) -> SquashedPlacement:
    """Choose how a frame of this height and width goes into SAM2's square, as the released code does it."""
    first = place_for_sam(frame_size, image_size).resized
    return SquashedPlacement(frame_size, (image_size, image_size), image_size, first)
