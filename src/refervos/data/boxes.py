"""Ground-truth boxes, as in VidSTG and HC-STVG."""

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

FRAMES_PER_SECOND = 1
"""Frame rate of the published evaluation of visual grounding."""

MOST_FRAMES = 40
"""Maximum number of frames of a moment in that evaluation; longer moments are subsampled evenly."""

LONGEST_VIDEO = 1_000_000
"""Maximum number of frames of a video."""


@dataclass(frozen=True, eq=False)
class BoxGroundTruth:
    """Ground truth of one box per annotated frame; its masks are the filled boxes.

    Attributes:
        read: Function that returns the boxes by frame index, ascending, non-empty and within the frame; called once.
        size: Height and width of the frames.
    """

    read: Callable[[], Mapping[int, Box]]
    size: tuple[int, int]

    @cached_property
    def boxes(self) -> Mapping[int, Box]:
        """Box of each annotated frame by frame index; DataError when it is missing or damaged."""
        return self.read()

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of the frames with a box."""
        return tuple(self.boxes)

    def mask(self, index: int) -> Mask:
        """Return the filled box of one annotated frame, bool (H, W), with sides rounded to whole pixels."""
        left, top, right, bottom = (round(side) for side in self.boxes[index])
        filled = np.zeros(self.size, dtype=np.bool_)
        filled[top:bottom, left:right] = True
        return filled

    def void(self, index: int) -> None:
        """Return None: there are no void pixels."""
        return None


def clip_box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> Box | None:
    """Clip a box to its frame.

    Args:
        left: Left side; see ``Box``.
        top: Top side.
        right: Right side.
        bottom: Bottom side.
        size: Height and width of the frame.

    Returns:
        The part inside the frame; None when it is empty.
    """
    height, width = size
    left, right = max(0.0, min(left, width)), max(0.0, min(right, width))
    top, bottom = max(0.0, min(top, height)), max(0.0, min(bottom, height))
    return (left, top, right, bottom) if right > left and bottom > top else None


def require_numbers(values: Sequence[Any], where: str) -> list[float]:
    """Check that values are numbers.

    Args:
        values: The parsed values.
        where: Name of the values in error messages.

    Returns:
        The values as floats.

    Raises:
        DataError: When one is not a number below 1e9.
    """
    for value in values:
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e9:
            raise DataError(f"{where} must be numbers.")
    return [float(value) for value in values]


def sample_moment(begin: int, end: int, rate: float, where: str) -> tuple[int, ...]:
    """Select the frames of a moment that the published evaluation scores: one per second, at most 40.

    Like the loaders of TubeDETR and VideoGLaMM: the first frame, then each frame in which a new second starts.

    Args:
        begin: First frame of the moment, counted from 0.
        end: Frame after its last.
        rate: Frames per second of the video.
        where: Name of the moment in error messages.

    Returns:
        Frame numbers, ascending.

    Raises:
        DataError: When the moment is empty, or a number is out of range.
    """
    if not (0 <= begin < end <= LONGEST_VIDEO and math.isfinite(rate) and rate >= FRAMES_PER_SECOND):
        raise DataError(
            f"{where} goes from frame {begin} to {end} at {rate:g} frames per second; a moment must have at least one "
            f"frame, a video at most {LONGEST_VIDEO:,}, at a rate of at least {FRAMES_PER_SECOND}."
        )
    share = FRAMES_PER_SECOND / rate
    chosen = [begin]
    for number in range(begin, end):
        if int(chosen[-1] * share) < int(number * share):
            chosen.append(number)
    if len(chosen) > MOST_FRAMES:
        chosen = [chosen[position * len(chosen) // MOST_FRAMES] for position in range(MOST_FRAMES)]
    return tuple(chosen)


@dataclass(frozen=True, eq=False)
class SampledFrames(VideoFileFrames):
    """Selected frames of a video file, named by their numbers in the file.

    Attributes:
        numbers: Numbers of the frames in the file, from 0, ascending.
    """

    numbers: tuple[int, ...] = ()

    @cached_property
    def names(self) -> Sequence[str]:
        """Frame names such as ``00013``; nothing is decoded."""
        return tuple(f"{number:05d}" for number in self.numbers)

    def read(self, index: int) -> ImageArray:
        """Decode one frame, uint8 RGB (H, W, 3); DataError when the file is damaged or too short."""
        return super().read(self.numbers[index])
