"""Frame sampling and preprocessing for the two encoders and for SAM2.

CLIP gets a centre crop, InternVideo2 and SAM2 the whole frame without its aspect ratio. As in the released code, Pillow
resizes for CLIP and SAM2. For InternVideo2 the released code uses OpenCV, whose fixed-point interpolation is reproduced
here in integer arithmetic, so that OpenCV is not a dependency.
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
"""Maximum number of frames that the released program decodes."""

LONGEST = 16
"""Frames with a larger aspect ratio are cropped before they are resized for the image encoder."""

_FIXED_POINT = 2048
"""OpenCV's interpolation of bytes has weights in units of 1 / 2048."""

Rgb = npt.NDArray[np.uint8]


# Sampling.


def evenly(count: int, wanted: int) -> list[int]:
    """Sample frame indices evenly from first to last, rounded down; indices repeat if there are too few frames.

    Args:
        count: Number of frames, at least 1.
        wanted: Number of samples.

    Returns:
        Ascending indices.
    """
    return [int(place) for place in np.linspace(0, count - 1, wanted)]


def encoder_frames(count: int, wanted: int) -> list[int]:
    """Sample frame indices for the encoders: all frames if there are few, otherwise evenly.

    Args:
        count: Number of frames, at least 1.
        wanted: Maximum number of samples.

    Returns:
        Ascending indices, at most ``wanted``.
    """
    return list(range(count)) if count <= wanted else evenly(count, wanted)


def decoded_frames(count: int, fps: float, most: int = MOST_DECODED) -> list[int]:
    """Sample about one frame per second, evenly reduced to a maximum, as the released program does.

    Args:
        count: Number of frames, at least 1.
        fps: Frames per second.
        most: Maximum number of samples.

    Returns:
        Ascending indices.
    """
    seconds = list(range(0, count, max(1, round(fps))))
    return seconds if len(seconds) <= most else [seconds[place] for place in evenly(len(seconds), most)]


# Preprocessing for the encoders.


@dataclass(frozen=True)
class EncoderPixels:
    """Preprocessed frames for the encoders.

    Attributes:
        clip: For the image encoder, float32 (F, 3, S, S).
        internvideo: For the video encoder, float32 (F, 3, s, s); None for a single image or a model without it.
    """

    clip: Tensor
    internvideo: Tensor | None

    def to(self, device: torch.device) -> EncoderPixels:
        """Move the frames to a device."""
        return EncoderPixels(self.clip.to(device), None if self.internvideo is None else self.internvideo.to(device))


@dataclass(frozen=True)
class EncoderView:
    """A frame resized for the encoders, in bytes: small enough to keep many.

    Attributes:
        clip: For the image encoder, uint8 (3, S, S).
        internvideo: For the video encoder, uint8 (3, s, s); None for a model without it.
    """

    clip: Tensor
    internvideo: Tensor | None


def encoder_view(frame: Any, config: VideoGlammConfig) -> EncoderView:
    """Resize a frame for the encoders.

    Args:
        frame: uint8 array or tensor (H, W, 3).
        config: Sizes.

    Returns:
        A copy, independent of the frame.

    Raises:
        FrameError: When it is not an image.
    """
    image = _as_array(frame)
    video = None if config.internvideo is None else _as_planes(squash(image, config.internvideo.image_size))
    return EncoderView(_as_planes(clip_crop(image, config.clip.image_size)), video)


def view_pixels(views: Sequence[EncoderView], config: VideoGlammConfig) -> EncoderPixels:
    """Sample and normalise a video of resized frames for the encoders.

    Args:
        views: The resized frames, at least one.
        config: Number of frames.

    Returns:
        ``config.frames`` frames; the last one is repeated if the video is shorter.
    """
    chosen = encoder_frames(len(views), config.frames)
    chosen += chosen[-1:] * (config.frames - len(chosen))
    sampled = [views[index] for index in chosen]
    clip = torch.stack([_normalised(view.clip, CLIP_MEAN, CLIP_STD, np.float32) for view in sampled])
    video = [
        _normalised(view.internvideo, IMAGE_MEAN, IMAGE_STD, np.float64)
        for view in sampled
        if view.internvideo is not None
    ]
    return EncoderPixels(clip, torch.stack(video) if video else None)


