"""Read the files of a data set; every error names the file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from refervos.data.records import LONGEST_NAME, check_image_size
from refervos.data.sample import ImageArray, Mask
from refervos.errors import DataError
from refervos.files.images import SUFFIXES, image_file_size, opened_image, read_image
from refervos.files.plain_text import BYTE_ORDER_MARK, decode_text, parse_json

IMAGE_SUFFIXES = tuple(sorted(SUFFIXES))
"""File suffixes of frames, in lower case."""

PUBLISHED_ENCODINGS = ("utf-8", "cp1252", "latin-1")
"""Encodings tried for published text files that state none; cp1252 leaves five bytes undefined."""

LONGEST_PATH = 4000
"""Maximum length in characters of a path in an annotation file."""


class Problems:
    """Problems of a data set, raised immediately or collected for a report.

    Args:
        keep_going: Collect problems instead of raising them; the affected items are skipped.
        allow_outside: Allow annotations to name files outside the data set's folder.
    """

    def __init__(self, *, keep_going: bool = False, allow_outside: bool = False) -> None:
        self.keep_going = keep_going
        self.allow_outside = allow_outside
        self.found: list[str] = []
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        """Record something that may be correct but deserves a check, such as an assumption.

        Args:
            sentence: One sentence: which file, what was found, how it was interpreted.
        """
        self.notes.append(sentence)

    def report(self, sentence: str) -> None:
        """Raise or collect a problem.

        Args:
            sentence: One sentence: which file, what is wrong, what would be right.

        Raises:
            DataError: Unless problems are collected.
        """
        if not self.keep_going:
            raise DataError(sentence)
        self.found.append(sentence)

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Collect a ``DataError`` raised inside the block and continue after it.

        Raises:
            DataError: The same, unless problems are collected.
        """
        try:
            yield
        except DataError as error:
            if not self.keep_going:
                raise
            self.found.append(str(error))


def list_folder(folder: Path) -> list[str]:
    """List the names in a folder.

    Args:
        folder: The folder.

    Returns:
        Names of files and folders, sorted, without hidden ones.

    Raises:
        DataError: When it is missing or not a readable folder.
    """
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} is not a readable folder ({error.strerror}).") from error


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        DataError: When it is missing, not a regular file, or unreadable.
    """
    try:
        if not path.is_file() and path.exists():
            raise DataError(f"{path} is not a regular file.")  # reading a pipe would block forever
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def read_text(path: Path, encodings: Sequence[str] = ("utf-8",)) -> str:
    """Read a text file.

    Args:
        path: The file.
        encodings: Encodings to try, in order, when there is no byte order mark.

    Returns:
        Its content, without a byte order mark.

    Raises:
        DataError: When it is missing or cannot be decoded with any of the encodings.
    """
    data = read_bytes(path)
    try:
        return decode_text(data, encodings)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as text: {error}.") from error


def read_lines(path: Path, encodings: Sequence[str] = ("utf-8",)) -> list[str]:
    """Read the lines of a text file, split at line feeds only, as editors do.

    Args:
        path: The file.
        encodings: See ``read_text``.

    Returns:
        The lines without line endings and without byte order marks, which concatenated files have inside.

    Raises:
        DataError: See ``read_text``.
    """
    return [line.removesuffix("\r").removeprefix(BYTE_ORDER_MARK) for line in read_text(path, encodings).split("\n")]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        DataError: When it is missing or not valid JSON (with line and column), or an object has a duplicate name, which
            JSON readers silently drop.
    """
    return parse_json(read_text(path), str(path), DataError)


