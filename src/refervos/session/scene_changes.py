"""What changed between one frame of a stream and the next, without a model: scene cuts and repeated frames."""

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
"""A frame is compared with the one before on at least so many of its rows, evenly spaced (all, where it has fewer)."""

_CELLS, _PER_CELL = 16, 6
"""Side of the thumbnail, and of each cell in samples: the mean of 36 hides noise and small movements."""

_POOL = np.repeat(np.eye(_CELLS, dtype=np.float32), _PER_CELL, axis=1) / _PER_CELL
"""Takes means of samples along an axis (16, 96); as a product of matrices, several times faster than ``mean``."""

_LEVELS = 8
"""Levels of each channel in the histogram of colours."""

_LEAST_CONTRAST = 4.0
"""Grey levels, standard deviation of the thumbnail. With less, a frame is blank: nothing of a scene can be seen."""

_GRAIN = 2.0
"""Grey levels of the thumbnail that are taken for noise, so that dim pictures are not compared by their noise."""

_SPREAD = 1.6
"""Levels of the histogram that a standard deviation of the samples is, where brightness and contrast are set aside."""

_LEAST_CUT = 0.36
"""Within drawn scenes, frames differed by at most 0.33 (0.38 in strong flicker), at their joins by at least 0.42."""

_LEAST_CUT_AFTER_BLANK = 0.45
"""More, because things moved meanwhile."""

_UNUSUAL = 3.0
"""A cut differs by so many times what has lately been usual, which keeps flicker and fast motion from being one."""

_RATE = 1 / 16
"""Share of the newest frame in what is usual."""


@dataclass(frozen=True)
class Change:
    """What lies between two consecutive frames.

    Attributes:
        cut: Whether a scene cut does.
        repeated: Whether this frame is the same picture as the one before.
        difference: How different the two are, from 0 to 1; 0 where one of them shows nothing.
    """

    cut: bool
    repeated: bool
    difference: float


@dataclass(frozen=True, eq=False)
class Picture:
    """What is remembered of a frame to compare others with.

    Attributes:
        thumbnail: float32 (3, 16, 16), about the mean of each channel.
        colours: float32 (512,), the share of each colour.
        relative_colours: float32 (512,), the same of colours about their mean, in standard deviations.
    """

    thumbnail: Floats
    colours: Floats
    relative_colours: Floats

    @classmethod
    def of(cls, rows: npt.NDArray[np.uint8]) -> Picture:
        """Look at some rows of a frame (3, R, W)."""
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
            colours=_share_of_colours(samples // (256 // _LEVELS)),
            relative_colours=_share_of_colours(levels.astype(np.uint8)),
        )

    @property
    def blank(self) -> bool:
        """Whether next to nothing can be seen."""
        return float(self.thumbnail.std()) < _LEAST_CONTRAST

    def difference(self, other: Picture, *, any_brightness: bool) -> float:
        """From 0, the same scene, to 1.

        Args:
            other: The picture to compare with.
            any_brightness: Whether brightness and contrast tell nothing.
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
    """Watches a stream for scene cuts and repeated frames; keeps a few rows and a thumbnail of one frame.

    *A cut* changes where things are and which colours there are, both at once, so the difference is the geometric mean
    of two: how little the thumbnails correlate, and how little the histograms of colours overlap. A moving camera and
    a large object that comes in hardly change the second; flicker, flashes and lamps that go on hardly change the
    first, and of the second only what is lost when brightness and contrast are set aside, which is why the smaller
    distance of two pairs of histograms counts. Nothing of this depends on the frame's size, so a change of resolution
    is no cut. What counts as a cut rises with the differences that have lately been usual.

    *Blank frames* (white, black, any one colour) are passed over: the next picture is compared with the last one, by
    the colours without brightness. So a white flash and a camera that goes dark for a while are no cuts, and a fade
    through black to another scene is one, found as the new scene appears. A dissolve of one scene into another is not
    found. One foreign frame in a scene is two cuts: at the first nobody can know that the scene will come back.

    *A repeated frame* equals the one before exactly, on evenly spaced rows. A camera that films a still scene repeats
    nothing, for its noise differs; one that hangs, or a sender that fills gaps, does. Nothing looser would be safe: a
    small object that moves changes less than compression does. A copy that was encoded anew is therefore found only
    once the encoder has nothing left to refine. What moves within a 128th of the frame's height may lie between rows.

    The state is plain numbers and arrays in main memory, wherever the frames are.

    Attributes:
        rows: uint8 (3, R, W), the rows of the frame before that are compared; None before the first.
        picture: Of the last frame that was not blank; None before the first.
        blank: Whether the frame before was blank.
        usual: Running mean of the differences within scenes.
    """

    rows: npt.NDArray[np.uint8] | None = None
    picture: Picture | None = None
    blank: bool = False
    usual: float = 0.0

    def check_restored(self) -> None:
        """Check what was read from a file.

        Raises:
            StateError: When it is not what ``look`` keeps.
        """
        check_state(0 <= self.usual <= 1, "the difference of frames is out of range")
        if self.rows is not None:
            check_tensor(self.rows, "the rows of a frame", (3, None, None), np.uint8)
            check_state(0 not in self.rows.shape, "the rows of a frame are empty")
        if self.picture is not None:
            check_tensor(self.picture.thumbnail, "a thumbnail", (3, _CELLS, _CELLS), np.float32)
            for colours in (self.picture.colours, self.picture.relative_colours):
                check_tensor(colours, "the colours of a frame", (_LEVELS**3,), np.float32)

    def look(self, frame: Tensor) -> Change:
        """Compare a frame with the one before, and keep what the next will be compared with.

        Args:
            frame: uint8 RGB (3, H, W), of any size and on any device.

        Returns:
            The change; of the first frame, none.

        Raises:
            FrameError: When the frame is something else.
        """
        if frame.dtype != torch.uint8 or frame.ndim != 3 or frame.shape[0] != 3 or 0 in frame.shape:
            raise FrameError(f"the frame is {frame.dtype} {tuple(frame.shape)}; it must be uint8 (3, height, width).")
        rows = frame[:, :: max(1, frame.shape[1] // _ROWS)].cpu().numpy()
        if self.rows is not None and np.array_equal(rows, self.rows):
            return Change(cut=False, repeated=True, difference=0.0)
        # The caller may write the next frame over this one. Most frames are views of (H, W, 3): copied as they lie.
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
        cut = difference > max(least, _UNUSUAL * self.usual)
        if not cut:
            self.usual += _RATE * (difference - self.usual)
        return Change(cut=cut, repeated=False, difference=difference)


def _share_of_colours(levels: npt.NDArray[np.uint8]) -> Floats:
    """Which share of samples (3, ...) has each colour (512,), from their levels of each channel."""
    red, green, blue = levels.reshape(3, -1).astype(np.intp)
    counts = np.bincount((red * _LEVELS + green) * _LEVELS + blue, minlength=_LEVELS**3)
    return counts.astype(np.float32) / np.float32(red.size)
