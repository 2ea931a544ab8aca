"""Run a model on several expressions about one video, or on several clips, batched where the model allows.

Shapes: N clips or prompts, T frames of H x W pixels, K frames of one chunk, S = the model's image size.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from refervos.errors import ConfigError, UnknownWordsWarning
from refervos.ops.borders import FrameGuide
from refervos.placement import Placement, as_rgb
from refervos.prompts import Prompt
from refervos.segmenter import BatchSegmenter, Segmenter, check_numbers
from refervos.session.hindsight import Read, answer_in_hindsight
from refervos.session.session import Session

BORDER_CELLS = 7
"""Side of the square of cells around a border pixel with ``borders="frame"``, as for recorded videos."""


Mode: TypeAlias = Literal["clips", "online"] | int
"""Grouping of frames: into clips of the model's own length, one by one, or into clips of this many frames."""


@dataclass(frozen=True)
class PromptedClip:
    """A clip and its prompt.

    Attributes:
        frames: uint8 RGB (T, H, W, 3).
        prompt: The object to follow from the first frame on.
    """

    frames: npt.NDArray[np.uint8]
    prompt: Prompt


@dataclass(frozen=True)
class ClipPrediction:
    """A model's prediction for one clip.

    Attributes:
        masks: bool (T, H, W).
        switches: Number of frames in which the CME rewrote the memory.
        seconds: Time the model took; the time of a batch is divided evenly.
    """

    masks: npt.NDArray[np.bool_]
    switches: int
    seconds: float


def clip_length_of(segmenter: Segmenter[Any], mode: Mode) -> int:
    """Return the number of frames that a model processes as one clip.

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


def predict_clips(
    segmenter: Segmenter[Any], clips: Sequence[PromptedClip], clip_length: int, *, hindsight: bool = False
) -> list[ClipPrediction]:
    """Segment clips of one shape, in one batch where the model allows.

    Args:
        segmenter: The model, in evaluation mode.
        clips: N clips with the same number and size of frames, and their prompts.
        clip_length: Frames processed as one clip; with 1, each frame is segmented before the next is known.
        hindsight: Decide at the end of each clip which object is meant (see ``refervos.session.hindsight``); clips are
            then segmented one by one.

    Returns:
        One prediction per clip. Batching changes results by rounding only.

    Raises:
        ConfigError: When the model is in training mode or the clip length is below 1.
        PromptError: When the model does not support a prompt.
    """
    if getattr(segmenter, "training", False):
        raise ConfigError("the model is in training mode; call model.eval() before evaluating it.")
    if clip_length < 1:
        raise ConfigError(f"clip_length is {clip_length}; it must be at least 1.")
    geometric = any(clip.prompt.geometric for clip in clips)
    if len(clips) > 1 and not geometric and not hindsight and supports_batches(segmenter):
        return predict_batch(segmenter, clips, clip_length)
    return [predict_clip(segmenter, clip, clip_length, hindsight=hindsight) for clip in clips]


def supports_batches(segmenter: Segmenter[Any]) -> TypeGuard[BatchSegmenter[Any]]:
    """Check if a model can process several videos in one batch without changing the results."""
    return isinstance(segmenter, BatchSegmenter) and not segmenter.mixes_sentences


@dataclass(frozen=True)
class ChunkPrediction:
    """A model's predictions for a few frames and N prompts.

    Attributes:
        masks: bool (K, N, H, W).
        switches: bool (K, N), True where the CME rewrote the memory.
        logits: Mask logits float32 (K, N, H, W), if requested.
        seconds: Time the model took.
    """

    masks: npt.NDArray[np.bool_]
    switches: npt.NDArray[np.bool_]
    logits: npt.NDArray[np.float32] | None
    seconds: float


def predict_video(
    segmenter: Segmenter[Any],
    frames: Iterable[Any],
    prompts: Sequence[Prompt],
    clip_length: int,
    *,
    keep_logits: bool = False,
) -> Iterator[ChunkPrediction]:
    """Segment one video with several prompts; each frame is read once, when it is needed.

    Args:
        segmenter: The model, in evaluation mode.
        frames: uint8 RGB (H, W, 3) each, all of one size.
        prompts: The objects to follow from the first frame on. They share a session where the model allows.
        clip_length: Frames processed as one clip.
        keep_logits: Also return mask logits.

    Yields:
        The predictions, chunk by chunk.

    Raises:
        ConfigError: When the model is in training mode or the clip length is below 1.
        PromptError: When the model does not support a prompt.
    """
    sessions = [_open(segmenter, group, keep_logits=keep_logits) for group in _groups(segmenter, prompts)]
    for chunk in sessions[0].chunks(frames, clip_length):
        start = time.perf_counter()
        results = [session.clip(chunk) for session in sessions]
        seconds = time.perf_counter() - start
        yield ChunkPrediction(
            masks=_stack_sessions([[frame.masks for frame in own] for own in results]),
            switches=_stack_sessions([[frame.switched for frame in own] for own in results]),
            logits=_stack_sessions([[frame.logits for frame in own] for own in results]) if keep_logits else None,
            seconds=seconds,
        )


def predict_in_hindsight(
    segmenter: Segmenter[Any], read: Read[Any], prompts: Sequence[Prompt], clip_length: int
) -> Iterator[ChunkPrediction]:
    """Segment one video with several sentences in hindsight (see ``refervos.session.hindsight``).

    Args:
        segmenter: The model, in evaluation mode.
        read: Reads the frames from one index up to another, uint8 RGB (H, W, 3) each, all of one size.
        prompts: The sentences. They share sessions where the model allows.
        clip_length: Frames processed as one clip.

    Yields:
        The predictions, frame by frame. The first contains the time of the search.

    Raises:
        PromptError: When the model does not support a prompt in hindsight.
    """
    groups = [
        answer_in_hindsight(read, group, partial(_open, segmenter), clip_length=clip_length)
        for group in _groups(segmenter, prompts)
    ]
    start = time.perf_counter()
    for pairs in zip(*groups, strict=True):
        results = [[segmentation] for _, segmentation in pairs]
        yield ChunkPrediction(
            masks=_stack_sessions([[frame.masks for frame in own] for own in results]),
            switches=_stack_sessions([[frame.switched for frame in own] for own in results]),
            logits=None,
            seconds=time.perf_counter() - start,
        )
        start = time.perf_counter()


def _groups(segmenter: Segmenter[Any], prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Return the prompts that can share a session without changing each other's results."""
    return [[prompt] for prompt in prompts] if segmenter.mixes_sentences else [list(prompts)]


