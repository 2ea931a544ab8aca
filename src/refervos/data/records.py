"""Taking fields out of what annotation files hold; every error names the file and what would be right."""

from __future__ import annotations

from typing import Any, TypeVar

from refervos.errors import DataError
from refervos.files.images import MAX_PIXELS
from refervos.safe_text import printable

Kind = TypeVar("Kind", int, str, list, dict)

_DESCRIBED: dict[type, str] = {int: "a whole number", str: "text", list: "a list", dict: "an object with named fields"}

LONGEST_NAME = 255
"""How many bytes the name of a file or folder may have."""

_LONGEST_ID = 200  # in bytes; files are named after ids, with a suffix


def take(record: Any, name: str, kind: type[Kind], where: str) -> Kind:
    """Take a field of a record.

    Args:
        record: What was read, hopefully a dictionary.
        name: Of the field.
        kind: What it must be.
        where: What to call the record in an error, such as "instances.json, annotation 17".

    Returns:
        The value.

    Raises:
        DataError: When the record has no such field, or it is something else.
    """
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where}: {name!r} must be {_DESCRIBED[kind]}.")
    return value


def take_id(record: Any, name: str, where: str) -> str:
    """Take an identifier, which tools write as a number or as text.

    Args:
        record: What was read.
        name: Of the field.
        where: What to call the record in an error.

    Returns:
        The identifier as text, fit to name a folder after.

    Raises:
        DataError: When there is none, or it could not name a folder.
    """
    value = record.get(name) if isinstance(record, dict) else None
    return as_id(value, f"{where}: {name!r}")


def take_ids(record: Any, name: str, where: str) -> tuple[str, ...]:
    """Take a list of identifiers.

    Args:
        record: What was read.
        name: Of the field.
        where: What to call the record in an error.

    Returns:
        The identifiers as text, each fit to name a folder after.

    Raises:
        DataError: When there is no list, or one could not name a folder.
    """
    return tuple(as_id(value, f"{where}: {name!r}") for value in take(record, name, list, where))


def as_id(value: Any, where: str) -> str:
    """Take a value for an identifier, which tools write as a number or as text.

    Args:
        value: What was read.
        where: What to call it in an error.

    Returns:
        The identifier as text, fit to name a folder after.

    Raises:
        DataError: When it could not name a folder.
    """
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise DataError(f"{where} must be a number or text.")
    if isinstance(value, int) and abs(value) >= 10**18:
        raise DataError(f"{where} is a number of more than 18 digits, which is no id.")
    text = str(value)
    if not is_name(text, _LONGEST_ID):
        raise DataError(
            f"{where} is {printable(ascii(text), 80)}; results are put into a folder of that name, so it has no slash, "
            f"no control character, and at most {_LONGEST_ID} bytes."
        )
    return text


def is_name(text: str, longest: int = LONGEST_NAME) -> bool:
    """Whether a file or a folder can have a name; no path can, which might lead elsewhere.

    Args:
        text: The name.
        longest: How many bytes it may have.
    """
    if text in ("", ".", "..") or any(letter in "/\\" or ord(letter) < 32 or ord(letter) == 127 for letter in text):
        return False
    try:
        return len(text.encode()) <= longest
    except UnicodeEncodeError:  # half a character
        return False


def take_size(record: Any, where: str) -> tuple[int, int]:
    """Take ``height`` and ``width``.

    Args:
        record: What was read.
        where: What to call the record in an error.

    Returns:
        Height and width in pixels.

    Raises:
        DataError: When one is missing or no size of an image.
    """
    height, width = take(record, "height", int, where), take(record, "width", int, where)
    require_size(height, width, where)
    return height, width


def as_number(text: str) -> int | None:
    """Read a number of a frame or an object.

    Args:
        text: Plain digits, at most 18.

    Returns:
        The number; None where it is something else, such as digits that only other scripts have.
    """
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def require_size(height: int, width: int, where: str) -> None:
    """Make sure that an image may have a size, before anything of that size is made.

    Args:
        height: In pixels.
        width: In pixels.
        where: What to call it in an error.

    Raises:
        DataError: When it is no size of an image, or larger than is read.
    """
    if not (0 < height <= MAX_PIXELS and 0 < width <= MAX_PIXELS and height * width <= MAX_PIXELS):
        told = f"{width}x{height}" if max(abs(width), abs(height)) < 10**12 else "of such a size"
        raise DataError(f"{where}: an image cannot be {told}; it has one pixel at least, and at most {MAX_PIXELS:,}.")
