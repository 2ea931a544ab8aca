"""Text from outside made safe to show: on a terminal, in a report, in a table."""

from __future__ import annotations

import unicodedata
from typing import Any

_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
"""What turns the direction of text, so that it reads otherwise than it is."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a cell begins with that spreadsheets take for a formula."""


def printable(text: str, longest: int | None = None) -> str:
    r"""Make a text from outside safe to show: nothing in it moves a cursor, hides or reorders what is around it.

    Args:
        text: Any, with line breaks or without; these are kept.
        longest: How many characters there may be, default any number; what is more ends in three dots.

    Returns:
        The same text, in which control characters, halves of characters (lone surrogates) and what turns the direction
        of text are written as in code, such as ``\x1b``.
    """
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_visible, text))
    return text if longest is None or len(text) <= longest else f"{text[: longest - 3]}..."


def one_line(text: str, longest: int | None = None) -> str:
    """Make a text from outside safe to show, and put it on one line: white space of any kind becomes single spaces.

    Args:
        text: Any.
        longest: See ``printable``.
    """
    return printable(" ".join(text.split()), longest)


def _visible(letter: str) -> str:
    if letter == "\n" or letter.isprintable():
        return letter
    if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") or letter in _DIRECTIONS:
        return letter.encode("unicode-escape", "surrogatepass").decode("ascii")
    return letter


def table_cell(value: Any) -> Any:
    """Make a value fit for a cell of a table that spreadsheets open, which run what looks like a formula.

    Args:
        value: Text, or anything else, which stays as it is.

    Returns:
        The text with nothing in it that moves a cursor and, where it begins like a formula, an apostrophe before it.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if value.lstrip().startswith(_FORMULA) or text.startswith(_FORMULA) else text
