"""Questions to a model with which one can talk: an answer as a stream, and its phrases as tracks of the session."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refervos.errors import RefervosError
from refervos.serving.asked_questions import AnswerPart, AskedQuestion
from refervos.serving.decoding import Decoder
from refervos.serving.limits import Limits
from refervos.serving.problems import Problem, as_problem
from refervos.serving.served_session import ServedSession

_FRAMES, _SIDE = 128, 640
"""Largest number of frames that a conversation sees, evenly over the video, and their longest side in pixels."""


class Talks:
    """The conversations of the open sessions.

    Args:
        limits: Limits of the server.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._talks: dict[str, Any] = {}

    def ask(self, session: ServedSession, model: Any, video: Path | None, question: str) -> Iterator[dict[str, Any]]:
        """Answer a question about the video of a session. Blocks while the video is read.

        Args:
            session: The session.
            model: Its model.
            video: Its video; None for a live source, about which no questions are answered.
            question: The question.

        Returns:
            An iterator over ``{"text": ...}`` for each piece of the answer, with ``track`` and ``colour`` where it is a
            phrase with masks, and at the end ``{"done": true, "question": ..., "answer": ..., "unknown_words":
            [...]}`` with the words of the question that the model cannot read.

        Raises:
            RefervosError: The model answers no questions, or the question is invalid.
        """
        if not hasattr(model, "converse"):
            sentence = "this model answers no questions; open the session on one that does, such as VideoGLaMM."
            raise Problem(HTTPStatus.CONFLICT, "no-conversation", sentence)
        if video is None:
            sentence = "questions are answered about recordings; this session follows a live source."
            raise Problem(HTTPStatus.CONFLICT, "no-conversation", sentence)
        name = session.record.id
        if name not in self._talks:
            self._talks[name] = model.converse(self._frames(video))
        return self._stream(self._talks[name].ask(question), session, question)

    def keep(self, sessions: set[str]) -> None:
        """Free the conversations of all other sessions."""
        for name in set(self._talks) - sessions:
            self._talks.pop(name, None)

    def _frames(self, video: Path) -> list[np.ndarray]:
        """Read frames evenly over the video, reduced in size; memory does not grow with its length."""
        kept: list[np.ndarray] = []
        stride = 1
        decoder = Decoder(self._limits)
        try:
            decoder.open(str(video))
            while (frame := decoder.next()) is not None:
                if frame.index % stride:
                    continue
                picture = Image.fromarray(frame.image)
                picture.thumbnail((_SIDE, _SIDE))
                kept.append(np.asarray(picture))
                if len(kept) > _FRAMES:
                    kept, stride = kept[::2], 2 * stride
        finally:
            decoder.close()
        return kept

    @staticmethod
    def _stream(answer: Any, session: ServedSession, question: str) -> Iterator[dict[str, Any]]:
        asked = AskedQuestion(question)
        _keep(session, asked)  # already now: a page that is loaded again shows the answer as far as it has come
        try:
            for piece in answer:
                part = AnswerPart(piece.text)
                if piece.phrase is not None and piece.prompt_token is not None:
                    token = tuple(float(value) for value in piece.prompt_token.float().cpu())
                    part.track = _follow(session, piece.text.strip() or "the object", token)
                    part.colour = session.record.tracks[part.track].colour
                asked.parts.append(part)
                yield {name: value for name, value in asdict(part).items() if value is not None}
            asked.unknown_words = list(getattr(answer, "unknown_words", ()))
        except RefervosError as error:
            asked.problem = str(as_problem(error))
            raise
        finally:
            _keep(session, asked)
        text = "".join(part.text for part in asked.parts)
        yield {"done": True, "question": question, "answer": text, "unknown_words": asked.unknown_words}


def _keep(session: ServedSession, asked: AskedQuestion) -> None:
    """Keep a question with its answer so far, unless the session has been closed."""
    with contextlib.suppress(Problem):
        session.submit(lambda: session.keep_question(asked))


def _follow(session: ServedSession, phrase: str, token: tuple[float, ...]) -> int:
    """Follow a phrase from the first frame on: the answer is about the whole recording."""
    first = session.record.first
    track: int = session.submit(lambda: session.follow(phrase, token, first)).result()["track"]
    return track
