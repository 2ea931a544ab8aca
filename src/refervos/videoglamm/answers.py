"""Parsing of grounded answers: ``<p> phrase </p> [SEG]`` becomes plain text and phrases with character spans."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

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
        segments: Indices of its ``[SEG]`` tokens among those of the answer; the mask is their union.
    """

    text: str
    start: int
    end: int
    segments: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """A parsed answer.

    Attributes:
        text: The answer without markup.
        phrases: Phrases with a mask, in order.
        raw: The generated text.
    """

    text: str
    phrases: tuple[Phrase, ...]
    raw: str


def parse_answer(raw: str) -> Answer:
    """Parse a generated answer.

    Malformed markup is tolerated: a phrase without ``[SEG]`` is plain text, a ``[SEG]`` without a phrase has an empty
    phrase, and an unclosed phrase ends at its ``[SEG]``.

    Args:
        raw: The generated text.

    Returns:
        The text without markup and surplus spaces, and the phrases with their character spans.
    """
    text = ""
    phrases: list[Phrase] = []
    opened: int | None = None  # start of the open phrase
    closed: tuple[int, int] | None = None  # the last closed phrase, if only spaces followed it
    segments = 0
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
            start, end = closed or (len(text), len(text)) if opened is None else _span(text, opened)
            opened, closed = None, (start, end)
            if phrases and start < end and (phrases[-1].start, phrases[-1].end) == (start, end):
                phrases[-1] = replace(phrases[-1], segments=(*phrases[-1].segments, segments))
            else:
                phrases.append(Phrase(text[start:end], start, end, (segments,)))
            segments += 1
    shown = text.rstrip()
    fitted = [
        replace(phrase, start=min(phrase.start, len(shown)), end=min(phrase.end, len(shown))) for phrase in phrases
    ]
    return Answer(shown, tuple(fitted), raw)


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
    """Return the span of a phrase that began at ``start``, without spaces around it."""
    words = text[start:]
    first = start + len(words) - len(words.lstrip())
    return first, max(first, len(text.rstrip()))
