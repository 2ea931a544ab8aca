"""Grounded text: ``<p> phrase </p> [SEG]`` in an answer marks a phrase that has a mask."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SEG = "[SEG]"
OPEN = "<p>"
CLOSE = "</p>"

_MARKS = re.compile("|".join(re.escape(mark) for mark in (SEG, OPEN, CLOSE)))
_PUNCTUATION = tuple(".,;:!?)")
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Phrase:
    """A phrase of an answer that has a mask.

    Attributes:
        text: The phrase; empty for a ``[SEG]`` without a phrase, as in "It is [SEG]."
        start: Position of its first character in the answer's text.
        end: Position after its last character.
    """

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Answer:
    """A parsed answer.

    Attributes:
        text: The answer without markup.
        phrases: One for each ``[SEG]``, in order. Several ``[SEG]`` after one phrase have the same span.
        raw: The text with markup.
        settled: Number of characters of ``text`` that do not change if ``raw`` continues, and that belong to no phrase
            but those found.
    """

    text: str
    phrases: tuple[Phrase, ...]
    raw: str
    settled: int


def parse_answer(raw: str) -> Answer:
    """Parse an answer.

    Malformed markup is tolerated: a phrase without ``[SEG]`` is plain text, a ``[SEG]`` without a phrase has an empty
    phrase, and an unclosed phrase ends at its ``[SEG]``.

    Args:
        raw: The text with markup.

    Returns:
        The text without markup and surplus spaces, and the phrases with their character spans.
    """
    text = ""
    spans: list[tuple[int, int]] = []
    opened: int | None = None  # start of the open phrase
    closed: tuple[int, int] | None = None  # the last closed phrase, if only spaces followed it
    place = 0
    for mark in [*_MARKS.finditer(raw), None]:
        text, added = _joined(text, raw[place : mark.start() if mark else len(raw)])
        closed = None if added else closed
        if mark is None:
            break
        place = mark.end()
        if mark[0] == OPEN:
            opened, closed = len(text), None
        elif mark[0] == CLOSE:
            closed = None if opened is None else _span(text, opened)
            opened = None
        else:
            span = closed or _span(text, len(text)) if opened is None else _span(text, opened)
            opened, closed = None, span
            spans.append(span)
    shown = text.rstrip()
    undecided = opened if opened is not None else closed[0] if closed and closed not in spans else len(shown)
    fitted = [(min(start, len(shown)), min(end, len(shown))) for start, end in spans]
    phrases = tuple(Phrase(shown[start:end], start, end) for start, end in fitted)
    return Answer(shown, phrases, raw, min(undecided, len(shown)))


def stable(raw: str) -> str:
    """Drop an incomplete mark or character at the end of a partial answer.

    Args:
        raw: The text generated so far.

    Returns:
        The prefix whose parsed text does not change when more is generated.
    """
    raw = raw.rstrip(_UNFINISHED)
    longest = max(len(mark) for mark in (SEG, OPEN, CLOSE))
    for length in range(min(longest - 1, len(raw)), 0, -1):
        if any(mark.startswith(raw[-length:]) for mark in (SEG, OPEN, CLOSE)):
            return raw[:-length]
    return raw


def tagged(text: str, phrases: Sequence[tuple[int, int]]) -> str:
    """Return a text with markup: ``<p> phrase </p> [SEG]``, and ``[SEG]`` alone for an empty phrase.

    Args:
        text: The text without markup.
        phrases: Start and end of each phrase, in the order of the text, none inside another.
    """
    parts, position = [], 0
    for start, end in phrases:
        words = text[start:end]
        parts.append(text[position:start])
        parts.append(f"{OPEN} {words} {CLOSE} {SEG}" if words else f" {SEG}")
        position = end
    return "".join((*parts, text[position:])).lstrip(" ")


def _joined(text: str, more: str) -> tuple[str, bool]:
    """Append the text after a mark; also return whether it is more than spaces."""
    bare = more.lstrip(" ")
    if not bare:
        return (text, False) if not text or text[-1].isspace() or not more else (text + " ", False)
    if bare.startswith(_PUNCTUATION):
        return text.rstrip(" ") + bare, True
    if not text or text[-1].isspace():
        return text + bare, True
    return text + (" " if bare != more else "") + bare, True


def _span(text: str, start: int) -> tuple[int, int]:
    """Return the span of a phrase that began at ``start``, without spaces around it; empty if there is no word."""
    words = text[start:]
    end = len(text.rstrip())
    return min(start + len(words) - len(words.lstrip()), end), end
