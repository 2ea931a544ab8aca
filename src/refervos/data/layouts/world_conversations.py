"""Held-out conversations about rendered clips as a data set; clips are rendered on demand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from refervos.data.conversations import Conversation, GroundedPhrase, Turn, with_conversations
from refervos.data.files import Problems
from refervos.data.sample import Dataset, ImageArray, Mask, Video
from refervos.errors import DataError
from refervos.text.grounded import parse_answer
from refervos.worlds import Facts
from refervos.worlds.conversation_writer import Turn as WrittenTurn
from refervos.worlds.conversations import CASES, CONVERSATION_WORLD, ConversationClip, held_out_conversation
from refervos.worlds.judge import judge

NAME = "world-conversations"

CAPTIONS, QUESTIONS, MOTION, ALL = "captions", "questions", "motion", "all"
SPLITS = (CAPTIONS, QUESTIONS, MOTION, ALL)
"""Descriptions of the clips, all other conversations, those of them that require motion, and everything."""

Draw = Callable[[int], ConversationClip]
"""Function that renders a held-out clip with its conversations."""


def read_world_conversations(folder: Path | None, split: str, problems: Problems) -> Dataset:
    """List the held-out conversations about rendered clips.

    All clips are rendered once for their texts, which takes seconds, and again when frames or masks are read. One
    clip is kept in memory at a time, so process one video after another.

    Args:
        folder: Ignored.
        split: One of ``SPLITS``.
        problems: Ignored.

    Returns:
        Conversations of one or two turns, whose answers can be judged (``Turn.is_true``).

    Raises:
        DataError: When the split is unknown.
    """
    if split not in SPLITS:
        raise DataError(f"{NAME} has no split {split!r}; its splits are {', '.join(SPLITS)}.")
    draw = lru_cache(maxsize=1)(held_out_conversation)
    conversations = []
    for index in range(CASES):
        video = Video(
            f"clip-{index:03d}", _DrawnFrames(index, draw), (CONVERSATION_WORLD.height, CONVERSATION_WORLD.width)
        )
        for number, turns in enumerate(draw(index).conversations):
            if _belongs(turns, split):
                conversations.append(Conversation(video, str(number), tuple(_turns(turns, index, draw))))
    return with_conversations(NAME, split, conversations)


def _belongs(turns: Sequence[WrittenTurn], split: str) -> bool:
    description = turns[0].kind == "description"
    if split == CAPTIONS:
        return description
    if split == MOTION:
        return not description and any(turn.motion for turn in turns)
    return split == ALL or not description


def _turns(turns: Sequence[WrittenTurn], index: int, draw: Draw) -> list[Turn]:
    read = []
    for number, turn in enumerate(turns):
        answer = parse_answer(turn.answer)
        phrases = tuple(
            GroundedPhrase(
                phrase.start, phrase.end, tuple(map(str, objects)), _DrawnObjects(index, draw, tuple(objects))
            )
            for phrase, objects in zip(answer.phrases, turn.targets, strict=True)
        )
        earlier = tuple(before.question for before in turns[:number])
        is_true = partial(_is_true, index, draw, turn.kind, turn.question, earlier)
        read.append(Turn(turn.question, answer.text, phrases, turn.kind, is_true))
    return read


def _is_true(index: int, draw: Draw, kind: str, question: str, earlier: tuple[str, ...], text: str) -> bool:
    """Return whether all sentences of a description are true, or a question has a true answer and nothing else."""
    facts = Facts.of(draw(index).clip)
    if kind == "description":
        return judge(text, facts).all_true
    return judge(text, facts, question, earlier).correct


@dataclass(frozen=True, eq=False)
class _DrawnFrames:
    """Frames of a held-out clip.

    Attributes:
        index: Index of the clip.
        draw: Function that renders it.
    """

    index: int
    draw: Draw

    @property
    def names(self) -> Sequence[str]:
        """Frame names ``00000`` and so on."""
        return tuple(f"{number:05d}" for number in range(CONVERSATION_WORLD.frames))

    def read(self, index: int) -> ImageArray:
        """Return one frame, uint8 RGB (H, W, 3)."""
        return self.draw(self.index).clip.frames[index]


@dataclass(frozen=True, eq=False)
class _DrawnObjects:
    """Ground truth of a phrase: the union of some objects of a held-out clip.

    Attributes:
        index: Index of the clip.
        draw: Function that renders it.
        objects: Numbers of the objects.
    """

    index: int
    draw: Draw
    objects: tuple[int, ...]

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of all frames."""
        return range(CONVERSATION_WORLD.frames)

    def mask(self, index: int) -> Mask:
        """Return the mask of one frame, bool (H, W)."""
        masks: Mask = self.draw(self.index).clip.masks[list(self.objects), index]
        return np.any(masks, axis=0)

    def void(self, index: int) -> None:
        """Return None: there are no void pixels."""
        return None
