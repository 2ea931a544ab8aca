"""Ground-truth masks in the forms in which data sets store them, decoded on demand."""

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
"""Maximum length in pixels of one object's outlines in a frame; filling them takes 50 bytes per pixel."""

MOST_POLYGONS = 10_000
"""Maximum number of polygons of one object in a frame; each is merged with all before it."""


@dataclass(frozen=True, eq=False)
class StoredMasks:
    """Ground truth with one reader per annotated frame; no void pixels.

    Attributes:
        readers: Functions that read the mask of each annotated frame, by frame index, ascending.
    """

    readers: Mapping[int, Callable[[], Mask]]

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of the annotated frames."""
        return tuple(self.readers)

    def mask(self, index: int) -> Mask:
        """Read the mask of one annotated frame, bool (H, W); DataError when it is damaged."""
        return self.readers[index]()

    def void(self, index: int) -> None:
        """Return None: there are no void pixels."""
        return None


@dataclass(frozen=True, eq=False)
class RunLengthTracks:
    """Ground truth stored as a run-length mask per object and frame; no void pixels.

    Attributes:
        file: The file that stores them.
        tracks: Per target object id, an entry for each frame: run lengths, a list of run lengths, or None when the
            object is not visible. Empty for an expression without target.
        frames: The video's frames; the masks must have their size.
    """

    file: Path
    tracks: Mapping[str, Sequence[Any]]
    frames: ImageFrames

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of all frames."""
        return range(len(self.frames.files))

    def mask(self, index: int) -> Mask:
        """Decode the union of the objects' masks in one frame, bool (H, W); DataError when one is damaged."""
        union = np.zeros(self.frames.size, dtype=np.bool_)
        for object_id, track in self.tracks.items():
            where = f"{self.file}, annotation {object_id}, frame {self.frames.names[index]} of {self.frames.folder}"
            for rle in _run_lengths(track[index]):
                union |= decode_rle(rle, where, self.frames.size)
        return union

    def void(self, index: int) -> None:
        """Return None: there are no void pixels."""
        return None


def _run_lengths(stored: Any) -> Sequence[Any]:
    if not stored:
        return ()
    return stored if isinstance(stored, list) else (stored,)


@dataclass(frozen=True, eq=False)
class IndexedMasks:
    """Ground truth stored as an image per frame whose pixel values are object numbers.

    Attributes:
        folder: Folder of the PNG images, each named like its frame.
        frames: The video's frames; the images must have their size.
        number: Number of the target object; None when the images are binary masks of that object alone.
        void_number: Number of void pixels; None when there are none.
        unseen: Names of the frames that have no image because the object is not visible.
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
        """Read the object numbers of one frame, uint8 (H, W); DataError when the image is damaged."""
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
        """Read the mask of one frame, bool (H, W); DataError when the image is damaged."""
        numbers = self.numbers(index)
        if self.number is None:
            return binary_mask(numbers, self.folder / f"{self.frames.names[index]}.png")
        return numbers == self.number

    def void(self, index: int) -> Mask | None:
        """Read the void pixels of one frame, bool (H, W); None when there are none."""
        return None if self.void_number is None else self.numbers(index) == self.void_number


def decode_segmentations(segmentations: Iterable[Any], size: tuple[int, int], where: str) -> Mask:
    """Decode the union of COCO segmentations, which are polygons or run lengths.

    Args:
        segmentations: One per object; empty when there is no target or none is visible.
        size: Height and width of the image.
        where: Name of the segmentations in error messages.

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
        polygons: Each ``[x1, y1, x2, y2, ...]`` in pixels. Polygons of fewer than three points are ignored, as in other
            loaders.
        size: Height and width of the image.
        where: Name of the polygons in error messages.

    Returns:
        bool (H, W), the union of all.

    Raises:
        DataError: When one is not a list of coordinates, none has three points, or there are more than
            ``MOST_POLYGONS`` or a total outline above ``LONGEST_OUTLINE``.
    """
    if len(polygons) > MOST_POLYGONS:
        raise DataError(f"{where}: the object has {len(polygons):,} polygons; at most {MOST_POLYGONS:,} are read.")
    for polygon in polygons:
        if not (isinstance(polygon, list) and len(polygon) % 2 == 0 and all(map(_is_coordinate, polygon))):
            raise DataError(f"{where}: a polygon must be a list of coordinates [x1, y1, x2, y2, ...].")
    enclosing = [polygon for polygon in polygons if len(polygon) >= 6]
    if not enclosing:
        raise DataError(f"{where}: none of the polygons has three points.")
    length = sum(map(_perimeter, enclosing))
    if length > LONGEST_OUTLINE:
        raise DataError(
            f"{where}: the outline is {length:,.0f} pixels long; at most {LONGEST_OUTLINE:,} pixels are filled."
        )
    return np.asarray(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(enclosing, *size))), dtype=np.bool_)


def _perimeter(polygon: Sequence[float]) -> float:
    """Return the length in pixels of a closed outline."""
    points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e5  # False for NaN
