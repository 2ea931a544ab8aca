"""Ask a model: several sentences about one video, or about several clips, in one batch where it can.

Shapes: N clips or sentences, T frames of H x W pixels, K frames of one chunk, S = the model's image size.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
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

    SAMWISE can, but for its published protocol (see ``mixes_sentences``).
    """
    return isinstance(segmenter, Samwise) and not mixes_sentences(segmenter)


def mixes_sentences(segmenter: Segmenter[Any]) -> bool:
    """Whether what a sentence is answered depends on those that are asked with it.

    In SAMWISE's published protocol the padding of shorter sentences leaks into the adapters; the released scripts ask
    one sentence at a time.
    """
    return isinstance(segmenter, Samwise) and segmenter.config.protocol == "published"


@dataclass(frozen=True)
class ChunkAnswer:
    """What a model says of a few frames, for N sentences.

    Attributes:
        masks: bool (K, N, H, W).
        switches: bool (K, N), where the Conditional Memory Encoder rewrote what is remembered.
        logits: Mask logits float32 (K, N, H, W), where they were asked for.
        seconds: Time the model took.
    """

    masks: npt.NDArray[np.bool_]
    switches: npt.NDArray[np.bool_]
    logits: npt.NDArray[np.float32] | None
    seconds: float


def answer_video(
    segmenter: Segmenter[Any],
    frames: Iterable[Any],
    prompts: Sequence[Prompt],
    clip_length: int,
    *,
    keep_logits: bool = False,
) -> Iterator[ChunkAnswer]:
    """Answer several sentences about one video, whose frames are read once, as they are needed.

    Args:
        segmenter: The model, in evaluation mode.
        frames: uint8 RGB (H, W, 3) each, all of one size.
        prompts: What to follow from the first frame on. They share a session where the model allows.
        clip_length: Frames looked at together.
        keep_logits: Also give mask logits.

    Yields:
        The answers, chunk by chunk.

    Raises:
        ConfigError: When the model is in training mode or the clip length is below 1.
        PromptError: When the model cannot be asked with a prompt.
    """
    asked = [[prompt] for prompt in prompts] if mixes_sentences(segmenter) else [prompts]
    sessions = [Session(segmenter, some, keep_logits=keep_logits) for some in asked]
    for chunk in sessions[0].cut(frames, clip_length):
        start = time.perf_counter()
        answered = [session.clip(chunk) for session in sessions]
        seconds = time.perf_counter() - start
        yield ChunkAnswer(
            masks=_together([[frame.masks for frame in own] for own in answered]),
            switches=_together([[frame.switched for frame in own] for own in answered]),
            logits=_together([[frame.logits for frame in own] for own in answered]) if keep_logits else None,
            seconds=seconds,
        )


def _together(sessions: Sequence[Sequence[Any]]) -> npt.NDArray[Any]:
    """Put what sessions say of each frame together: (K, N, ...)."""
    return np.concatenate([np.stack(frames) for frames in sessions], axis=1)


def answer_alone(segmenter: Segmenter[Any], question: Question, clip_length: int) -> Answer:
    """Answer one question through a session, as a user would (see ``answer``)."""
    chunks = list(answer_video(segmenter, question.frames, [question.prompt], clip_length))
    masks = np.concatenate([chunk.masks[:, 0] for chunk in chunks])
    return Answer(masks, sum(int(chunk.switches.sum()) for chunk in chunks), sum(chunk.seconds for chunk in chunks))


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
            features = model.encode(pixels, ids, verbs, tracks)
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
