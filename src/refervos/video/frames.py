"""Frames of a video and what is known about where they come from."""

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
    """One picture of a video.

    Attributes:
        index: Position in the source, from 0; frames that were dropped on the way are counted.
        image: uint8 (H, W, 3), RGB, upright.
        time: Seconds since the first frame of the source, or None where the source tells no times.
        name: File stem for frames that come from image files, else None.
        after_gap: True where the stream was away before this frame, so that what happened until then was not seen.
    """

    index: int
    image: ImageArray
    time: float | None = None
    name: str | None = None
    after_gap: bool = False


@dataclass(frozen=True)
class SourceInfo:
    """What is known about a source before its frames are read.

    Attributes:
        name: Short name of the source, fit for naming outputs after.
        width: Width of the upright frames in pixels; None while unknown.
        height: Height of the upright frames in pixels; None while unknown.
        fps: Average frames per second; None while unknown.
        frame_count: Number of frames, exact or estimated; None while unknown.
        live: True for a camera or a live network stream, which ends only when it is closed.
        path: The media file, whose audio may be copied; None where there is no such file.
        url: The address of a recording, whose audio may be copied; it may hold a password and is not for messages.
        has_sound: Whether there is sound beside the frames.
        still: Whether it is one picture and no video.
        start_time: Seconds on the media file's own clock at which its first frame is shown. Needed to keep
            the audio in step.
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
    has_sound: bool = False
    still: bool = False


def frames_text(count: int) -> str:
    """A number of frames in words."""
    return "1 frame" if count == 1 else f"{count} frames"


def frame_time(index: int, fps: Fraction | None) -> float | None:
    """When a frame is shown that carries no time of its own, in seconds since the first; None without a rate."""
    return None if fps is None else float(index / fps)


def rgb_from_array(array: Any, described: str) -> ImageArray:
    """Turns a gray, RGB or RGBA picture into RGB; what is transparent lies on white ground.

    Args:
        array: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a PIL image.
        described: What to call the picture in an error, such as "frame 3 of the array".

    Returns:
        uint8 (H, W, 3), contiguous.

    Raises:
        VideoError: It is not such a picture.
    """
    if isinstance(array, Image.Image):
        return rgb_from_pil(array)
    wanted = "a uint8 array of shape (H, W, 3), (H, W, 4), (H, W, 1) or (H, W)"
    if isinstance(array, (str, bytes, Path)):
        raise VideoError(f"{described} is {array!r}; it must be {wanted}, not a path.")
    try:
        picture = np.asarray(array)
    except Exception as error:  # whatever a foreign array type raises, the fault is the input's
        raise VideoError(f"{described} is a {type(array).__name__}; it must be {wanted}.") from error
    if picture.dtype != np.uint8:
        raise VideoError(f"{described} has dtype {picture.dtype}; it must be {wanted}, values 0 to 255.")
    if picture.ndim == 2:
        picture = picture[:, :, None]
    if picture.ndim != 3 or picture.shape[2] not in (1, 3, 4) or 0 in picture.shape:
        raise VideoError(f"{described} has shape {np.shape(array)}; it must be {wanted}, channels last.")
    if picture.shape[2] == 1:
        return np.repeat(picture, 3, axis=2)
    return flatten_alpha(picture) if picture.shape[2] == 4 else np.ascontiguousarray(picture)
