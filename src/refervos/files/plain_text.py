"""Decode and parse untrusted text: encodings, lists with one entry per line, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refervos.errors import RefervosError

BYTE_ORDER_MARK = "\ufeff"
"""Written by some editors at the start of a file."""

_MARKED_ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""Encodings identified by a byte order mark, besides UTF-8."""


def decode_text(data: bytes, encodings: Sequence[str] = ("utf-8",)) -> str:
    """Decode the content of a text file and remove the byte order mark, if any.

    Args:
        data: The file's content.
        encodings: Encodings to try if there is no byte order mark; the first that fits is used.

    Returns:
        The text.

    Raises:
        UnicodeDecodeError: When no encoding fits.
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
    """Read a text file with one entry per line; empty lines are skipped.

    Args:
        path: The file.
        entry: Name of an entry in error messages, such as ``sentence``.
        error: Type of error to raise.

    Returns:
        At least one entry, stripped of surrounding white space.

    Raises:
        error: When the file is missing, unreadable, not UTF-8, or has no entry.
    """
    advice = f"give a text file with one {entry} per line."
    try:
        if path.exists() and not path.is_file():  # reading a pipe could block forever
            raise error(f"'{path}' is not a file; {advice}")
        text = decode_text(path.read_bytes())
    except (OSError, ValueError) as reason:
        problem = "it is not UTF-8 text" if isinstance(reason, UnicodeDecodeError) else _strerror(reason)
        raise error(f"'{path}' cannot be read ({problem}); {advice}") from reason
    entries = [line.strip() for line in text.splitlines() if line.strip()]
    if not entries:
        raise error(f"'{path}' has no {entry}; {advice}")
    return entries


def _strerror(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def parse_json(text: str, where: str, error: type[RefervosError]) -> Any:
    """Parse untrusted JSON.

    Args:
        text: The text.
        where: Name of the text in error messages.
        error: Type of error to raise.

    Returns:
        The parsed value.

    Raises:
        error: When it is not JSON (the message names line and column), is nested too deeply, has a number with
            thousands of digits, or has an object with a duplicate name, which JSON readers silently drop.
    """

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            duplicate = next(name for name in names if names.count(name) > 1)
            raise error(f"{where} has {duplicate!r} twice in the same object; names must be unique.")
        return values

    try:
        return json.loads(text.removeprefix(BYTE_ORDER_MARK), object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as reason:
        place = f"line {reason.lineno}, column {reason.colno}" if "\n" in text.strip() else f"column {reason.colno}"
        raise error(f"{where} is not valid JSON: {reason.msg} in {place}.") from reason
    except RecursionError:
        raise error(f"{where} is not readable JSON: it is nested hundreds of levels deep.") from None
    except ValueError as reason:  # a number with thousands of digits
        raise error(f"{where} is not readable JSON: {reason}.") from reason
