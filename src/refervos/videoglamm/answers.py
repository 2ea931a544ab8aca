"""Grounded answers: ``<p> phrase </p> [SEG]`` inline becomes text, and phrases with their place in it."""

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
        text: Its words; empty where a ``[SEG]`` stands without a phrase, as in "It is [SEG]."
        start: Position of its first character in the answer's text.
        end: Position after its last character.
        segments: Which of the answer's ``[SEG]`` belong to it, counted from 0; several are one object in parts.
    """

    text: str
    start: int
    end: int
    segments: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """A parsed answer.

    Attributes:
        text: What a person reads, without marks.
        phrases: Those with a mask, in order.
        raw: What the model wrote.
    """

    text: str
    phrases: tuple[Phrase, ...]
    raw: str


def parse_answer(raw: str) -> Answer:
    """Take an answer apart into text and phrases.

    Whatever a model writes has a meaning: a phrase without ``[SEG]`` is plain text, a ``[SEG]`` without a phrase has an
    empty one, and a phrase that is not closed ends at its ``[SEG]``.

    Args:
        raw: The answer as it was written.

    Returns:
        Text without marks and without the spaces that they leave, and phrases with their place in it.
    """
    text = ""
    phrases: list[Phrase] = []
    opened: int | None = None  # where the phrase that is open began
    closed: tuple[int, int] | None = None  # the phrase that was closed last, while nothing but spaces followed
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
    """Cut off the end of an answer that is still being written where what follows may change its meaning.

    Args:
        raw: The answer so far.

    Returns:
        What stays, without the beginning of a mark or of a character.
    """
    raw = raw.rstrip(_UNFINISHED)
    longest = max(len(mark) for mark in (SEG, OPEN, CLOSE))
    for length in range(min(longest - 1, len(raw)), 0, -1):
        if any(mark.startswith(raw[-length:]) for mark in (SEG, OPEN, CLOSE)):
            return raw[:-length]
    return raw


def _joined(text: str, more: str) -> tuple[str, bool]:
    """Text with more after it, where a mark stood between; and whether that is more than spaces."""
    bare = more.lstrip(" ")
    if not bare:
        return (text, False) if not text or text[-1].isspace() or not more else (text + " ", False)
    if bare.startswith(_PUNCTUATION):
        return text.rstrip(" ") + bare, True
    if not text or text[-1].isspace():
        return text + bare, True
    return text + (" " if bare != more else "") + bare, True


def _span(text: str, start: int) -> tuple[int, int]:
    """From where a phrase begins to its last letter."""
    words = text[start:]
    first = start + len(words) - len(words.lstrip())
    return first, max(first, len(text.rstrip()))
