"""Questions about the video of a session with their answers, as they are kept with the session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class AnswerPart:
    """A part of an answer.

    Attributes:
        text: The text.
        track: Number of the track, for a phrase with masks.
        colour: RGB of that track when the question was answered, 0 to 255.
    """

    text: str
    track: int | None = None
    colour: tuple[int, int, int] | None = None


@dataclass
class AskedQuestion:
    """A question with its answer, which may still be growing.

    Attributes:
        question: The question.
        parts: The answer so far.
        unknown_words: Words of the question that the model cannot read.
        problem: Sentence about what ended the answer, if anything did.
    """

    question: str
    parts: list[AnswerPart] = field(default_factory=list)
    unknown_words: list[str] = field(default_factory=list)
    problem: str | None = None

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> AskedQuestion:
        """Rebuild a question that ``dataclasses.asdict`` described."""
        parts = [
            AnswerPart(part["text"], part["track"], None if part["colour"] is None else tuple(part["colour"]))
            for part in values["parts"]
        ]
        return cls(**{**values, "parts": parts})
