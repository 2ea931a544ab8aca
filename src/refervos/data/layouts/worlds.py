"""The diagnostic benchmark of ``refervos.worlds`` as a data set; clips are rendered on demand."""

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
"""The union of all splits."""

Draw = Callable[[str, int], tuple[DiagnosticCase, npt.NDArray[np.bool_]]]
"""Function that renders the case at an index of a split, with its target masks, bool (T, H, W)."""


def read_worlds(folder: Path | None, split: str, problems: Problems) -> Dataset:
    """List the diagnostic benchmark; a clip is rendered when its expression, a frame or a mask is first read.

    One clip is kept in memory at a time, so process one video after another.

    Args:
        folder: Ignored.
        split: One of ``refervos.worlds.benchmark.SPLITS``, or ``all``.
        problems: Ignored.

    Returns:
        A sample for each clip, with the split as its kind.

    Raises:
        DataError: When the split is unknown.
    """
    if split not in (ALL, *SPLITS):
        raise DataError(f"worlds has no split {split!r}; its splits are {', '.join((ALL, *SPLITS))}.")
    draw = lru_cache(maxsize=1)(_draw_case)
    wanted = SPLITS if split == ALL else (split,)
    clips = [_DrawnClip(name, index, draw) for name in wanted for index in range(case_count(name))]
    return Dataset(NAME, split, tuple(map(_sample_of, clips)))


def _sample_of(clip: _DrawnClip) -> Sample:
    video = Video(f"{clip.split.replace(' ', '-')}-{clip.index:02d}", clip)
    # The expression is known only once the clip is rendered, and rendering all clips takes minutes.
    return Sample(video, "0", clip.sentence, clip, has_target=clip.split in TARGET_SPLITS, kind=clip.split)


def _draw_case(split: str, index: int) -> tuple[DiagnosticCase, npt.NDArray[np.bool_]]:
    case = diagnostic_case(split, index)
    return case, case.clip.target_masks(case.expression)


@dataclass(frozen=True, eq=False)
class _DrawnClip:
    """Frames and ground truth of one case.

    Attributes:
        split: Split of the case.
        index: Index of the case in the split.
        draw: Function that renders it.
    """

    split: str
    index: int
    draw: Draw

    @property
    def names(self) -> Sequence[str]:
        """Frame names ``00000`` and so on."""
        return tuple(f"{number:05d}" for number in range(frame_count(self.split)))

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of all frames."""
        return range(frame_count(self.split))

    def sentence(self) -> str:
        """Return the text of the expression."""
        return self.draw(self.split, self.index)[0].expression.text

    def read(self, index: int) -> ImageArray:
        """Return one frame, uint8 RGB (H, W, 3)."""
        return self.draw(self.split, self.index)[0].clip.frames[index]

    def mask(self, index: int) -> Mask:
        """Return the target mask of one frame, bool (H, W)."""
        return self.draw(self.split, self.index)[1][index]

    def void(self, index: int) -> None:
        """Return None: there are no void pixels."""
        return None
