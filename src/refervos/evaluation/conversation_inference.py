"""Questions of a data set of conversations put to a model, and its answers written to files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refervos.data.conversations import Conversation
from refervos.data.sample import Video
from refervos.errors import EvaluationError
from refervos.evaluation.conversation_scores import conversations_of
from refervos.evaluation.datasets import Part
from refervos.evaluation.grounded_answers import (
    AnsweredPhrase,
    GroundedAnswer,
    RunLengths,
    answer_path,
    run_lengths,
    write_answer,
)
from refervos.files.writing import prepare_folder
from refervos.progress import Bar


@dataclass(frozen=True, eq=False)
class SpokenAnswer:
    """Answer of a model.

    Attributes:
        text: The text without tags.
        phrases: Start and end of each of its N phrases in the text.
        masks: The masks of all phrases, bool (N, H, W) for each frame of the video; read once, frame by frame. Empty
            where there is no phrase.
    """

    text: str
    phrases: tuple[tuple[int, int], ...]
    masks: Iterable[npt.NDArray[np.bool_]]


Ask = Callable[[str], SpokenAnswer]
"""Function that answers the next question of a conversation."""


def answer_conversations(
    begin: Callable[[Video], Ask], part: Part, folder: Path, *, show_progress: bool | None = None
) -> None:
    """Answer all questions of a data set, which ``score_conversations`` then scores.

    Stop it at any time: the same call goes on. A conversation of which an answer is missing is held again from its
    first question on, because later ones depend on earlier ones.

    Args:
        begin: Begins a conversation about a video and returns the function that answers its questions in turn.
        part: The data set.
        folder: Folder for ``<video>/<conversation>-<turn>/answer.json``; created if missing.
        show_progress: True or False; default when standard error is a terminal.

    Raises:
        ConfigError: When the data set has no conversations.
        DataError: When the data set cannot be read.
        EvaluationError: When an answer has more or fewer frames or masks than it must have.
        OutputError: When a file cannot be written.
    """
    conversations = conversations_of(part.open(), part.videos)
    prepare_folder(folder)
    with Bar("conversations", len(conversations), show_progress) as bar:
        for conversation in conversations:
            paths = [answer_path(folder, *conversation.key, turn) for turn in range(len(conversation.turns))]
            if not all(path.is_file() for path in paths):
                ask = begin(conversation.video)
                for turn, path in zip(conversation.turns, paths, strict=True):
                    answer = grounded_answer(conversation, turn.question, ask(turn.question))
                    prepare_folder(path.parent)
                    write_answer(path, answer)
            bar.advance()


def conversations_with(model: Any, *, limit: int = 512) -> Callable[[Video], Ask]:
    """Return a function that starts conversations with a model, for ``answer_conversations``.

    Args:
        model: A model with the method ``converse``, such as ``VideoGlamm``.
        limit: Maximum number of generated tokens of an answer.
    """

    def begin(video: Video) -> Ask:
        talk = model.converse(_Frames(video))

        def ask(question: str) -> SpokenAnswer:
            answer = talk.ask(question, limit=limit)
            return SpokenAnswer(answer.text, tuple((p.start, p.end) for p in answer.phrases), answer.masks())

        return ask

    return begin


@dataclass(frozen=True)
class _Frames:
    """Frames of a data set's video, read whenever they are iterated over."""

    video: Video

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        return (self.video.frames.read(number) for number in range(len(self.video)))


def grounded_answer(conversation: Conversation, question: str, answer: SpokenAnswer) -> GroundedAnswer:
    """Encode the masks of an answer.

    Args:
        conversation: The conversation.
        question: The question.
        answer: The answer of a model.

    Returns:
        The same as it is written to a file.

    Raises:
        EvaluationError: When it has more or fewer frames or masks than it must have.
    """
    video, count = conversation.video, len(answer.phrases)
    names = tuple(video.frames.names)
    tracks: list[list[RunLengths | None]] = [[] for _ in range(count)]
    size: tuple[int, int] | None = None
    frames = 0
    for masks in answer.masks if count else ():
        if len(masks) != count:
            raise EvaluationError(f"an answer about video {video.id} has {len(masks)} masks for {count} phrases.")
        for track, mask in zip(tracks, masks, strict=True):
            track.append(run_lengths(mask))
        size = (masks.shape[1], masks.shape[2])
        frames += 1
    if count and frames != len(names):
        raise EvaluationError(f"an answer about video {video.id} has masks of {frames} frames, not of {len(names)}.")
    if size is None:
        height, width = video.frames.read(0).shape[:2]
        size = (height, width)
    phrases = tuple(
        AnsweredPhrase(answer.text[start:end], start, end, tuple(track))
        for (start, end), track in zip(answer.phrases, tracks, strict=True)
    )
    return GroundedAnswer(question, answer.text, size, names, phrases)
