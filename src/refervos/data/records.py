"""Read typed fields of annotation records; every error names the file and the expected value."""

from __future__ import annotations

from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, TypeVar

from refervos.errors import DataError
from refervos.files.images import MAX_PIXELS
from refervos.safe_text import printable

Kind = TypeVar("Kind", int, str, list, dict)

_DESCRIBED: dict[type, str] = {int: "a whole number", str: "text", list: "a list", dict: "an object with named fields"}

LONGEST_NAME = 255
"""Maximum length in bytes of a file or folder name."""

_LONGEST_ID = 200  # in bytes; files are named after ids, with a suffix


def require_field(record: Any, name: str, kind: type[Kind], where: str) -> Kind:
    """Read a required field of a record.

    Args:
        record: The parsed record, expected to be a dictionary.
        name: Name of the field.
        kind: Required type.
        where: Name of the record in error messages, such as "instances.json, annotation 17".

    Returns:
        The value.

    Raises:
        DataError: When the field is missing or of another type.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: {name!r} must be {_DESCRIBED[kind]}.")
    return value


def require_id(record: Any, name: str, where: str) -> str:
    """Read a required identifier, which tools write as a number or as text.

    Args:
        record: The parsed record.
        name: Name of the field.
        where: Name of the record in error messages.

    Returns:
        The identifier as text, a valid folder name.

    Raises:
        DataError: When it is missing or not a valid folder name.
    """
    value = record.get(name) if isinstance(record, dict) else None
    return as_id(value, f"{where}: {name!r}")


def records_of(content: Any, name: str, file: Path) -> Iterator[tuple[str, Any]]:
    """List the records of a file, such as its ``annotations``.

    Args:
        content: The parsed file.
        name: Name of the list, in the plural.
        file: The file.

    Yields:
        The name of each record in error messages, such as "train.json, annotation 17", and the record.

    Raises:
        DataError: When there is no such list.
    """
    for number, record in enumerate(require_field(content, name, list, str(file))):
        yield f"{file}, {name.removesuffix('s')} {number}", record


def require_new_id(record: Any, known: Container[str], kind: str, file: Path, where: str) -> str:
    """Read the ``id`` of a record, which no earlier record of its kind has.

    Args:
        record: The parsed record.
        known: The ids of earlier records.
        kind: What the record is, such as "annotation".
        file: The file.
        where: Name of the record in error messages.

    Returns:
        The identifier as text, a valid folder name.

    Raises:
        DataError: When it is missing, known already, or not a valid folder name.
    """
    id = require_id(record, "id", where)
    if id in known:
        raise DataError(f"{file} has {kind} {id} twice.")
    return id


def require_ids(record: Any, name: str, where: str) -> tuple[str, ...]:
    """Read a required list of identifiers.

    Args:
        record: The parsed record.
        name: Name of the field.
        where: Name of the record in error messages.

    Returns:
        The identifiers as text, each a valid folder name.

    Raises:
        DataError: When the list is missing, or an entry is not a valid folder name.
    """
    return tuple(as_id(value, f"{where}: {name!r}") for value in require_field(record, name, list, where))


def as_id(value: Any, where: str) -> str:
    """Convert a number or text to an identifier.

    Args:
        value: The parsed value.
        where: Name of the value in error messages.

    Returns:
        The identifier as text, a valid folder name.

    Raises:
        DataError: When it is not a valid folder name.
    """
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise DataError(f"{where} must be a number or text.")
    if isinstance(value, int) and abs(value) >= 10**18:
        raise DataError(f"{where} is a number of more than 18 digits; an id has at most 18.")
    text = str(value)
    if not is_name(text, _LONGEST_ID):
        raise DataError(
            f"{where} is {printable(ascii(text), 80)}; it names a folder of results, so it must have no slash, no "
            f"control character, and at most {_LONGEST_ID} bytes."
        )
    return text


def is_name(text: str, longest: int = LONGEST_NAME) -> bool:
    """Return whether a text is a valid name of one file or folder, which excludes paths.

    Args:
        text: The name.
        longest: Maximum length in bytes.
    """
    if text in ("", ".", "..") or any(letter in "/\\" or ord(letter) < 32 or ord(letter) == 127 for letter in text):
        return False
    try:
        return len(text.encode()) <= longest
    except UnicodeEncodeError:  # a lone surrogate
        return False


def require_size(record: Any, where: str) -> tuple[int, int]:
    """Read the required fields ``height`` and ``width``.

    Args:
        record: The parsed record.
        where: Name of the record in error messages.

    Returns:
        Height and width in pixels.

    Raises:
        DataError: When one is missing or out of range; see ``check_image_size``.
    """
    height, width = require_field(record, "height", int, where), require_field(record, "width", int, where)
    check_image_size(height, width, where)
    return height, width


def as_number(text: str) -> int | None:
    """Parse the number of a frame or an object.

    Args:
        text: At most 18 ASCII digits.

    Returns:
        The number; None for any other text, including digits of other scripts.
    """
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def check_image_size(height: int, width: int, where: str) -> None:
    """Check an image size before anything of that size is allocated.

    Args:
        height: In pixels.
        width: In pixels.
        where: Name of the image in error messages.

    Raises:
        DataError: When it is not positive, or larger than ``MAX_PIXELS`` pixels.
    """
    if not (0 < height <= MAX_PIXELS and 0 < width <= MAX_PIXELS and height * width <= MAX_PIXELS):
        size = f"{width}x{height}" if max(abs(width), abs(height)) < 10**12 else "of this size"
        raise DataError(f"{where}: an image cannot be {size}; it must have between 1 and {MAX_PIXELS:,} pixels.")
