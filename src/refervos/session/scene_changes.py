"""Detection of scene cuts and repeated frames between consecutive frames of a stream, without a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refervos.errors import FrameError
from refervos.session.state_files import check_state, check_tensor

Floats = npt.NDArray[np.float32]

_ROWS = 128
"""Frames are compared on at least this many evenly spaced rows (all rows, where a frame has fewer)."""

_CELLS, _PER_CELL = 16, 6
"""Side of the thumbnail in cells, and side of a cell in samples: a mean of 36 hides noise and small movements."""

_POOL = np.repeat(np.eye(_CELLS, dtype=np.float32), _PER_CELL, axis=1) / _PER_CELL
"""Averages samples into cells along an axis (16, 96); as a matrix product, several times faster than ``mean``."""

_LEVELS = 8
"""Levels per channel in the colour histogram."""

_LEAST_CONTRAST = 4.0
"""Standard deviation of the thumbnail, in grey levels, below which a frame counts as blank."""

_GRAIN = 2.0
"""Grey levels of the thumbnail that count as noise, so that dark frames are not compared by their noise."""

_SPREAD = 1.6
"""Histogram levels per standard deviation of the samples, in the histogram that ignores brightness and contrast."""

_LEAST_CUT = 0.36
"""Least difference at a cut. Frames of a synthetic scene differed by at most 0.33 (0.38 in strong flicker), across cuts
by at least 0.42."""

_LEAST_CUT_AFTER_BLANK = 0.45
"""Least difference at a cut after blank frames: larger, because objects moved meanwhile."""

_CUT_RATIO = 3.0
"""A cut must exceed the running mean difference by this factor, so that flicker and fast motion are no cuts."""

_NEWEST_WEIGHT = 1 / 16
"""Weight of the newest frame in the running mean."""


@dataclass(frozen=True)
class Change:
    """Change between two consecutive frames.

    Attributes:
        cut: Whether there is a scene cut between them.
        repeated: Whether the second frame repeats the first.
        difference: Difference of the two, from 0 to 1; 0 where one of them is blank.
    """

    cut: bool
    repeated: bool
    difference: float


@dataclass(frozen=True, eq=False)
class Picture:
    """Summary of a frame for comparing it with others.

    Attributes:
        thumbnail: float32 (3, 16, 16), minus the mean of each channel.
        colours: float32 (512,), normalised colour histogram.
        relative_colours: float32 (512,), histogram of the colours minus their mean, in standard deviations.
    """

    thumbnail: Floats
    colours: Floats
    relative_colours: Floats

    @classmethod
    def of(cls, rows: npt.NDArray[np.uint8]) -> Picture:
        """Summarise some rows of a frame (3, R, W)."""
        count = _CELLS * _PER_CELL
        down, across = (np.arange(count) * length // count for length in rows.shape[1:])
        samples = rows[:, down[:, None], across]  # (3, 96, 96)
        values = samples.astype(np.float32)
        cells = _POOL @ values @ _POOL.T  # (3, 16, 16)
        mean = cells.mean(axis=(1, 2), keepdims=True)
        values -= mean
        scale = _SPREAD / max(float(values.std()), _LEAST_CONTRAST)
        levels = np.clip(values * scale + _LEVELS / 2, 0, _LEVELS - 1)
        return cls(
            thumbnail=cells - mean,
            colours=_colour_histogram(samples // (256 // _LEVELS)),
            relative_colours=_colour_histogram(levels.astype(np.uint8)),
        )

    @property
    def blank(self) -> bool:
        """True when the frame shows almost no contrast."""
        return float(self.thumbnail.std()) < _LEAST_CONTRAST

    def difference(self, other: Picture, *, any_brightness: bool) -> float:
        """Compute the difference from another frame, from 0 (same scene) to 1.

        Args:
            other: The frame to compare with.
            any_brightness: Ignore brightness and contrast.
        """
        grain = self.thumbnail.size * _GRAIN**2
        strength = float(np.sqrt((self.thumbnail**2).sum() * (other.thumbnail**2).sum()))
        correlation = (float((self.thumbnail * other.thumbnail).sum()) + grain) / (strength + grain)
        structure = min(1.0, max(0.0, 1 - correlation))
        palette = float(np.abs(self.relative_colours - other.relative_colours).sum()) / 2
        if not any_brightness:
            palette = min(palette, float(np.abs(self.colours - other.colours).sum()) / 2)
        return (structure * palette) ** 0.5


@dataclass
class FrameChanges:
    """Detector of scene cuts and repeated frames; keeps a few rows and a thumbnail of one frame.

    *A cut* changes both layout and colours, so the difference is the geometric mean of two terms: one minus the
    correlation of the thumbnails, and one minus the overlap of the colour histograms. A moving camera or a large object
    that enters hardly changes the second. Flicker, flashes and lamps switched on hardly change the first, and change
    the second only through brightness and contrast, which is why the smaller distance of two pairs of histograms
    counts, with and without them. The difference does not depend on the frame's size, so a change of resolution is no
    cut. The threshold rises with the recent differences.

    *Blank frames* (white, black, any single colour) are skipped: the next frame is compared with the last one before
    them, by colours without brightness. So a white flash and a camera that goes dark for a while are no cuts, and a
    fade through black to another scene is one, detected as the new scene appears. A dissolve of one scene into another
    is not detected. A single foreign frame in a scene gives two cuts: at the first, it is unknown that the scene will
    come back.

    *A repeated frame* equals the previous one exactly, on evenly spaced rows. A camera that films a still scene repeats
    nothing, because its noise differs; one that hangs, or a sender that fills gaps, does. A looser test would not be
    safe: a small moving object changes less than compression does. A re-encoded copy is therefore detected only once
    the encoder has nothing left to refine. Motion within a 128th of the frame's height may fall between the rows.

    The state is plain numbers and arrays in main memory, wherever the frames are.

    Attributes:
        rows: uint8 (3, R, W), the compared rows of the previous frame; None before the first.
        picture: Summary of the last frame that was not blank; None before the first.
        blank: Whether the previous frame was blank.
        usual: Running mean of the differences within scenes.
    """

    rows: npt.NDArray[np.uint8] | None = None
    picture: Picture | None = None
    blank: bool = False
    usual: float = 0.0

    def check_restored(self) -> None:
        """Check state read from a file.

        Raises:
            StateError: When ``update`` could not have left it.
        """
        check_state(0 <= self.usual <= 1, "the mean difference of its frames is out of range")
        if self.rows is not None:
            check_tensor(self.rows, "the rows of a frame", (3, None, None), np.uint8)
            check_state(0 not in self.rows.shape, "the rows of a frame are empty")
        if self.picture is not None:
            check_tensor(self.picture.thumbnail, "a thumbnail", (3, _CELLS, _CELLS), np.float32)
            for colours in (self.picture.colours, self.picture.relative_colours):
                check_tensor(colours, "the colours of a frame", (_LEVELS**3,), np.float32)

    def update(self, frame: Tensor) -> Change:
        """Compare a frame with the previous one, and keep it for comparison with the next.

        Args:
            frame: uint8 RGB (3, H, W), of any size and on any device.

        Returns:
            The change; no change for the first frame.

        Raises:
            FrameError: When the frame is not such an image.
        """
        if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[0] != 3 or 0 in frame.shape:
            raise FrameError(f"the frame is {frame.dtype} {tuple(frame.shape)}; it must be uint8 (3, height, width).")
        rows = frame[:, :: max(1, frame.shape[1] // _ROWS)].cpu().numpy()
        if self.rows is not None and np.array_equal(rows, self.rows):
            return Change(cut=False, repeated=True, difference=0.0)
        # A copy, because the caller may overwrite the frame; in its memory layout, usually that of (H, W, 3).
        self.rows = rows.copy(order="K")
        picture = Picture.of(self.rows)
        before, after_blank = self.picture, self.blank
        self.blank = picture.blank
        if picture.blank:
            return Change(cut=False, repeated=False, difference=0.0)
        self.picture = picture
        if before is None:
            return Change(cut=False, repeated=False, difference=0.0)
        difference = picture.difference(before, any_brightness=after_blank)
        least = _LEAST_CUT_AFTER_BLANK if after_blank else _LEAST_CUT
        cut = difference > max(least, _CUT_RATIO * self.usual)
        if not cut:
            self.usual += _NEWEST_WEIGHT * (difference - self.usual)
        return Change(cut=cut, repeated=False, difference=difference)


def _colour_histogram(levels: npt.NDArray[np.uint8]) -> Floats:
    """Compute the normalised histogram (512,) of quantised colours (3, ...)."""
    red, green, blue = levels.reshape(3, -1).astype(np.intp)
    counts = np.bincount((red * _LEVELS + green) * _LEVELS + blue, minlength=_LEVELS**3)
    return counts.astype(np.float32) / np.float32(red.size)
