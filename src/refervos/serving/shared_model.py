"""One model shared by many sessions: clips that are due at the same time go through it as one batch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from refervos.errors import PromptError
from refervos.placement import Placement
from refervos.segmenter import FramePrediction, Segmenter


@dataclass
class _Clip:
    """A clip of one session that waits for the model."""

    pixels: Any
    tracks: Sequence[Any]
    placements: Sequence[Placement]
    result: Future[list[FramePrediction]] = field(default_factory=Future)

    @property
    def batch_key(self) -> tuple[int, ...] | None:
        """What clips of one batch have in common; None for a clip that runs alone.

        Several sentences about one video run alone: they share the image stages, and are a batch already.
        """
        if len(self.tracks) != 1 or not isinstance(self.pixels, Tensor):
            return None
        return tuple(self.pixels.shape)


class SharedModel:
    """A segmenter that runs on another one, in a thread of its own.

    While the model is busy, clips of all sessions collect; those of one sentence and of equal shape then go through the
    model's ``segment_clips`` as one batch. Nothing ever waits for a batch to fill. Everything else is passed on to the
    model in the thread of the caller, because models keep no state.

    Args:
        model: The model.

    Attributes:
        clips: Number of clips so far.
        batches: Number of calls of the model for them.
    """

    def __init__(self, model: Segmenter[Any]) -> None:
        self._model = model
        self._changed = threading.Condition()
        self._waiting: deque[_Clip] = deque()
        self._closed = False
        self.clips = self.batches = 0
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> Any:
        """Return a member of the model."""
        return getattr(self._model, name)

    @property
    def waiting(self) -> int:
        """Number of clips that wait."""
        return len(self._waiting)

    def segment_clip(
        self, pixels: Any, tracks: Sequence[Any], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames (see ``Segmenter.segment_clip``); blocks until the model has done so."""
        clip = _Clip(pixels, tracks, placements)
        with self._changed:
            if self._closed:
                raise RuntimeError("the model was closed")
            self._waiting.append(clip)
            self._changed.notify_all()
        return iter(clip.result.result())

    def close(self) -> None:
        """End the thread, after the clips that wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                batch = self._next_batch()
            try:
                results = self._segment(batch)
            except BaseException as error:
                for clip in batch:
                    clip.result.set_exception(error)
            else:
                for clip, result in zip(batch, results, strict=True):
                    clip.result.set_result(result)

    def _next_batch(self) -> list[_Clip]:
        """Take the first clip that waits, and all others that can run with it."""
        first = self._waiting.popleft()
        key = first.batch_key
        if key is None or not hasattr(self._model, "segment_clips"):
            return [first]
        others = [clip for clip in self._waiting if clip.batch_key == key]
        self._waiting = deque(clip for clip in self._waiting if clip.batch_key != key)
        return [first, *others]

    def _segment(self, batch: list[_Clip]) -> list[list[FramePrediction]]:
        self.clips += len(batch)
        if len(batch) > 1:
            pixels = torch.stack([clip.pixels for clip in batch])
            try:
                frames = list(self._model.segment_clips(pixels, [clip.tracks[0] for clip in batch]))  # type: ignore[attr-defined]
            except PromptError:
                pass  # a new track has a click or a box, which only single clips accept; nothing has changed yet
            else:
                self.batches += 1
                return [[_row(frame, k) for frame in frames] for k in range(len(batch))]
        self.batches += len(batch)
        return [list(self._model.segment_clip(clip.pixels, clip.tracks, clip.placements)) for clip in batch]


def _row(prediction: FramePrediction, row: int) -> FramePrediction:
    """Return the prediction of one track of a batch."""
    kept = slice(row, row + 1)
    score = None if prediction.score is None else prediction.score[kept]
    return FramePrediction(prediction.mask_logits[kept], score, prediction.switched[kept])
