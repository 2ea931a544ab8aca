"""Make untrusted text safe to print: on a terminal, in a report, in a table."""

from __future__ import annotations

import unicodedata
from typing import Any

_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
"""Characters that change the direction of text, so that it reads differently from what it says."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters of cells that spreadsheets take for formulas."""


def printable(text: str, longest: int | None = None) -> str:
    r"""Make an untrusted text safe to print: it cannot move the cursor, nor hide or reorder its surroundings.

    Args:
        text: Any text; line breaks are kept.
        longest: Maximum number of characters, default unlimited; a longer text is cut and ends in three dots.

    Returns:
        The same text with control characters, lone surrogates and direction marks written as escapes such as ``\x1b``.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_escaped, text))
    return text if longest is None or len(text) <= longest else f"{text[: longest - 3]}..."


def one_line(text: str, longest: int | None = None) -> str:
    """Make an untrusted text safe to print on one line: runs of white space become single spaces.

    Args:
        text: Any text.
        longest: See ``printable``.
    """
    return printable(" ".join(text.split()), longest)


def _escaped(character: str) -> str:
    if character == "\n" or character.isprintable():
        return character
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS:
        return character.encode("unicode-escape", "surrogatepass").decode("ascii")
    return character


def table_cell(value: Any) -> Any:
    """Make a value safe for a table cell: spreadsheets execute text that looks like a formula.

    Args:
        value: Text; any other value is returned unchanged.

    Returns:
        The printable text, with an apostrophe before anything that begins like a formula.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if value.lstrip().startswith(_FORMULA) or text.startswith(_FORMULA) else text
