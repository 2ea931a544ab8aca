"""Answers whose phrases have masks, as files: ``answer.json`` with COCO run lengths.

    {"question": "...", "text": "A red circle moves.", "size": [48, 64], "frames": ["00000", "00001"], "phrases": [
      {"phrase": "A red circle", "start": 0, "end": 12, "masks": [{"size": [48, 64], "counts": "..."}, null]}]}

``size`` is height and width; ``start`` and ``end`` are characters of the text; ``masks`` has an entry for each frame,
null where nothing of the phrase is seen. ``model`` names the model, if known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from refervos.data.conversations import LONGEST_ANSWER
from refervos.data.files import decode_rle
from refervos.data.records import check_image_size, is_name, require_field
from refervos.errors import DataError, EvaluationError
from refervos.evaluation.expression_scores import read_json
from refervos.files.writing import write_atomically

FILE = "answer.json"

MOST_PHRASES = 1000
"""Maximum number of phrases of an answer."""

RunLengths = Mapping[str, Any]
"""A mask as compressed COCO run lengths: ``size`` and ``counts``."""


@dataclass(frozen=True)
class AnsweredPhrase:
    """A phrase of an answer with its masks.

    Attributes:
        text: Its words; empty where the answer has a mask without a phrase.
        start: Index of its first character in the answer.
        end: Index after its last character.
        masks: For each frame its mask as run lengths; None where it is empty.
    """

    text: str
    start: int
    end: int
    masks: tuple[RunLengths | None, ...]


@dataclass(frozen=True)
class GroundedAnswer:
    """An answer about a video.

    Attributes:
        question: The question.
        text: The answer without tags.
        size: Height and width of the masks.
        frames: Names of the frames.
        phrases: Its phrases with masks, in the order of the text.
        model: Name of the model, if known.
    """

    question: str
    text: str
    size: tuple[int, int]
    frames: tuple[str, ...]
    phrases: tuple[AnsweredPhrase, ...]
    model: str | None = None

    def mask(self, phrase: int, frame: int) -> npt.NDArray[np.bool_]:
        """Decode a mask.

        Args:
            phrase: Index of the phrase.
            frame: Index of the frame.

        Returns:
            bool (H, W).

        Raises:
            EvaluationError: When it is damaged or of another size.
        """
        stored = self.phrases[phrase].masks[frame]
        if stored is None:
            return np.zeros(self.size, dtype=np.bool_)
        try:
            return decode_rle(stored, f"phrase {phrase}, frame {self.frames[frame]}", self.size)
        except DataError as error:
            raise EvaluationError(str(error)) from error


def run_lengths(mask: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
    """Encode a mask as compressed COCO run lengths.

    Args:
        mask: bool (H, W).

    Returns:
        ``size`` and ``counts`` as JSON takes them; None for a mask without a pixel.
    """
    if not mask.any():
        return None
    stored = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in stored["size"]], "counts": stored["counts"].decode("ascii")}


def write_answer(path: Path, answer: GroundedAnswer) -> None:
    """Write an answer; the file is complete or absent.

    Args:
        path: The file; its folder must exist.
        answer: The answer.

    Raises:
        OutputError: When it cannot be written.
    """
    content = {
        "question": answer.question,
        "text": answer.text,
        "size": list(answer.size),
        "frames": list(answer.frames),
        "phrases": [
            {"phrase": phrase.text, "start": phrase.start, "end": phrase.end, "masks": list(phrase.masks)}
            for phrase in answer.phrases
        ],
        **({} if answer.model is None else {"model": answer.model}),
    }
    write_atomically(path, (json.dumps(content) + "\n").encode())


def read_answer(path: Path) -> GroundedAnswer:
    """Read an answer; its masks are decoded when they are used.

    Args:
        path: The file.

    Returns:
        The answer.

    Raises:
        EvaluationError: When the file is missing, damaged, or holds something else.
    """
    content = read_json(path)
    try:
        return _answer(content, str(path))
    except DataError as error:
        raise EvaluationError(str(error)) from error


def _answer(content: Any, where: str) -> GroundedAnswer:
    text = require_field(content, "text", str, where)
    if len(text) > LONGEST_ANSWER:
        raise DataError(f"{where} has a text of {len(text):,} characters; the maximum is {LONGEST_ANSWER:,}.")
    size, frames = require_field(content, "size", list, where), require_field(content, "frames", list, where)
    if len(size) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in size):
        raise DataError(f"{where}: 'size' must be height and width.")
    height, width = size
    check_image_size(height, width, where)
    if not all(isinstance(name, str) and is_name(name) for name in frames) or len(set(frames)) < len(frames):
        raise DataError(f"{where}: 'frames' must be names of frames, each once.")
    phrases = require_field(content, "phrases", list, where)
    if len(phrases) > MOST_PHRASES:
        raise DataError(f"{where} has {len(phrases):,} phrases; the maximum is {MOST_PHRASES:,}.")
    read = tuple(_phrase(record, text, len(frames), f"{where}, phrase {k}") for k, record in enumerate(phrases))
    question = require_field(content, "question", str, where)
    model = content.get("model")
    if not (model is None or isinstance(model, str)):
        raise DataError(f"{where}: 'model' must be a name.")
    return GroundedAnswer(question, text, (height, width), tuple(frames), read, model)


def _phrase(record: Any, text: str, frames: int, where: str) -> AnsweredPhrase:
    start, end = require_field(record, "start", int, where), require_field(record, "end", int, where)
    if not 0 <= start <= end <= len(text):
        raise DataError(f"{where}: 'start' {start} and 'end' {end} are no characters of a text of {len(text)}.")
    words, masks = require_field(record, "phrase", str, where), require_field(record, "masks", list, where)
    if len(masks) != frames or not all(mask is None or isinstance(mask, dict) for mask in masks):
        raise DataError(f"{where}: 'masks' must have run lengths or null for each of the {frames} frames.")
    return AnsweredPhrase(words, start, end, tuple(masks))


def answer_path(folder: Path, video: str, conversation: str, turn: int) -> Path:
    """Return the file of an answer in a folder of predictions: ``<video>/<conversation>-<turn>/answer.json``."""
    return folder / video / f"{conversation}-{turn}" / FILE


def holds_answers(folder: Path) -> bool:
    """Return whether a folder of predictions holds answers, not masks of expressions."""
    return next(folder.glob(f"*/*/{FILE}"), None) is not None


def names_of(frames: Sequence[str]) -> dict[str, int]:
    """Return the index of each frame by its name."""
    return {name: index for index, name in enumerate(frames)}
