"""Grounded conversations about a video, in which phrases of an answer have masks.

A data set of grounded conversations has them beside its samples (``Dataset.conversations``). Each phrase is also a
sample: an expression about the video with its masks, so that everything that takes samples takes phrases.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from refervos.data.sample import Dataset, GroundTruth, Sample, Video
from refervos.text.grounded import tagged

GCG_QUESTION = (
    "Could you please give me a detailed description of the video? Please respond with interleaved segmentation masks "
    "for the corresponding parts of the answer."
)
"""Question of the published evaluation of grounded conversation generation, the same for every video."""

LONGEST_ANSWER = 100_000
"""Maximum number of characters of an annotated answer; published ones have a few hundred."""

# Matches cannot start inside a match, so parsing takes linear time.
_MARKED = re.compile(r"\[([^\[\]]+)\]\(([^()]+)\)")
_NUMBERED = re.compile(r"<p>([^<>]*)</p>\s*\[SEG:(\d{1,9})\]")


@dataclass(frozen=True, eq=False)
class GroundedPhrase:
    """A phrase of an answer, with the objects that it names.

    Attributes:
        start: Index of its first character in the answer.
        end: Index after its last character; the same index in "It is [SEG].", which has a mask without a phrase.
        object_ids: The data set's ids of the objects, if known.
        ground_truth: Their masks; None if they are not public.
    """

    start: int
    end: int
    object_ids: tuple[str, ...] = ()
    ground_truth: GroundTruth | None = None


@dataclass(frozen=True, eq=False)
class Turn:
    """A question about a video and its answer.

    Attributes:
        question: The question.
        answer: The answer as plain text, without tags.
        phrases: Its grounded phrases, in the order of the text, not nested; possibly none.
        kind: Kind of question, if the data set defines kinds.
        is_true: Function that decides whether a tagged text is a true answer, if the data set can decide that.
    """

    question: str
    answer: str
    phrases: tuple[GroundedPhrase, ...] = ()
    kind: str | None = None
    is_true: Callable[[str], bool] | None = None

    def text_of(self, phrase: GroundedPhrase) -> str:
        """Return the words of a phrase."""
        return self.answer[phrase.start : phrase.end]

    @property
    def tagged(self) -> str:
        """The answer with tags, as in training data; see ``text.grounded.tagged``."""
        return tagged(self.answer, [(phrase.start, phrase.end) for phrase in self.phrases])


@dataclass(frozen=True, eq=False)
class Conversation:
    """A conversation about a video.

    Attributes:
        video: The video; all conversations about a video share one object.
        id: Unique within the video, also the name of its folder in predictions.
        turns: Questions and answers, at least one; later questions may refer to earlier turns.
    """

    video: Video
    id: str
    turns: tuple[Turn, ...] = field(repr=False)

    @property
    def key(self) -> tuple[str, str]:
        """Ids of the video and the conversation, a unique pair in a data set."""
        return self.video.id, self.id


def with_conversations(name: str, split: str, conversations: Sequence[Conversation]) -> Dataset:
    """Build a data set of conversations, with their phrases as samples.

    Args:
        name: Name of the benchmark.
        split: Name of the split.
        conversations: Conversations of the split; those about one video are adjacent.

    Returns:
        The data set. The expression id of a phrase is ``<conversation>-<turn>-<phrase>``, counted from 0; masks without
        a phrase are no samples.
    """
    return Dataset(name, split, tuple(_phrases(conversations)), tuple(conversations))


def _phrases(conversations: Iterable[Conversation]) -> Iterator[Sample]:
    for conversation in conversations:
        for number, turn in enumerate(conversation.turns):
            for position, phrase in enumerate(turn.phrases):
                if phrase.start == phrase.end:
                    continue
                yield Sample(
                    conversation.video,
                    f"{conversation.id}-{number}-{position}",
                    turn.text_of(phrase),
                    phrase.ground_truth,
                    has_target=None if phrase.ground_truth is None else True,
                    kind=turn.kind,
                    object_ids=phrase.object_ids,
                )


@dataclass(frozen=True)
class MarkedPhrase:
    """A phrase marked in a text.

    Attributes:
        start: Index of its first character in the plain text.
        end: Index after its last character.
        ids: Object ids after the phrase.
    """

    start: int
    end: int
    ids: tuple[str, ...]


def parse_marked(text: str) -> tuple[str, tuple[MarkedPhrase, ...]]:
    """Parse a caption with phrases marked as ``[phrase](0)`` or ``[phrase](0, 2)``, the form of most GCG sets.

    Args:
        text: The caption.

    Returns:
        The text without marks, and the phrases with their ids.
    """
    return _parse(text, _MARKED, lambda match: (match[1], tuple(id.strip() for id in match[2].split(","))))


def parse_numbered_tags(text: str) -> tuple[str, tuple[MarkedPhrase, ...]]:
    """Parse a caption with phrases marked as ``<p> phrase </p> [SEG:0]``, the form of ActivityNet-Entities-GCG.

    Args:
        text: The caption.

    Returns:
        The text without marks, and the phrases with their ids.
    """
    return _parse(text, _NUMBERED, lambda match: (match[1].strip(), (match[2],)))


def _parse(
    text: str, pattern: re.Pattern[str], read: Callable[[re.Match[str]], tuple[str, tuple[str, ...]]]
) -> tuple[str, tuple[MarkedPhrase, ...]]:
    plain, phrases, length, position = [], [], 0, 0
    for match in pattern.finditer(text):
        phrase, ids = read(match)
        plain += [text[position : match.start()], phrase]
        start = length + match.start() - position
        length, position = start + len(phrase), match.end()
        phrases.append(MarkedPhrase(start, length, ids))
    return "".join((*plain, text[position:])), tuple(phrases)
