"""Reading the files that data sets are made of; every error names the file."""

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

from refervos.data.records import LONGEST_NAME, require_size
from refervos.data.sample import ImageArray, Mask
from refervos.errors import DataError
from refervos.files.images import SUFFIXES, image_file_size, opened_image, read_image
from refervos.files.plain_text import BYTE_ORDER_MARK, decode_text, parse_json

IMAGE_SUFFIXES = tuple(sorted(SUFFIXES))
"""What frames are stored as, in lower case."""

PUBLISHED_ENCODINGS = ("utf-8", "cp1252", "latin-1")
"""What published texts of which nobody says the encoding are written in; the second has no letter for five bytes."""

LONGEST_PATH = 4000
"""How many letters a path that annotations tell may have."""


class Problems:
    """Problems of a data set, raised at once or collected for a report.

    Args:
        keep_going: Collect problems instead of raising them; whoever reports one goes on without the item concerned.
        allow_outside: Read files that annotations name although they are outside the data set's folder.
    """

    def __init__(self, *, keep_going: bool = False, allow_outside: bool = False) -> None:
        self.keep_going = keep_going
        self.allow_outside = allow_outside
        self.found: list[str] = []
        self.notes: list[str] = []

    def note(self, sentence: str) -> None:
        """Note what may be right but should be looked at, such as an assumption.

        Args:
            sentence: One sentence: which file, what was found, what it was taken for.
        """
        self.notes.append(sentence)

    def report(self, sentence: str) -> None:
        """Raise or collect one problem.

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
        """Collect a ``DataError`` raised inside, and continue after the block.

        Raises:
            DataError: The same, unless problems are collected.
        """
        try:
            yield
        except DataError as error:
            if not self.keep_going:
                raise
            self.found.append(str(error))


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        DataError: When it is missing, no ordinary file, or cannot be read.
    """
    try:
        if not path.is_file() and path.exists():
            raise DataError(f"{path} is no file.")  # reading a pipe would wait for ever
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} is missing.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def read_text(path: Path, encodings: Sequence[str] = ("utf-8",)) -> str:
    """Read a text file.

    Args:
        path: The file.
        encodings: Those it may be written in where no byte order mark tells; the first that fits is taken.

    Returns:
        Its content, without a byte order mark.

    Raises:
        DataError: When it is missing or no text in any of the encodings.
    """
    data = read_bytes(path)
    try:
        return decode_text(data, encodings)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read as text: {error}.") from error


def read_lines(path: Path, encodings: Sequence[str] = ("utf-8",)) -> list[str]:
    """Read a text file line by line, as editors count lines.

    Args:
        path: The file.
        encodings: As of ``read_text``.

    Returns:
        The lines without their ends; of files that were put together, without byte order marks.

    Raises:
        DataError: When it is missing or no text in any of the encodings.
    """
    return [line.removesuffix("\r").removeprefix(BYTE_ORDER_MARK) for line in read_text(path, encodings).split("\n")]


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
        path: The file.

    Returns:
        What it holds.

    Raises:
        DataError: When it is missing or no valid JSON, naming line and column; or an object in it has a name twice,
            of which JSON readers silently drop one.
    """
    return parse_json(read_text(path), str(path), DataError)


def read_rows(path: Path, columns: int, problems: Problems, *, header: bool = False) -> list[list[str]]:
    """Read a table of comma-separated values.

    Args:
        path: The file.
        columns: How many there must be.
        problems: Told of rows with more or fewer, which are left out.
        header: Whether the first row names the columns; it is left out.

    Returns:
        The rows, without space around the values.

    Raises:
        DataError: When the file is missing or no such table.
    """
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, PUBLISHED_ENCODINGS), newline=""), strict=True))
    except csv.Error as error:
        raise DataError(f"{path} is no table of comma-separated values: {error}.") from error
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
        path: Any image of ``refervos.files.images``.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DataError: When it is missing, no image, or too large.
    """
    return read_image(_there(path), DataError)


def image_size(path: Path) -> tuple[int, int]:
    """Find out how large an image is, from its first bytes only.

    Args:
        path: Any image of ``refervos.files.images``.

    Returns:
        Height and width of the upright image in pixels.

    Raises:
        DataError: When it is missing, no image, or too large.
    """
    return image_file_size(_there(path), DataError)


def read_indices(path: Path) -> npt.NDArray[np.uint8]:
    """Read a mask image as the numbers stored in it: palette indices, or grey levels.

    Args:
        path: A PNG with a palette, or with grey levels (1 or 8 bit; a bit counts as 1).

    Returns:
        uint8 (H, W).

    Raises:
        DataError: When it is missing, no image, or stores colours instead of numbers.
    """
    with opened_image(_there(path), DataError) as image:
        if image.format != "PNG":
            raise DataError(f"{path} is a {image.format}, whatever its name says; a mask image is a PNG.")
        if image.mode not in ("P", "L", "1"):
            stored = "16 bits a pixel" if image.mode.startswith("I") else f"colours (mode {image.mode})"
            raise DataError(f"{path} stores {stored}; a mask image has a palette or 8-bit grey levels.")
        return np.array(image, dtype=np.uint8)


