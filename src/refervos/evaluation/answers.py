"""Ask a model about whole clips: several clips in one batch where it can, one session a clip where it cannot.

Shapes: N clips, T frames of H x W pixels, K frames of one chunk, S = the model's image size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch

from refervos.errors import ConfigError
from refervos.frames import as_rgb
from refervos.prompts import Prompt
from refervos.samwise.model import Samwise
from refervos.segmenter import Segmenter
from refervos.session import Session


@dataclass(frozen=True)
class Question:
    """A clip and what is asked about it.

    Attributes:
        frames: uint8 RGB (T, H, W, 3).
        prompt: What to follow from the first frame on.
    """

    frames: npt.NDArray[np.uint8]
    prompt: Prompt


@dataclass(frozen=True)
class Answer:
    """What a model says of a clip.

    Attributes:
        masks: bool (T, H, W).
        switches: Frames in which the Conditional Memory Encoder rewrote what is remembered.
        seconds: Time the model took; that of a batch is shared out evenly.
    """

    masks: npt.NDArray[np.bool_]
    switches: int
    seconds: float


def answer(segmenter: Segmenter[Any], questions: Sequence[Question], clip_length: int) -> list[Answer]:
    """Answer questions about clips of one shape, in one batch where the model allows.

    Args:
        segmenter: The model, in evaluation mode.
        questions: N questions whose clips have the same number and size of frames.
        clip_length: Frames looked at together; 1 answers each frame before the next is known.

    Returns:
        One answer a question. Whether they were one batch shows in rounding only.

    Raises:
        ConfigError: When the model is in training mode or the clip length is below 1.
        PromptError: When the model cannot be asked with a prompt.
    """
    if getattr(segmenter, "training", False):
        raise ConfigError("the model is in training mode; call model.eval() before evaluating it.")
    if clip_length < 1:
        raise ConfigError(f"clip_length is {clip_length}; it must be at least 1.")
    if len(questions) > 1 and takes_batches(segmenter):
        return answer_together(segmenter, questions, clip_length)
    return [answer_alone(segmenter, question, clip_length) for question in questions]


def takes_batches(segmenter: Segmenter[Any]) -> TypeGuard[Samwise]:
    """Whether several videos can be one batch without a change of the results.

    SAMWISE can, but for its published protocol, in which the padding of shorter sentences leaks into their neighbours.
    """
    return isinstance(segmenter, Samwise) and segmenter.config.protocol == "default"


def answer_alone(segmenter: Segmenter[Any], question: Question, clip_length: int) -> Answer:
    """Answer one question through a session, as a user would (see ``answer``)."""
    start = time.perf_counter()
    session = Session(segmenter, [question.prompt])
    frames = list(session.stream(question.frames, clip_length))
    masks = np.stack([frame.masks[0] for frame in frames])
    return Answer(masks, sum(int(frame.switched[0]) for frame in frames), time.perf_counter() - start)


def answer_together(model: Samwise, questions: Sequence[Question], clip_length: int) -> list[Answer]:
    """Answer several questions in one batch, each about its own clip (see ``answer``).

    What starting an operation costs is shared among the clips: on one CPU core the miniature needs a fifth less time a
    frame in clips of eight, and half online. Frames are placed chunk by chunk, so that memory grows with
    ``clip_length`` and not with T.

    Args:
        model: A model that ``takes_batches``.
        questions: N questions whose clips have the same number and size of frames.
        clip_length: Frames looked at together.

    Returns:
        One answer a question.
    """
    start = time.perf_counter()
    length, height, width = questions[0].frames.shape[:3]
    placement = model.placement((height, width))
    masks = np.empty((len(questions), length, height, width), dtype=np.bool_)
    with model.inference():
        tracks = [model.begin(question.prompt) for question in questions]
        ids, verbs = model.text_batch(tracks)
        switches = torch.zeros(len(questions), dtype=torch.long, device=model.device)
        for chunk in _chunks(length, clip_length):
            pixels = torch.stack(
                [
                    torch.stack([placement.place(as_rgb(frame).to(model.device)) for frame in question.frames[chunk]])
                    for question in questions
                ]
            )  # (N, K, 3, S, S)
            features = model.encode(pixels, ids, verbs)
            for step in range(pixels.shape[1]):
                frame = model.track_frame(features, step, tracks)
                logits = placement.restore(frame.mask_logits[:, 0])  # (N, H, W)
                masks[:, chunk.start + step] = (logits > 0).cpu().numpy()
                switches += frame.switched
    seconds = (time.perf_counter() - start) / len(questions)
    return [Answer(own, count, seconds) for own, count in zip(masks, switches.tolist(), strict=True)]


def _chunks(length: int, size: int) -> Iterator[slice]:
    """Cut a clip as ``Session.stream`` does; the last chunk may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
