"""Masks that stay as they are stored until they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from refervos.data.files import binary_mask, decode_rle, read_indices
from refervos.data.frames import ImageFrames
from refervos.data.sample import Mask
from refervos.errors import DataError

LONGEST_OUTLINE = 1_000_000
"""How many pixels the outlines of one object lead through in a frame; filling them takes 50 bytes for each."""

MOST_POLYGONS = 10_000
"""Of how many polygons one object may be made in a frame; each is put together with all before it."""


@dataclass(frozen=True, eq=False)
class StoredMasks:
    """A truth whose masks are read one by one; all pixels count.

    Attributes:
        readers: How to read the mask of each annotated frame, by the frame's index, ascending.
    """

    readers: Mapping[int, Callable[[], Mask]]

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of the frames that are annotated."""
        return tuple(self.readers)

    def mask(self, index: int) -> Mask:
        """Read the mask in one annotated frame, bool (H, W); DataError where it is damaged."""
        return self.readers[index]()

    def void(self, index: int) -> None:
        """All pixels count."""
        return None


@dataclass(frozen=True, eq=False)
class RunLengthTracks:
    """A truth stored as a run-length mask for each object and frame; all pixels count.

    Attributes:
        file: Where they were read.
        tracks: For each object meant, by its id, what is stored of each frame: run lengths, a list of such, or None
            where the object is not seen. None at all where nothing is meant.
        frames: The video's frames, whose size the masks must have.
    """

    file: Path
    tracks: Mapping[str, Sequence[Any]]
    frames: ImageFrames

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of all frames."""
        return range(len(self.frames.files))

    def mask(self, index: int) -> Mask:
        """Decode the union of the objects' masks in one frame, bool (H, W); DataError where one is damaged."""
        union = np.zeros(self.frames.size, dtype=np.bool_)
        for object_id, track in self.tracks.items():
            where = f"{self.file}, annotation {object_id}, frame {self.frames.names[index]} of {self.frames.folder}"
            for rle in _run_lengths(track[index]):
                union |= decode_rle(rle, where, self.frames.size)
        return union

    def void(self, index: int) -> None:
        """All pixels count."""
        return None


def _run_lengths(stored: Any) -> Sequence[Any]:
    if not stored:
        return ()
    return stored if isinstance(stored, list) else (stored,)


@dataclass(frozen=True, eq=False)
class NumberedPixels:
    """A truth stored as an image for each frame, in which numbers tell objects apart.

    Attributes:
        folder: Where the images are, each a PNG named after its frame.
        frames: The video's frames, whose size the images must have.
        number: Of the object meant; None where the images are masks of that object alone.
        void_number: Of the pixels that do not count; None where all do.
        unseen: Frames without an image, because the object is not seen in them.
    """

    folder: Path
    frames: ImageFrames
    number: int | None = None
    void_number: int | None = None
    unseen: frozenset[str] = frozenset()

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of all frames."""
        return range(len(self.frames.files))

    def numbers(self, index: int) -> npt.NDArray[np.uint8]:
        """Read the numbers of all objects in one frame, uint8 (H, W); DataError where the image is damaged."""
        size, name = self.frames.size, self.frames.names[index]
        if name in self.unseen:
            return np.zeros(size, dtype=np.uint8)
        path = self.folder / f"{name}.png"
        numbers = read_indices(path)
        if numbers.shape != size:
            height, width = numbers.shape
            raise DataError(f"{path} is {width}x{height}, the frames are {size[1]}x{size[0]}.")
        return numbers

    def mask(self, index: int) -> Mask:
        """Read the mask in one frame, bool (H, W); DataError where the image is damaged."""
        numbers = self.numbers(index)
        if self.number is None:
            return binary_mask(numbers, self.folder / f"{self.frames.names[index]}.png")
        return numbers == self.number

    def void(self, index: int) -> Mask | None:
        """Pixels that do not count, bool (H, W); None where all do."""
        return None if self.void_number is None else self.numbers(index) == self.void_number


def decode_segmentations(segmentations: Iterable[Any], size: tuple[int, int], where: str) -> Mask:
    """Decode what COCO calls segmentations: polygons or run lengths.

    Args:
        segmentations: One of each object; none where nothing is meant or visible.
        size: Height and width of the image.
        where: What to call them in an error.

    Returns:
        bool (H, W), the union of all.

    Raises:
        DataError: When one is damaged or has another size.
    """
    union = np.zeros(size, dtype=np.bool_)
    for segmentation in segmentations:
        if isinstance(segmentation, list):
            union |= decode_polygons(segmentation, size, where)
        else:
            union |= decode_rle(segmentation, where, size)
    return union


def decode_polygons(polygons: Sequence[Any], size: tuple[int, int], where: str) -> Mask:
    """Fill the polygons of one object as pycocotools does.

    Args:
        polygons: Each ``[x1, y1, x2, y2, ...]`` in pixels. Those of fewer than three points enclose nothing and are
            passed over, as the field's loaders do.
        size: Height and width of the image.
        where: What to call them in an error.

    Returns:
        bool (H, W), the union of all.

    Raises:
        DataError: When one is no list of coordinates, none has three points, or there is more to walk along than is
            done: at most ``MOST_POLYGONS``, ``LONGEST_OUTLINE`` pixels together.
    """
    if len(polygons) > MOST_POLYGONS:
        raise DataError(f"{where}: an object of {len(polygons):,} polygons is not read, only of {MOST_POLYGONS:,}.")
    for polygon in polygons:
        if not (isinstance(polygon, list) and len(polygon) % 2 == 0 and all(map(_is_coordinate, polygon))):
            raise DataError(f"{where}: a polygon must be a list of coordinates [x1, y1, x2, y2, ...].")
    enclosing = [polygon for polygon in polygons if len(polygon) >= 6]
    if not enclosing:
        raise DataError(f"{where}: no polygon has three points.")
    length = sum(map(_length_of, enclosing))
    if length > LONGEST_OUTLINE:
        raise DataError(
            f"{where}: the outline is {length:,.0f} pixels long; it is filled up to {LONGEST_OUTLINE:,} pixels."
        )
    return np.asarray(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(enclosing, *size))), dtype=np.bool_)


def _length_of(polygon: Sequence[float]) -> float:
    """How many pixels an outline leads through, the way back to its beginning too."""
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e5  # which is not true of what is no number
