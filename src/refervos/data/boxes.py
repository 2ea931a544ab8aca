"""Ground truth that is a box in each annotated frame, as in VidSTG and HC-STVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from refervos.data.frames import VideoFileFrames
from refervos.data.sample import ImageArray, Mask
from refervos.errors import DataError

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels; pixel (x, y) covers x to x + 1 and y to y + 1."""

FRAMES_A_SECOND = 1
"""Frames a second of the published evaluation of visual grounding."""

MOST_FRAMES = 40
"""Maximum number of frames of a moment in that evaluation; longer moments are thinned out evenly."""

LONGEST_VIDEO = 1_000_000
"""Maximum number of frames of a video."""


@dataclass(frozen=True, eq=False)
class BoxTruth:
    """A ground truth of boxes; as a mask, a box is filled.

    Attributes:
        read: Reads the boxes by the index of their frame, ascending, within the frame and with an area; called once.
        size: Height and width of the frames.
    """

    read: Callable[[], Mapping[int, Box]]
    size: tuple[int, int]

    @cached_property
    def boxes(self) -> Mapping[int, Box]:
        """The box of each annotated frame by its index; DataError where it is missing or damaged."""
        return self.read()

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of the frames that have a box."""
        return tuple(self.boxes)

    def mask(self, index: int) -> Mask:
        """Return the filled box of one annotated frame, bool (H, W): each pixel that it covers by half or more."""
        left, top, right, bottom = (round(side) for side in self.boxes[index])
        filled = np.zeros(self.size, dtype=np.bool_)
        filled[top:bottom, left:right] = True
        return filled

    def void(self, index: int) -> None:
        """All pixels count."""
        return None


def clipped_box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> Box | None:
    """Cut a box at the borders of its frame.

    Args:
        left: In pixels, as the others.
        top: See ``Box``.
        right: Likewise.
        bottom: Likewise.
        size: Height and width of the frame.

    Returns:
        The part inside; None where nothing of it is.
    """
    height, width = size
    left, right = max(0.0, min(left, width)), max(0.0, min(right, width))
    top, bottom = max(0.0, min(top, height)), max(0.0, min(bottom, height))
    return (left, top, right, bottom) if right > left and bottom > top else None


def require_numbers(values: Sequence[Any], where: str) -> list[float]:
    """Make sure that values are numbers.

    Args:
        values: What was read.
        where: What to call them in an error.

    Returns:
        The same.

    Raises:
        DataError: When one is no number, or too large for one of a pixel or a second.
    """
    for value in values:
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
            raise DataError(f"{where} must be numbers.")
    return [float(value) for value in values]


def sampled_moment(begin: int, end: int, rate: float, where: str) -> tuple[int, ...]:
    """Choose the frames of a moment that the published evaluation scores: one a second, at most 40.

    As TubeDETR's and VideoGLaMM's loaders choose them: the first frame, then each in which a new second of the video
    begins.

    Args:
        begin: The first frame of the moment, counted from 0.
        end: The frame after its last.
        rate: Frames of the video a second.
        where: What to call the moment in an error.

    Returns:
        Numbers of frames, ascending.

    Raises:
        DataError: When the moment has no frame, or the numbers are none of a video.
    """
    if not (0 <= begin < end <= LONGEST_VIDEO and math.isfinite(rate) and rate >= FRAMES_A_SECOND):
        raise DataError(
            f"{where} goes from frame {begin} to {end} at {rate:g} frames a second; a moment has a frame at least, a "
            f"video at most {LONGEST_VIDEO:,}, and at least {FRAMES_A_SECOND} a second."
        )
    share = FRAMES_A_SECOND / rate
    chosen = [begin]
    for number in range(begin, end):
        if int(chosen[-1] * share) < int(number * share):
            chosen.append(number)
    if len(chosen) > MOST_FRAMES:
        chosen = [chosen[place * len(chosen) // MOST_FRAMES] for place in range(MOST_FRAMES)]
    return tuple(chosen)


@dataclass(frozen=True, eq=False)
class SampledFrames(VideoFileFrames):
    """Some frames of a video file, each named by its number in the file.

    Attributes:
        numbers: Of the frames in the file, counted from 0, ascending.
    """

    numbers: tuple[int, ...] = ()

    @cached_property
    def names(self) -> Sequence[str]:
        """``00013`` and so on; nothing is decoded."""
        return tuple(f"{number:05d}" for number in self.numbers)

    def read(self, index: int) -> ImageArray:
        """Decode one frame, uint8 RGB (H, W, 3); DataError where the file is damaged or over before."""
        return super().read(self.numbers[index])