def video_pixels(frames: Sequence[Any], config: VideoGlammConfig) -> EncoderPixels:
    """Sample and preprocess a video for the encoders.

    Args:
        frames: uint8 arrays or tensors (H, W, 3), at least one.
        config: Number and size of the frames.

    Returns:
        ``config.frames`` frames; the last one is repeated if the video is shorter.

    Raises:
        FrameError: When there is no frame, or a frame is not an image.
    """
    if not len(frames):
        raise FrameError("the video has no frames; give at least one.")
    chosen = encoder_frames(len(frames), config.frames)
    return view_pixels([encoder_view(frames[index], config) for index in chosen], config)


def image_pixels(image: Any, config: VideoGlammConfig) -> EncoderPixels:
    """Preprocess a single image for the image encoder; the video encoder does not use it.

    Args:
        image: uint8 array or tensor (H, W, 3).
        config: Size of the image.

    Raises:
        FrameError: When it is not an image.
    """
    return EncoderPixels(clip_pixels(_as_array(image), config.clip).unsqueeze(0), None)


def single_pixels(view: EncoderView) -> EncoderPixels:
    """Normalise a single resized image for the image encoder."""
    return EncoderPixels(_normalised(view.clip, CLIP_MEAN, CLIP_STD, np.float32).unsqueeze(0), None)


def _as_array(frame: Any) -> Rgb:
    return np.ascontiguousarray(as_rgb(frame).permute(1, 2, 0).cpu().numpy())


def _as_planes(image: Rgb) -> Tensor:
    """uint8 (S, S, 3) -> a contiguous copy uint8 (3, S, S)."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def clip_pixels(image: Rgb, config: ClipConfig) -> Tensor:
    """Preprocess a frame for CLIP: bicubic resize of the short side, centre crop, normalisation.

    Args:
        image: uint8 (H, W, 3).
        config: The encoder's shape.

    Returns:
        float32 (3, S, S).
    """
    return _normalised(_as_planes(clip_crop(image, config.image_size)), CLIP_MEAN, CLIP_STD, np.float32)


def clip_crop(image: Rgb, side: int) -> Rgb:
    """Resize the short side of a frame, bicubic, and take the square in the centre.

    Frames with an extreme aspect ratio are cropped before they are resized.

    Args:
        image: uint8 (H, W, 3).
        side: Side of the square in pixels.

    Returns:
        uint8 (side, side, 3).
    """
    image = _middle(image)
    height, width = image.shape[:2]
    short = min(height, width)
    tall, wide = (side if edge == short else int(side * edge / short) for edge in (height, width))
    top, left = (tall - side) // 2, (wide - side) // 2
    resized = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC))
    return resized[top : top + side, left : left + side]


def _middle(image: Rgb) -> Rgb:
    """Crop a frame to an aspect ratio of at most ``LONGEST``."""
    longest = LONGEST * min(image.shape[:2])
    height, width = (min(edge, longest) for edge in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def internvideo_pixels(image: Rgb, config: InternVideoConfig) -> Tensor:
    """Preprocess a frame for InternVideo2: bilinear resize to a square without antialiasing, normalisation.

    Args:
        image: uint8 (H, W, 3).
        config: The encoder's shape.

    Returns:
        float32 (3, s, s).
    """
    return _normalised(_as_planes(squash(image, config.image_size)), IMAGE_MEAN, IMAGE_STD, np.float64)


def _normalised(image: Tensor, mean: Sequence[float], deviation: Sequence[float], exact: Any) -> Tensor:
    """uint8 (3, S, S) -> float32 (3, S, S), computed in the released code's data type."""
    scale = [np.array(values, exact)[:, None, None] for values in (mean, deviation)]
    values = (image.numpy().astype(exact) / exact(255) - scale[0]) / scale[1]
    return torch.from_numpy(values.astype(np.float32))