def read_rows(path: Path, columns: int, problems: Problems, *, header: bool = False) -> list[list[str]]:
    """Read a CSV file.

    Args:
        path: The file.
        columns: Required number of columns.
        problems: Collects rows with more or fewer columns, which are skipped.
        header: Whether the first row is a header, which is skipped.

    Returns:
        The rows, with white space around the values removed.

    Raises:
        DataError: When the file is missing or not valid CSV.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, PUBLISHED_ENCODINGS), newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is not valid CSV: {error}.") from error
    kept = []
    for number, row in enumerate(rows, start=1):
        if not row or (header and number == 1):
            continue
        if len(row) == columns:
            kept.append([value.strip() for value in row])
        else:
            problems.report(f"{path}, row {number}, has {len(row)} columns; it should have {columns}.")
    return kept


def read_frame(path: Path) -> ImageArray:
    """Read an image file as upright RGB.

    Args:
        path: An image in any format of ``refervos.files.images``.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: When it is missing, not an image, or too large.
    """
    return read_image(_require_exists(path), DataError)


def image_size(path: Path) -> tuple[int, int]:
    """Read the size of an image from its header.

    Args:
        path: An image in any format of ``refervos.files.images``.

    Returns:
        Height and width of the upright image in pixels.

    Raises:
        DataError: When it is missing, not an image, or too large.
    """
    return image_file_size(_require_exists(path), DataError)


def read_indices(path: Path) -> npt.NDArray[np.uint8]:
    """Read the pixel values stored in a mask image: palette indices or grey levels.

    Args:
        path: A PNG with a palette or with 1-bit or 8-bit grey levels (a set bit is 1).

    Returns:
        uint8 (H, W).

    Raises:
        DataError: When it is missing, not an image, or stores colours.
    """
    with opened_image(_require_exists(path), DataError) as image:
        if image.format != "PNG":
            raise DataError(f"{path} is a {image.format} file despite its name; a mask image must be a PNG.")
        if image.mode not in ("P", "L", "1"):
            stored = "16 bits per pixel" if image.mode.startswith("I") else f"colours (mode {image.mode})"
            raise DataError(f"{path} stores {stored}; a mask image must have a palette or 8-bit grey levels.")
        return np.array(image, dtype=np.uint8)


def require_inside(base: Path, name: str, where: str, problems: Problems) -> Path:
    """Resolve a path from an annotation file, which must stay inside the data set.

    Args:
        base: Folder that the path is relative to. Paths that leave it through ``..``, an absolute path or a link are
            refused.
        name: The path as written in the annotations.
        where: Position in the annotations, for error messages.
        problems: States whether files outside are allowed.

    Returns:
        The path; the file may be missing.

    Raises:
        DataError: When it leads outside or is not a valid path.
    """
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    try:
        too_long = any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(name).parts) or len(name) > LONGEST_PATH
    except UnicodeEncodeError:
        raise DataError(f"{where}: {shown!a} is not a valid path; it contains a lone surrogate.") from None
    if too_long or "\0" in name:
        raise DataError(f"{where}: {shown!r} is not a valid path; it is too long or contains a null character.")
    path = base / name
    if "\\" in name and os.sep == "/" and not path.exists():
        raise DataError(f"{where}: {shown!r} has backslashes; write paths in annotations with forward slashes.")
    try:
        if problems.allow_outside or path.resolve().is_relative_to(base.resolve()):
            return path
    except (OSError, RuntimeError):  # links that lead to themselves
        raise DataError(f"{where}: {path} cannot be resolved; its links form a loop.") from None
    raise DataError(
        f"{where}: {shown!r} is outside {base}; files outside the data set are read only with --allow-outside."
    )


def binary_mask(values: npt.NDArray[np.uint8], path: Path, advice: str = "") -> Mask:
    """Convert the pixel values of a binary image, 0 and 255 or 0 and 1, to a mask.

    Args:
        values: uint8 (H, W), from ``read_indices``.
        path: The image, for error messages.
        advice: Remedy to append to the error message.

    Returns:
        bool (H, W).

    Raises:
        DataError: When it has other values, from several objects, anti-aliased edges or void pixels.
    """
    mask = values != 0
    highest = int(values.max(initial=0))
    if highest not in (0, 1, 255) or (values[mask] != highest).any():
        found = np.unique(values)
        listed = ", ".join(map(str, found[:4])) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
        raise DataError(f"{path} is not binary; expected 0 and 255, or 0 and 1, found {listed}{advice}.")
    return mask


def report_missing(folder: Path, names: Iterable[str], problems: Problems) -> bool:
    """Report the files that are missing from a folder.

    Args:
        folder: The folder.
        names: File names expected in it.
        problems: Collects each missing file, or only the folder when that is missing.

    Returns:
        Whether the folder exists.
    """
    try:
        present = set(os.listdir(folder))
    except OSError:
        problems.report(f"{folder} is missing.")
        return False
    for name in names:
        if name not in present:
            problems.report(f"{folder / name} is missing.")
    return True


def _require_exists(path: Path) -> Path:
    """Return the path; a missing file raises the sentence of ``report_missing``, so that it is listed only once."""
    if not os.path.lexists(path):
        raise DataError(f"{path} is missing.")
    return path


def decode_rle(rle: Mapping[str, Any], where: str, size: tuple[int, int] | None = None) -> Mask:
    """Decode a COCO run-length mask, compressed (text) or uncompressed (a list of run lengths).

    Args:
        rle: ``size`` (height, width) and ``counts``.
        where: Name of the mask in error messages, such as "mask_dict.json, annotation 17, frame 3".
        size: Required height and width, if known.

    Returns:
        bool (H, W).

    Raises:
        DataError: When it is damaged or has another size.
    """
    shape, counts = (rle.get("size"), rle.get("counts")) if isinstance(rle, Mapping) else (None, None)
    if not (
        isinstance(shape, Sequence) and len(shape) == 2 and all(isinstance(side, int) and side > 0 for side in shape)
    ):
        raise DataError(f"{where}: this is not a run-length mask; it needs 'size' [height, width] and 'counts'.")
    height, width = shape
    check_image_size(height, width, where)
    if size is not None and (height, width) != size:
        raise DataError(f"{where}: the mask is {width}x{height}, the frames are {size[1]}x{size[0]}.")
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise DataError(f"{where}: the run lengths do not add up to {width}x{height} pixels.")
        values = np.arange(len(counts)) % 2 == 1
        return np.repeat(values, counts).reshape(width, height).T  # runs go down the columns
    if not isinstance(counts, str | bytes):
        raise DataError(f"{where}: this is not a run-length mask; its 'counts' must be text or a list of run lengths.")
    data = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    if _total_run_length(data) != height * width:  # pycocotools would write out of bounds
        raise DataError(f"{where}: the run lengths do not add up to {width}x{height} pixels.")
    return np.asarray(coco_mask.decode({"size": [height, width], "counts": data}), dtype=np.bool_)


def _total_run_length(counts: bytes) -> int | None:
    """Return the sum of the run lengths of a compressed mask; None when the text is malformed.

    In COCO's mask format each number is a series of characters with five bits each, lowest first, and a continuation
    bit; from the fourth number on it is the difference to the number two before.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 60:  # longer than any run
            return None
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            if runs[-1] < 0:
                return None
            value = shift = 0
    return sum(runs) if not shift else None