def inside(base: Path, told: str, where: str, problems: Problems) -> Path:
    """Find a file that annotations name, which they may do only inside their data set.

    Args:
        base: What it is relative to; nothing outside of it is read, not by ``..``, nor by an absolute path, nor by a
            link.
        told: The path that is told.
        where: What to call the place where it is told in an error.
        problems: Knows whether files outside are allowed.

    Returns:
        The path, whether it is there or not.

    Raises:
        DataError: When it leads outside, or can be no path.
    """
    shown = told if len(told) <= 100 else f"{told[:100]}..."
    try:
        too_long = any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(told).parts) or len(told) > LONGEST_PATH
    except UnicodeEncodeError:
        raise DataError(f"{where}: {shown!a} can be no path; it has half a character (a lone surrogate).") from None
    if too_long or "\0" in told:
        raise DataError(f"{where}: {shown!r} can be no path; it is too long, or has a character that no path has.")
    path = base / told
    if "\\" in told and os.sep == "/" and not path.exists():
        raise DataError(f"{where}: {shown!r} has backslashes; write paths in annotations with forward slashes.")
    try:
        if problems.allow_outside or path.resolve().is_relative_to(base.resolve()):
            return path
    except (OSError, RuntimeError):  # links that lead to themselves
        raise DataError(f"{where}: {path} cannot be followed; it leads through links without end.") from None
    raise DataError(
        f"{where}: {shown!r} leads out of {base}; files outside are read only where that is allowed (--allow-outside)."
    )


def binary_mask(numbers: npt.NDArray[np.uint8], path: Path, advice: str = "") -> Mask:
    """Take an image of numbers for the mask of one object: 0 and 255, or 0 and 1.

    Args:
        numbers: uint8 (H, W), as ``read_indices`` reads them.
        path: The image, for an error.
        advice: What else may be done, for an error.

    Returns:
        bool (H, W).

    Raises:
        DataError: When it holds other numbers, such as several objects, smoothed edges or pixels that do not count.
    """
    mask = numbers != 0
    highest = int(numbers.max(initial=0))
    if highest not in (0, 1, 255) or (numbers[mask] != highest).any():
        held = np.unique(numbers)
        told = ", ".join(map(str, held[:4])) + (f" and {len(held) - 4} more" if len(held) > 4 else "")
        raise DataError(f"{path} is not binary; a mask holds 0 and 255, or 0 and 1, and this one {told}{advice}.")
    return mask


def report_missing(folder: Path, names: Iterable[str], problems: Problems) -> bool:
    """Tell which files are not there.

    Args:
        folder: Where they should be.
        names: Of the files.
        problems: Told of each that is missing; of the folder alone where that is.

    Returns:
        Whether the folder is there.
    """
    try:
        there = set(os.listdir(folder))
    except OSError:
        problems.report(f"{folder} is missing.")
        return False
    for name in names:
        if name not in there:
            problems.report(f"{folder / name} is missing.")
    return True


def _there(path: Path) -> Path:
    """The same path; one that is missing is told as ``report_missing`` does, so that it is told once."""
    if not os.path.lexists(path):
        raise DataError(f"{path} is missing.")
    return path


def decode_rle(rle: Mapping[str, Any], where: str, size: tuple[int, int] | None = None) -> Mask:
    """Decode a COCO run-length mask, compressed (text) or not (list of run lengths).

    Args:
        rle: ``size`` (height, width) and ``counts``.
        where: What to call it in an error, such as "mask_dict.json, annotation 17, frame 3".
        size: Height and width that it must have, where known.

    Returns:
        bool (H, W).

    Raises:
        DataError: When it is damaged or has another size.
    """
    shape, counts = (rle.get("size"), rle.get("counts")) if isinstance(rle, Mapping) else (None, None)
    if not (
        isinstance(shape, Sequence) and len(shape) == 2 and all(isinstance(side, int) and side > 0 for side in shape)
    ):
        raise DataError(f"{where}: this is no run-length mask; it needs 'size' [height, width] and 'counts'.")
    height, width = shape
    require_size(height, width, where)
    if size is not None and (height, width) != size:
        raise DataError(f"{where}: the mask is {width}x{height}, the frames are {size[1]}x{size[0]}.")
    if isinstance(counts, list):
        if not all(isinstance(run, int) and run >= 0 for run in counts) or sum(counts) != height * width:
            raise DataError(f"{where}: the run lengths do not add up to {width}x{height} pixels.")
        values = np.arange(len(counts)) % 2 == 1
        return np.repeat(values, counts).reshape(width, height).T  # runs go down the columns
    if not isinstance(counts, str | bytes):
        raise DataError(f"{where}: this is no run-length mask; its 'counts' must be text or a list of run lengths.")
    data = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    if _pixels_of(data) != height * width:  # the decoder writes outside its memory on such data
        raise DataError(f"{where}: the run lengths do not add up to {width}x{height} pixels.")
    return np.asarray(coco_mask.decode({"size": [height, width], "counts": data}), dtype=np.bool_)


def _pixels_of(counts: bytes) -> int | None:
    """Sum of the run lengths of a compressed mask; None where the text is none.

    Each number is a series of characters of five bits, lowest first, with a bit that says whether more follow; from the
    fourth on it is the difference to the number two before (COCO's mask format).
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = letter - 48
        if not 0 <= bits < 64 or shift > 60:  # no run is that long
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
