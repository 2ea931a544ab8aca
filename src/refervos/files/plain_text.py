"""Text that comes from outside: decoded, cut into lines, and parsed as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refervos.errors import RefervosError

BYTE_ORDER_MARK = "\ufeff"
"""What some editors put before a text."""

_MARKED_ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Encodings that a byte order mark tells, besides UTF-8."""


def decode_text(data: bytes, encodings: Sequence[str] = ("utf-8",)) -> str:
    """Decode the text of a file, without the byte order mark that may be before it.

    Args:
        data: The file's content.
        encodings: Those it may be written in where no byte order mark tells; the first that fits is taken.

    Returns:
        The text.

    Raises:
        UnicodeDecodeError: When it is no text in any of them.
    """
    if encoding := _MARKED_ENCODINGS.get(data[:2]):
        return data.decode(encoding)
    for encoding in encodings:
        try:
            return data.decode(encoding).removeprefix(BYTE_ORDER_MARK)
        except UnicodeDecodeError as error:
            reason = error
    raise reason


def read_entries(path: Path, entry: str, error: type[RefervosError]) -> list[str]:
    """Read a text file that lists something, one entry a line; empty lines are passed over.

    Args:
        path: The file.
        entry: What an entry is, such as ``sentence``, for errors.
        error: The type of error to raise.

    Returns:
        At least one entry, without the space around it.

    Raises:
        error: When there is no such file, it cannot be read, is no text, or has no entry.
    """
    wanted = f"give a text file with one {entry} a line."
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise error(f"'{path}' is no file; {wanted}")
        text = decode_text(path.read_bytes())
    except (OSError, ValueError) as reason:
        told = "it is no text in UTF-8" if isinstance(reason, UnicodeDecodeError) else _strerror(reason)
        raise error(f"'{path}' cannot be read ({told}); {wanted}") from reason
    entries = [line.strip() for line in text.splitlines() if line.strip()]
    if not entries:
        raise error(f"'{path}' has no {entry}; {wanted}")
    return entries


def _strerror(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def parse_json(text: str, where: str, error: type[RefervosError]) -> Any:
    """Parse JSON of which nobody knows who wrote it.

    Args:
        text: The text.
        where: What to call it in an error.
        error: The type of error to raise.

    Returns:
        What it holds.

    Raises:
        error: When it is no JSON, naming line and column, is nested too deep, has a number of thousands of digits, or
            an object in it has a name twice, of which JSON readers silently drop one.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        read = dict(pairs)
        if len(read) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise error(f"{where} has {twice!r} twice in the same object; each may be there once.")
        return read

    try:
        return json.loads(text.removeprefix(BYTE_ORDER_MARK), object_pairs_hook=once)
    except json.JSONDecodeError as reason:
        place = f"line {reason.lineno}, column {reason.colno}" if "\n" in text.strip() else f"column {reason.colno}"
        raise error(f"{where} is not valid JSON: {reason.msg} in {place}.") from reason
    except RecursionError:
        raise error(f"{where} is no JSON that can be read: it is nested hundreds of times.") from None
    except ValueError as reason:  # a number of thousands of digits
        raise error(f"{where} is no JSON that can be read: {reason}.") from reason
