"""The diagnostic benchmark of ``refervos.worlds`` as a data set: nothing to download, every clip drawn when wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refervos.data.files import Problems
from refervos.data.sample import Dataset, ImageArray, Mask, Sample, Video
from refervos.errors import DataError
from refervos.worlds.benchmark import (
    SPLITS,
    TARGET_SPLITS,
    DiagnosticCase,
    case_count,
    diagnostic_case,
    frame_count,
)

NAME = "worlds"

ALL = "all"
"""The split that holds all others."""

Draw = Callable[[str, int], tuple[DiagnosticCase, npt.NDArray[np.bool_]]]
"""Draws the case of a split and an index, and the masks bool (T, H, W) that its sentence means."""


def read_worlds(folder: Path | None, split: str, problems: Problems) -> Dataset:
    """Lay out the diagnostic benchmark; a clip is drawn when its sentence, a frame or a mask is first wanted.

    One clip is held at a time, so ask about one video before the next.

    Args:
        folder: Not needed.
        split: One of ``refervos.worlds.benchmark.SPLITS``, or ``all``.
        problems: Never told anything.

    Returns:
        A sample for each clip, with the split as its kind.

    Raises:
        DataError: When there is no such split.
    """
    if split not in (ALL, *SPLITS):
        raise DataError(f"worlds has no split {split!r}; its splits are {', '.join((ALL, *SPLITS))}.")
    draw = lru_cache(maxsize=1)(_drawn)
    wanted = SPLITS if split == ALL else (split,)
    clips = [_DrawnClip(name, index, draw) for name in wanted for index in range(case_count(name))]
    return Dataset(NAME, split, tuple(map(_sample_of, clips)))


def _sample_of(clip: _DrawnClip) -> Sample:
    video = Video(f"{clip.split.replace(' ', '-')}-{clip.index:02d}", clip)
    # The sentence is known when the clip is drawn, and to draw all of them takes minutes.
    return Sample(video, "0", clip.sentence, clip, has_target=clip.split in TARGET_SPLITS, kind=clip.split)


def _drawn(split: str, index: int) -> tuple[DiagnosticCase, npt.NDArray[np.bool_]]:
    case = diagnostic_case(split, index)
    return case, case.clip.target_masks(case.referral)


@dataclass(frozen=True, eq=False)
class _DrawnClip:
    """Frames and truth of one case.

    Attributes:
        split: Which case.
        index: Likewise.
        draw: How to come by it.
    """

    split: str
    index: int
    draw: Draw

    @property
    def names(self) -> Sequence[str]:
        """``00000`` and so on."""
        return tuple(f"{number:05d}" for number in range(frame_count(self.split)))

    @property
    def annotated(self) -> Sequence[int]:
        """Every frame."""
        return range(frame_count(self.split))

    def sentence(self) -> str:
        """What is asked."""
        return self.draw(self.split, self.index)[0].referral.text

    def read(self, index: int) -> ImageArray:
        """One frame, uint8 RGB (H, W, 3)."""
        return self.draw(self.split, self.index)[0].clip.frames[index]

    def mask(self, index: int) -> Mask:
        """What is meant in one frame, bool (H, W)."""
        return self.draw(self.split, self.index)[1][index]

    def void(self, index: int) -> None:
        """All pixels count."""
        return None
