"""Taking fields out of what annotation files hold; every error names the file and what would be right."""

from __future__ import annotations

from typing import Any, TypeVar

from refervos.errors import DataError

Kind = TypeVar("Kind", int, str, list, dict)

_DESCRIBED: dict[type, str] = {int: "a whole number", str: "text", list: "a list", dict: "an object with named fields"}

_LONGEST_SIDE = 65535  # of a JPEG; a larger number is a mistake, and a mask of that size would take all memory


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
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise DataError(f"{where}: {name!r} must be a number or text.")
    text = str(value)
    if text in ("", ".", "..") or any(letter in text for letter in "/\\\0"):
        raise DataError(
            f"{where}: {name!r} is {text!r}; results are put into a folder of that name, so it has no slash."
        )
    return text


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
    if not (0 < height <= _LONGEST_SIDE and 0 < width <= _LONGEST_SIDE):
        raise DataError(f"{where}: an image cannot be {width}x{height} pixels.")
    return height, width