def squash(image: Rgb, side: int) -> Rgb:
    """Resize a frame to a square, bit-identical to OpenCV's bilinear resize of bytes (fixed-point weights of 11 bits).

    Bilinear interpolation in floating point, rounded, would differ by one grey level in one of eight pixels.

    Args:
        image: uint8 (H, W, 3).
        side: Side of the square in pixels.

    Returns:
        uint8 (side, side, 3).
    """
    if image.shape[:2] == (side, side):
        return image
    top, upper, lower = _taps(image.shape[0], side)
    left, before, after = _taps(image.shape[1], side)
    outside = (left < 0) | (left >= image.shape[1] - 1)  # OpenCV clamps the weights of columns, not of rows
    before[outside], after[outside] = _FIXED_POINT, 0

    def between(rows: Rgb) -> npt.NDArray[np.int32]:
        """Interpolate along rows: uint8 (side, W, 3) -> (side, side, 3) in units of 1 / 128."""
        sides = [_edged(rows, left + shift, 1).astype(np.int32) for shift in (0, 1)]
        return (sides[0] * before[:, None] + sides[1] * after[:, None]) >> 4

    above, below = (between(_edged(image, top + shift, 0)) for shift in (0, 1))  # (side, side, 3)
    sums = ((above * upper[:, None, None]) >> 16) + ((below * lower[:, None, None]) >> 16)
    return ((sums + 2) >> 2).clip(0, 255).astype(np.uint8)


def _taps(length: int, side: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """For each output position, the left neighbour in the input and the weights of both neighbours."""
    places = ((np.arange(side) + 0.5) * (1 / (side / length)) - 0.5).astype(np.float32)
    first = np.floor(places)
    share = places - first
    weights = [np.rint(part * np.float32(_FIXED_POINT)).astype(np.int32) for part in (np.float32(1) - share, share)]
    return first.astype(np.intp), weights[0], weights[1]


def _edged(values: Rgb, places: npt.NDArray[np.intp], axis: int) -> Rgb:
    """Gather along an axis with positions clamped to the edge."""
    return values.take(places, axis=axis, mode="clip")


# Preprocessing for SAM2.


@dataclass(frozen=True)
class SquashedPlacement(Placement):
    """Placement that fills SAM2's square without keeping the aspect ratio, and restores masks in a single step.

    ``first`` is the intermediate size: the long side equals the side of the square, with the frame's aspect ratio.
    """

    def place(self, frame: Tensor, device: torch.device | None = None) -> Tensor:
        """Resize in two steps and normalise a frame.

        Args:
            frame: uint8 (3, H, W).
            device: Device of the result; default that of the frame.

        Returns:
            float32 (3, S, S).
        """
        device = frame.device if device is None else device
        height, width = self.first or self.resized
        image = Image.fromarray(np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy()))
        # A copy, because Pillow's memory is read-only.
        resized = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))
        pixels = resized.to(device).permute(2, 0, 1).float()  # (3, h, w)
        scaled = torch.tensor([IMAGE_MEAN, IMAGE_STD], device=device).unsqueeze(-1).unsqueeze(-1) * 255  # (2, 3, 1, 1)
        pixels = ((pixels - scaled[0]) / scaled[1]).unsqueeze(0)
        square = (self.image_size, self.image_size)
        return F.interpolate(pixels, size=square, mode="bilinear", align_corners=False)[0]

    def restore(self, mask_logits: Tensor, guide: FrameGuide | None = None) -> Tensor:
        """Resize low-resolution mask logits directly to the frame's size.

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
    """Return the placement of a frame of this height and width in SAM2's square, as in the released code."""
    first = place_for_sam(frame_size, image_size).resized
    return SquashedPlacement(frame_size, (image_size, image_size), image_size, first)
