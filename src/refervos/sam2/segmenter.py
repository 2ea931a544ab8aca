"""Plain SAM2: follow the object that clicks, a box or a mask mark on a track's first frame.

The model keeps no state between calls: all state of a track is in a ``Sam2Track`` held by the caller.
Shapes: N tracks, n of them in one batch; P points; C = ``hidden``, g = ``grid`` (S / 16), S = ``image_size``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from refervos.checkpoints.weights import count_parameters
from refervos.errors import PromptError
from refervos.model_base import VideoSegmenterBase
from refervos.ops.compilation import Stage
from refervos.placement import Placement, stretch
from refervos.prompts import Prompt
from refervos.sam2.correction import STATE_TYPES, CorrectableTrack, check_restored, correct, undo
from refervos.sam2.following import empty_memory, segment_frame
from refervos.sam2.prompting import (
    GroupPrediction,
    check_geometry,
    check_within,
    geometry_kind,
    predict_from_geometry,
)
from refervos.sam2.tracker import FrameFeatures, Sam2Tracker
from refervos.segmenter import FramePrediction
from refervos.session.state_files import check_state


@dataclass(kw_only=True)
class Sam2Track(CorrectableTrack):
    """State of one tracked prompt.

    Attributes:
        prompt: The clicks, box or mask on the first frame.
    """

    prompt: Prompt


class Sam2Segmenter(VideoSegmenterBase):
    """SAM2 video segmentation (Ravi et al. 2024, arXiv 2408.00714), versions 1 and 2.1. It is not trained here.

    Args:
        tracker: The weights; their gradients are disabled.
    """

    model_type = "refervos-sam2"
    hub_tags = ("promptable-video-segmentation", "video-segmentation")
    example_prompt = "refervos.Prompt(points=[(320, 180)])"

    def __init__(self, tracker: Sam2Tracker) -> None:
        super().__init__()
        self.config = tracker.config
        self.tracker = tracker
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Sam2Segmenter:
        """Stay in evaluation mode: dropout in the memory attention would only degrade the masks."""
        return super().train(False)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of weights and activations; position tables stay in float32."""
        return self.tracker.dtype

    # The ``Segmenter`` contract.

    @property
    def clip_length(self) -> int:
        """1: SAM2 processes single frames."""
        return 1

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.tracker.sine_top.device

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """Stretch the frame to the square."""
        return stretch(frame_size, self.tracker.config.image_size)

    def begin(self, prompt: Prompt) -> Sam2Track:
        """Start a track for clicks, a box or a mask on its first frame.

        Args:
            prompt: The object to follow.

        Returns:
            The track.

        Raises:
            PromptError: When the prompt has an expression or its mask is empty.
        """
        if prompt.expression is not None:
            raise PromptError(
                "SAM2 takes points, boxes and masks, not sentences; load a SAMWISE or RefSAM model for sentences."
            )
        check_geometry(prompt)
        return Sam2Track(prompt=prompt, memory=empty_memory(self.tracker.config))

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[Sam2Track], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames of one video, one at a time (see ``Segmenter``).

        Args:
            pixels: Placed frames (T, 3, S, S).
            tracks: The N tracks, of any age; a new track's prompt refers to the first frame.
            placements: Placement of each frame in the square, length T.

        Returns:
            An iterator over T predictions, each computed when it is requested.

        Raises:
            PromptError: Immediately, before any track changes, when a new track's click or box lies outside the first
                frame or its mask has another size.
        """
        for track in tracks if placements else ():
            self.check(track, placements[0].frame_size)
        return self._segment(pixels, tracks, placements)

    def check(self, track: Sam2Track, frame_size: tuple[int, int]) -> None:
        """Check that a new track's prompt fits its first frame (see ``Segmenter``)."""
        if track.frame == 0:
            check_within(track.prompt, frame_size)

    @torch.inference_mode()
    def _segment(
        self, pixels: Tensor, tracks: Sequence[Sam2Track], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        for frame, placement in zip(pixels, placements, strict=True):
            yield self._segment_frame(frame, tracks, placement)

    # One frame.

    def _segment_frame(self, frame: Tensor, tracks: Sequence[Sam2Track], placement: Placement) -> FramePrediction:
        """Encode a frame (3, S, S) once, then predict and store it for each track; the tracks advance by one frame."""

        def first(features: FrameFeatures, group: Sequence[Sam2Track]) -> GroupPrediction:
            return predict_from_geometry(self.tracker, features, [track.prompt for track in group], placement)

        kinds = ["follow" if track.frame else geometry_kind(track.prompt) for track in tracks]
        return segment_frame(self.tracker, frame, tracks, kinds, first)

    # Changes by the user in mid-stream.

    def correct(self, track: Sam2Track, prompt: Prompt, placement: Placement) -> FramePrediction:
        """Segment the last frame again from clicks, a box or a mask (see ``correction.correct``)."""
        with torch.inference_mode():
            return correct(self.tracker, track, prompt, placement)

    def undo(self, track: Sam2Track) -> FramePrediction | None:
        """Undo the last correction (see ``correction.undo``)."""
        return undo(track)

    def set_prompt(self, track: Sam2Track, prompt: Prompt) -> None:
        """Refuse: a track of clicks has no sentence to replace.

        Raises:
            PromptError: Always.
        """
        raise PromptError(
            "SAM2 takes clicks, boxes and masks, not sentences; correct the track instead of changing its prompt."
        )

    def restart(self, track: Sam2Track) -> None:
        """Keep the memory, without which the object could not be found again."""

    def mark_gap(self, track: Sam2Track) -> None:
        """Do nothing: no computation assumes that frames are adjacent."""

    def check_restored(self, track: Sam2Track) -> None:
        """Check a track read from a file (see ``Segmenter``)."""
        check_state(track.prompt.expression is None and track.prompt.geometric, "a track has a sentence as its prompt")
        track.prompt.check()
        check_geometry(track.prompt)
        check_restored(track, self.config, self.compute_dtype)

    @property
    def mixes_sentences(self) -> bool:
        """False: SAM2 takes no sentences."""
        return False

    @property
    def state_types(self) -> tuple[type, ...]:
        """The classes that make up a track."""
        return (Sam2Track, *STATE_TYPES)

    # Description.

    def stages_to_compile(self) -> Sequence[Stage]:
        """Return the stages of the tracker."""
        return self.tracker.stages_to_compile()

    def describe(self) -> dict[str, Any]:
        """Describe the model: its parts and their parameter counts."""
        sam = self.tracker.sam
        parts = {
            "image encoder": sam.vision_encoder,
            "memory attention": sam.memory_attention,
            "prompt encoder": sam.prompt_encoder,
            "mask decoder": sam.mask_decoder,
            "memory encoder": sam.memory_encoder,
        }
        return {
            "family": "SAM2.1" if self.tracker.config.occlusion_embedding else "SAM2",
            "parts": {name: count_parameters(part) for name, part in parts.items()},
            "total": count_parameters(self),
            "trained": 0,
        }
