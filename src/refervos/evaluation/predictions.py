"""Predicted masks as files, in the layout of the field's servers: ``<video>/<expression_id>/<frame>.png``."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from refervos.data.files import binary_mask, read_indices
from refervos.data.layouts.ref_davis import ANNOTATORS
from refervos.data.records import as_number
from refervos.data.sample import Mask, Sample
from refervos.errors import DataError, EvaluationError

ANNOTATOR = "anno_"
"""What the folders of ``MergedPredictions`` begin with, before the annotator's number."""

MERGED_FOLDERS = ("valid", "val")
"""Where these folders may be below the one that is given."""

INNER_FOLDERS = ("predictions", "Annotations")
"""Where the masks are when a folder of ``refervos eval`` is given, or one laid out as a Ref-YouTube-VOS submission."""


@dataclass(frozen=True)
class Predictions:
    """Masks of any system for the expressions of a data set.

    Attributes:
        folder: The folder that holds one folder for each video.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Predictions:
        """Find the masks in a folder.

        Args:
            folder: The folder of the videos, one of ``refervos eval``, one that holds ``Annotations``, or one of
                ``MergedPredictions``.

        Raises:
            EvaluationError: When there is no such folder.
        """
        if not folder.is_dir():
            raise EvaluationError(f"{folder} is no folder; give one that holds <video>/<expression>/<frame>.png.")
        for place in (folder, *(folder / name for name in MERGED_FOLDERS)):
            if (place / f"{ANNOTATOR}0").is_dir():
                return MergedPredictions(place)
        return cls(next((folder / name for name in INNER_FOLDERS if (folder / name).is_dir()), folder))

    def of(self, sample: Sample) -> Path:
        """The folder of an expression's masks, whether it is there or not."""
        return self.folder / sample.video.id / sample.expression_id

    def names(self, sample: Sample) -> frozenset[str]:
        """Frames of an expression that have a mask, whether they are in the video or not."""
        return stems(self.of(sample))

    def mask(self, sample: Sample, frame: str, size: tuple[int, int] | None = None) -> Mask:
        """Read one mask.

        Args:
            sample: The expression.
            frame: Name of the frame.
            size: Height and width that it must have, where known.

        Returns:
            bool (H, W).

        Raises:
            EvaluationError: When it is missing, damaged, not binary or of another size.
        """
        return read_mask(self.of(sample) / f"{frame}.png", size)


@dataclass(frozen=True)
class MergedPredictions(Predictions):
    """Answers as published code writes them for Ref-DAVIS17 (``inference_davis.py`` of ReferFormer and descendants).

    An annotator's answers about a video are merged: ``anno_0/<video>/<frame>.png`` holds k + 1 where the answer to the
    k-th of its expressions is. Pixels that were in several answers are in one of them only.
    """

    def of(self, sample: Sample) -> Path:
        """The folder of the merged answers among which an expression's is, whether it is there or not.

        Raises:
            EvaluationError: When the expression is none of Ref-DAVIS17, to which four in a row are about one object.
        """
        if sample.annotator is None or as_number(sample.expression_id) is None:
            raise EvaluationError(
                f"{self.folder} holds {ANNOTATOR}0, as answers to Ref-DAVIS17 do; another data set's are in "
                "<video>/<expression>/<frame>.png."
            )
        return self.merged(sample.video.id, sample.annotator)

    def merged(self, video: str, annotator: str) -> Path:
        """The folder of an annotator's merged answers about a video."""
        return self.folder / f"{ANNOTATOR}{annotator}" / video

    def mask(self, sample: Sample, frame: str, size: tuple[int, int] | None = None) -> Mask:
        """Take one answer out of the merged ones; see ``Predictions``."""
        numbers = read_numbers(self.of(sample) / f"{frame}.png", size)
        return numbers == int(sample.expression_id) // len(ANNOTATORS) + 1


def stems(folder: Path) -> frozenset[str]:
    """Names of a folder's PNG files without suffix; none where there is no folder."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be read ({error.strerror}).") from error
    return frozenset(name.removesuffix(".png") for name in names if name.endswith(".png"))


def read_mask(path: Path, size: tuple[int, int] | None = None) -> Mask:
    """Read a mask image: 0 and 255, 0 and 1, or a palette's first two entries.

    Args:
        path: A PNG.
        size: Height and width that it must have, where known.

    Returns:
        bool (H, W).

    Raises:
        EvaluationError: When it is missing, damaged, not binary or of another size.
    """
    numbers = read_numbers(path, size)
    try:
        return binary_mask(numbers, path)
    except DataError as error:
        raise EvaluationError(str(error)) from error


def read_numbers(path: Path, size: tuple[int, int] | None = None) -> npt.NDArray[np.uint8]:
    """Read an image of numbers, such as a palette's indices.

    Args:
        path: A PNG.
        size: Height and width that it must have, where known.

    Returns:
        uint8 (H, W).

    Raises:
        EvaluationError: When it is missing, damaged or of another size.
    """
    try:
        numbers = read_indices(path)
    except DataError as error:
        raise EvaluationError(str(error)) from error
    if size is not None and numbers.shape != size:
        height, width = numbers.shape
        raise EvaluationError(f"{path} is {width}x{height}; the frames are {size[1]}x{size[0]}.")
    return numbers


def mask_png(mask: Mask) -> bytes:
    """A mask as the servers want it: an 8-bit grey PNG of 0 and 255.

    Args:
        mask: bool (H, W).

    Returns:
        The file's content, the same for the same mask.
    """
    return png(Image.fromarray(mask.view(np.uint8) * np.uint8(255)))


def png(image: Image.Image) -> bytes:
    """An image as a PNG file's content."""
    data = io.BytesIO()
    image.save(data, format="PNG", compress_level=3)  # masks hardly get smaller with more effort
    return data.getvalue()
