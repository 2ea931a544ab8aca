"""Ask a model: several sentences about one video, or about several clips, in one batch where it can.

Shapes: N clips or sentences, T frames of H x W pixels, K frames of one chunk, S = the model's image size.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refervos.errors import ConfigError
from refervos.ops.borders import FrameGuide
from refervos.placement import Placement, as_rgb
from refervos.prompts import Prompt
from refervos.segmenter import BatchSegmenter, Segmenter, check_numbers
from refervos.session.session import Session

BORDER_CELLS = 7
"""How many cells across a border of a recording looks at, where borders follow the frame."""


Mode: TypeAlias = Literal["clips", "online"] | int
"""How frames come: in clips of the model's own length, one by one, or in clips of this many."""


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
        switches: Frames in which what is remembered was rewritten.
        seconds: Time the model took; that of a batch is shared out evenly.
    """

    masks: npt.NDArray[np.bool_]
    switches: int
    seconds: float


def clip_length_of(segmenter: Segmenter[Any], mode: Mode) -> int:
    """How many frames a model looks at together.

    Raises:
        ConfigError: When the mode is unknown or a length below 1.
    """
    if mode == "clips":
        return segmenter.clip_length
    if mode == "online":
        return 1
    if not isinstance(mode, int) or mode < 1:
        raise ConfigError(f"mode is {mode!r}; it must be 'clips', 'online' or a number of frames of at least 1.")
    return mode


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
    geometric = any(question.prompt.geometric for question in questions)
    if len(questions) > 1 and not geometric and takes_batches(segmenter):
        return answer_together(segmenter, questions, clip_length)
    return [answer_alone(segmenter, question, clip_length) for question in questions]


def takes_batches(segmenter: Segmenter[Any]) -> TypeGuard[BatchSegmenter[Any]]:
    """Whether several videos can be one batch without a change of the results."""
    return isinstance(segmenter, BatchSegmenter) and not segmenter.mixes_sentences


@dataclass(frozen=True)
class ChunkAnswer:
    """What a model says of a few frames, for N sentences.

    Attributes:
        masks: bool (K, N, H, W).
        switches: bool (K, N), where what is remembered was rewritten.
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
    asked = [[prompt] for prompt in prompts] if segmenter.mixes_sentences else [prompts]
    sessions = [Session(segmenter, some, keep_logits=keep_logits, border_cells=BORDER_CELLS) for some in asked]
    for chunk in sessions[0].chunks(frames, clip_length):
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
    stacked = [np.stack(frames) for frames in sessions]
    return stacked[0] if len(stacked) == 1 else np.concatenate(stacked, axis=1)


def answer_alone(segmenter: Segmenter[Any], question: Question, clip_length: int) -> Answer:
    """Answer one question through a session, as a user would (see ``answer``)."""
    chunks = list(answer_video(segmenter, question.frames, [question.prompt], clip_length))
    masks = np.concatenate([chunk.masks[:, 0] for chunk in chunks])
    return Answer(masks, sum(int(chunk.switches.sum()) for chunk in chunks), sum(chunk.seconds for chunk in chunks))


def answer_together(segmenter: BatchSegmenter[Any], questions: Sequence[Question], clip_length: int) -> list[Answer]:
    """Answer several questions in one batch, each about its own clip (see ``answer``).

    Frames are placed chunk by chunk, so that memory grows with ``clip_length`` and not with T, and the masks of a chunk
    come back from the device together.

    Args:
        segmenter: A model that ``takes_batches``.
        questions: N questions whose clips have the same number and size of frames, asked with sentences.
        clip_length: Frames looked at together.

    Returns:
        One answer a question.

    Raises:
        PromptError: When the model cannot be asked with a prompt.
        CheckpointError: When it answers with NaN.
    """
    start = time.perf_counter()
    length, height, width = questions[0].frames.shape[:3]
    placement = segmenter.placement((height, width))
    tracks = [segmenter.begin(question.prompt) for question in questions]
    masks = np.empty((len(questions), length, height, width), dtype=np.bool_)
    switches = torch.zeros(len(questions), dtype=torch.long, device=segmenter.device)
    has_nan = torch.zeros((), dtype=torch.bool, device=segmenter.device)
    follows = getattr(segmenter, "borders", "bilinear") == "frame"

    def placed(frames: npt.NDArray[np.uint8]) -> Tensor:
        return torch.stack([placement.place(as_rgb(frame), segmenter.device) for frame in frames])

    for chunk in _chunks(length, clip_length):
        pixels = torch.stack([placed(question.frames[chunk]) for question in questions])  # (N, K, 3, S, S)
        answered = []
        for time_of_chunk, prediction in enumerate(segmenter.segment_clips(pixels, tracks)):
            images = [as_rgb(question.frames[chunk][time_of_chunk]) for question in questions] if follows else []
            answered.append(_masks(placement, prediction.mask_logits, images))  # (N, H, W)
            switches += prediction.switched
            has_nan |= prediction.has_nan
        masks[:, chunk] = torch.stack(answered, dim=1).cpu().numpy()
    seconds = (time.perf_counter() - start) / len(questions)
    *counts, nan = torch.cat([switches, has_nan.long().reshape(1)]).tolist()
    check_numbers(bool(nan))
    return [Answer(own, count, seconds) for own, count in zip(masks, counts, strict=True)]


def _masks(placement: Placement, mask_logits: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Masks of N clips' frames (N, H, W), whose borders follow the frames where these are given."""
    if not images:
        return placement.masks(mask_logits)
    guided = zip(mask_logits.split(1), images, strict=True)
    return torch.cat([placement.masks(logits, FrameGuide(image, BORDER_CELLS)) for logits, image in guided])


def _chunks(length: int, size: int) -> Iterator[slice]:
    """Cut a clip as ``Session.stream`` does; the last chunk may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
