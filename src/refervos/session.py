"""A stream being segmented: frames in, one answer a frame out. All state is here, none on the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from refervos.errors import ConfigError, FrameError, PromptError
from refervos.frames import Placement, as_rgb
from refervos.prompts import Prompt
from refervos.segmentation import Segmentation
from refervos.segmenter import FramePrediction, Segmenter

Item = TypeVar("Item")


@dataclass
class _Followed:
    """A track of the session: what was asked, and the model's state for it."""

    prompt: Prompt
    state: Any


class Session:
    """One stream and the tracks followed in it.

    Frames go in by ``step`` (one, answered at once), ``clip`` (several that the model may look at together) or
    ``stream`` (any iterable, cut into clips). Any number of sessions can run on one model.

    Args:
        model: What segments; not changed.
        prompts: What to follow from the first frame on; more can be added later.
        keep_logits: Also return mask logits at the frame's size.

    Raises:
        ConfigError: When the model is in training mode.
        PromptError: When the model cannot be asked with a prompt.
    """

    def __init__(
        self, model: Segmenter[Any], prompts: Iterable[Prompt | str] = (), *, keep_logits: bool = False
    ) -> None:
        if getattr(model, "training", False):
            raise ConfigError("the model is in training mode; call model.eval() before opening a session.")
        self.model = model
        self.keep_logits = keep_logits
        self.frame_index = 0
        self._tracks: dict[int, _Followed] = {}
        self._next_track = 0
        for prompt in prompts:
            self.add(prompt)

    @property
    def expressions(self) -> dict[int, str]:
        """Each track's number and what it was asked for."""
        return {number: track.prompt.description for number, track in self._tracks.items()}

    def add(self, prompt: Prompt | str) -> int:
        """Follow one more object from the next frame on.

        Args:
            prompt: A sentence, or a ``Prompt`` with one or with clicks, a box or a mask.

        Returns:
            The track's number, never used again in this session.

        Raises:
            PromptError: When the model cannot be asked with it.
        """
        if isinstance(prompt, str):
            prompt = Prompt(prompt)
        if not isinstance(prompt, Prompt):
            raise PromptError(f"the prompt is a {type(prompt).__name__}; give a sentence or a Prompt.")
        number = self._next_track
        self._tracks[number] = _Followed(prompt, self.model.begin(prompt))
        self._next_track += 1
        return number

    def drop(self, track: int) -> None:
        """Stop following a track.

        Raises:
            PromptError: When there is no such track.
        """
        if track not in self._tracks:
            raise PromptError(f"there is no track {track}; the tracks are {sorted(self._tracks)}.")
        del self._tracks[track]

    def step(self, frame: Any) -> Segmentation:
        """Segment one frame, before the next one is known.

        Args:
            frame: uint8 RGB (H, W, 3) or gray (H, W), array or tensor, of any size.

        Returns:
            The masks at the frame's size.

        Raises:
            FrameError: When the frame is something else.
        """
        return self.clip([frame])[0]

    def clip(self, frames: Sequence[Any]) -> list[Segmentation]:
        """Segment consecutive frames that the model may look at together (the published protocol takes eight).

        Args:
            frames: Frames as for ``step``; sizes may differ.

        Returns:
            One answer a frame.

        Raises:
            FrameError: When a frame is no 8-bit image, or there is none; nothing has moved on then.
        """
        if len(frames) == 0:
            raise FrameError("the clip has no frames; give at least one.")
        images = [as_rgb(frame).to(self.model.device) for frame in frames]
        placements = [self.model.placement((image.shape[1], image.shape[2])) for image in images]
        if not self._tracks:
            return [self._answer(None, placement) for placement in placements]
        pixels = torch.stack([place.place(image) for place, image in zip(placements, images, strict=True)])
        states = [track.state for track in self._tracks.values()]
        predictions = self.model.segment_clip(pixels, states, placements)
        return [self._answer(prediction, place) for prediction, place in zip(predictions, placements, strict=True)]

    def stream(self, frames: Iterable[Any], clip_length: int | None = None) -> Iterator[Segmentation]:
        """Segment an iterable of frames, clip by clip.

        Args:
            frames: Frames as for ``step``; read only as far as needed.
            clip_length: Frames looked at together, default the model's; 1 answers each frame before reading the next.

        Yields:
            One answer a frame, in order.

        Raises:
            ConfigError: When ``clip_length`` is below 1.
        """
        for clip in self.cut(frames, clip_length):
            yield from self.clip(clip)

    def cut(self, frames: Iterable[Item], clip_length: int | None = None) -> Iterator[list[Item]]:
        """Cut an iterable into clips, read only as far as the clip at hand; the last may be shorter.

        Args:
            frames: Frames, or whatever comes with them.
            clip_length: Items in a clip, default what the model likes.

        Yields:
            Clips, none empty.

        Raises:
            ConfigError: When ``clip_length`` is below 1.
        """
        length = self.model.clip_length if clip_length is None else clip_length
        if length < 1:
            raise ConfigError(f"clip_length is {length}; it must be at least 1.")
        source = iter(frames)
        while clip := list(islice(source, length)):
            yield clip

    def _answer(self, prediction: FramePrediction | None, placement: Placement) -> Segmentation:
        """Bring a prediction to the frame's size and number it."""
        height, width = placement.frame_size
        count = len(self._tracks)
        index = self.frame_index
        self.frame_index += 1
        logits = torch.zeros(0, height, width) if prediction is None else placement.restore(prediction.mask_logits)
        return Segmentation(
            frame_index=index,
            track_ids=tuple(self._tracks),
            expressions=tuple(self.expressions.values()),
            masks=(logits > 0).cpu().numpy(),
            presence=_presence(prediction, count),
            switched=np.zeros(0, dtype=bool) if prediction is None else prediction.switched.cpu().numpy(),
            logits=logits.cpu().numpy() if self.keep_logits else None,
        )


def _presence(prediction: FramePrediction | None, count: int) -> np.ndarray:
    score: Tensor | None = None if prediction is None else prediction.score
    if score is None:
        return np.ones(count, dtype=np.float32)
    return torch.sigmoid(score.float()).cpu().numpy()
