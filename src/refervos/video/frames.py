"""Frames of a video, and information about their source."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refervos.errors import VideoError
from refervos.files.images import ImageArray, flatten_alpha, rgb_from_pil

__all__ = ["Frame", "ImageArray", "SourceInfo", "frame_time", "frames_text", "rgb_from_array", "rgb_from_pil"]


@dataclass(frozen=True, eq=False)
class Frame:
    """Frame of a video.

    Attributes:
        index: Position in the source, from 0, counting dropped frames.
        image: uint8 (H, W, 3), RGB, upright.
        time: Seconds since the first frame of the source; None if the source has no times.
        name: File stem for frames from image files, else None.
        after_gap: True for the first frame after a connection was lost.
    """

    index: int
    image: ImageArray
    time: float | None = None
    name: str | None = None
    after_gap: bool = False


@dataclass(frozen=True)
class SourceInfo:
    """Information about a source that is available before its frames are read.

    Attributes:
        name: Short name of the source, used to name outputs.
        width: Width of the upright frames in pixels; None if unknown.
        height: Height of the upright frames in pixels; None if unknown.
        fps: Average frames per second; None if unknown.
        frame_count: Number of frames, exact or estimated; None if unknown.
        live: True for a camera or a live network stream, which ends only when closed.
        path: The media file, from which audio can be copied; None if there is none.
        url: Address of a recording, from which audio can be copied; may contain a password, so never show it.
        has_audio: Whether there is an audio track.
        still: Whether it is a single image, not a video.
        start_time: Timestamp of the first frame in the media file in seconds; needed to synchronise the audio.
    """

    name: str
    width: int | None = None
    height: int | None = None
    fps: Fraction | None = None
    frame_count: int | None = None
    live: bool = False
    path: Path | None = None
    start_time: float = 0.0
    url: str | None = field(default=None, repr=False)
    has_audio: bool = False
    still: bool = False


def frames_text(count: int) -> str:
    """Format a number of frames for messages."""
    return "1 frame" if count == 1 else f"{count} frames"


def frame_time(index: int, fps: Fraction | None) -> float | None:
    """Return the time of a frame in seconds from its index and the frame rate; None without a rate."""
    return None if fps is None else float(index / fps)


def rgb_from_array(array: Any, described: str) -> ImageArray:
    """Convert a gray, RGB or RGBA image to RGB; transparent pixels are blended with white.

    Args:
        array: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a PIL image.
        described: Name of the image in errors, such as "frame 3 of the array".

    Returns:
        uint8 (H, W, 3), contiguous.

    Raises:
        VideoError: It is not such an image.
    """
    if isinstance(array, Image.Image):
        return rgb_from_pil(array)
    wanted = "a uint8 array of shape (H, W, 3), (H, W, 4), (H, W, 1) or (H, W)"
    if isinstance(array, (str, bytes, Path)):
        raise VideoError(f"{described} is {array!r}; it must be {wanted}, not a path.")
    try:
        image = np.asarray(array)
    except Exception as error:  # array types of other libraries can raise anything
        raise VideoError(f"{described} is a {type(array).__name__}; it must be {wanted}.") from error
    if image.dtype != np.uint8:
        raise VideoError(f"{described} has dtype {image.dtype}; it must be {wanted}, values 0 to 255.")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise VideoError(f"{described} has shape {np.shape(array)}; it must be {wanted}, channels last.")
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return flatten_alpha(image) if image.shape[2] == 4 else np.ascontiguousarray(image)