def _open(segmenter: Segmenter[Any], prompts: Iterable[Prompt], *, keep_logits: bool = False) -> Session:
    """Open a session for recorded videos, without warnings of unknown words, given once for the whole data set."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWordsWarning)
        return Session(segmenter, prompts, keep_logits=keep_logits, border_cells=BORDER_CELLS)


def _stack_sessions(sessions: Sequence[Sequence[Any]]) -> npt.NDArray[Any]:
    """Combine per-frame arrays of several sessions into one of shape (K, N, ...)."""
    stacked = [np.stack(frames) for frames in sessions]
    return stacked[0] if len(stacked) == 1 else np.concatenate(stacked, axis=1)


def predict_clip(
    segmenter: Segmenter[Any], clip: PromptedClip, clip_length: int, *, hindsight: bool = False
) -> ClipPrediction:
    """Segment one clip through a session, as a user would (see ``predict_clips``)."""
    if hindsight:
        chunks = list(predict_in_hindsight(segmenter, lambda a, b: clip.frames[a:b], [clip.prompt], clip_length))
    else:
        chunks = list(predict_video(segmenter, clip.frames, [clip.prompt], clip_length))
    masks = np.concatenate([chunk.masks[:, 0] for chunk in chunks])
    switches = sum(int(chunk.switches.sum()) for chunk in chunks)
    return ClipPrediction(masks, switches, sum(chunk.seconds for chunk in chunks))


def predict_batch(
    segmenter: BatchSegmenter[Any], clips: Sequence[PromptedClip], clip_length: int
) -> list[ClipPrediction]:
    """Segment several clips, each with its own prompt, in one batch (see ``predict_clips``).

    Frames are placed chunk by chunk, so memory grows with ``clip_length`` and not with T, and the masks of a chunk are
    copied from the device at once.

    Args:
        segmenter: A model that ``supports_batches``.
        clips: N clips with the same number and size of frames, and their text prompts.
        clip_length: Frames processed as one clip.

    Returns:
        One prediction per clip.

    Raises:
        PromptError: When the model does not support a prompt.
        CheckpointError: When the model's output contains NaN.
    """
    start = time.perf_counter()
    length, height, width = clips[0].frames.shape[:3]
    placement = segmenter.placement((height, width))
    tracks = [segmenter.begin(clip.prompt) for clip in clips]
    masks = np.empty((len(clips), length, height, width), dtype=np.bool_)
    switches = torch.zeros(len(clips), dtype=torch.long, device=segmenter.device)
    has_nan = torch.zeros((), dtype=torch.bool, device=segmenter.device)
    guided = getattr(segmenter, "borders", "bilinear") == "frame"

    def place(frames: npt.NDArray[np.uint8]) -> Tensor:
        return torch.stack([placement.place(as_rgb(frame), segmenter.device) for frame in frames])

    for chunk in _chunks(length, clip_length):
        pixels = torch.stack([place(clip.frames[chunk]) for clip in clips])  # (N, K, 3, S, S)
        of_chunk = []
        for index, prediction in enumerate(segmenter.segment_clips(pixels, tracks)):
            images = [as_rgb(clip.frames[chunk][index]) for clip in clips] if guided else []
            of_chunk.append(_masks(placement, prediction.mask_logits, images))  # (N, H, W)
            switches += prediction.switched
            has_nan |= prediction.has_nan
        masks[:, chunk] = torch.stack(of_chunk, dim=1).cpu().numpy()
    seconds = (time.perf_counter() - start) / len(clips)
    *counts, nan = torch.cat([switches, has_nan.long().reshape(1)]).tolist()
    check_numbers(bool(nan))
    return [ClipPrediction(own, count, seconds) for own, count in zip(masks, counts, strict=True)]


def _masks(placement: Placement, mask_logits: Tensor, images: Sequence[Tensor]) -> Tensor:
    """Return the masks (N, H, W) of one frame of N clips; their borders follow the images where these are given."""
    if not images:
        return placement.masks(mask_logits)
    pairs = zip(mask_logits.split(1), images, strict=True)
    return torch.cat([placement.masks(logits, FrameGuide(image, BORDER_CELLS)) for logits, image in pairs])


def _chunks(length: int, size: int) -> Iterator[slice]:
    """Split a clip as ``Session.stream`` does; the last chunk may be shorter."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))
