"""Predicted masks as files in the layout of the evaluation servers: ``<video>/<expression_id>/<frame>.png``."""

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
"""Prefix of the folders of ``MergedPredictions``, before the annotator's number."""

MERGED_FOLDERS = ("valid", "val")
"""Sub-folders in which these folders may be."""

INNER_FOLDERS = ("predictions", "Annotations")
"""Sub-folders of the masks in a folder of ``refervos eval`` or a Ref-YouTube-VOS submission."""


@dataclass(frozen=True)
class Predictions:
    """Masks of any system for the expressions of a data set.

    Attributes:
        folder: Folder with one sub-folder per video.
    """

    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Predictions:
        """Find the masks in a folder.

        Args:
            folder: Folder with one sub-folder per video, a folder of ``refervos eval``, one that holds
                ``Annotations``, or one of ``MergedPredictions``.

        Raises:
            EvaluationError: When the folder does not exist.
        """
        if not folder.is_dir():
            raise EvaluationError(f"{folder} is not a folder; give one that holds <video>/<expression>/<frame>.png.")
        for parent in (folder, *(folder / name for name in MERGED_FOLDERS)):
            if (parent / f"{ANNOTATOR}0").is_dir():
                return MergedPredictions(parent)
        return cls(next((folder / name for name in INNER_FOLDERS if (folder / name).is_dir()), folder))

    def of(self, sample: Sample) -> Path:
        """Return the folder of an expression's masks, which need not exist."""
        return self.folder / sample.video.id / sample.expression_id

    def names(self, sample: Sample) -> frozenset[str]:
        """Return the names of an expression's mask files, including any that are not frames of the video."""
        return stems(self.of(sample))

    def mask(self, sample: Sample, frame: str, size: tuple[int, int] | None = None) -> Mask:
        """Read one mask.

        Args:
            sample: The expression.
            frame: Name of the frame.
            size: Required height and width, if known.

        Returns:
            bool (H, W).

        Raises:
            EvaluationError: When it is missing, damaged, not binary or of another size.
        """
        return read_mask(self.of(sample) / f"{frame}.png", size)


@dataclass(frozen=True)
class MergedPredictions(Predictions):
    """Predictions for Ref-DAVIS17 in the layout of published code (``inference_davis.py`` of ReferFormer and others).

    An annotator's predictions for a video are merged: ``anno_0/<video>/<frame>.png`` holds k + 1 at the pixels of the
    k-th expression, each pixel belonging to one expression only.
    """

    def of(self, sample: Sample) -> Path:
        """Return the folder of the merged predictions that include an expression's; it need not exist.

        Raises:
            EvaluationError: When the expression is not from Ref-DAVIS17, where four in a row are about one object.
        """
        if sample.annotator is None or as_number(sample.expression_id) is None:
            raise EvaluationError(
                f"{self.folder} holds {ANNOTATOR}0, the layout of Ref-DAVIS17; masks for other data sets must be in "
                "<video>/<expression>/<frame>.png."
            )
        return self.merged(sample.video.id, sample.annotator)

    def merged(self, video: str, annotator: str) -> Path:
        """Return the folder of an annotator's merged predictions for a video."""
        return self.folder / f"{ANNOTATOR}{annotator}" / video

    def mask(self, sample: Sample, frame: str, size: tuple[int, int] | None = None) -> Mask:
        """Extract one mask from the merged predictions; see ``Predictions``."""
        numbers = read_numbers(self.of(sample) / f"{frame}.png", size)
        return numbers == int(sample.expression_id) // len(ANNOTATORS) + 1


def stems(folder: Path) -> frozenset[str]:
    """Return the names of a folder's PNG files without suffix; empty if the folder does not exist."""
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
        size: Required height and width, if known.

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
        size: Required height and width, if known.

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
    """Encode a mask as evaluation servers require it: an 8-bit grey PNG of 0 and 255.

    Args:
        mask: bool (H, W).

    Returns:
        The content of the file, the same for equal masks.
    """
    return png(Image.fromarray(mask.view(np.uint8) * np.uint8(255)))


def png(image: Image.Image) -> bytes:
    """Encode an image as the content of a PNG file."""
    data = io.BytesIO()
    image.save(data, format="PNG", compress_level=3)  # higher levels hardly shrink masks
    return data.getvalue()
