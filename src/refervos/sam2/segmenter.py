"""Plain SAM2: clicks, a box or a mask on a track's first frame, followed from then on.

The model keeps nothing between calls: what a track needs remembered lives in a ``Sam2Track`` held by the caller.
Shapes: N tracks, of which n are in one batch; P points; C = ``hidden``, g = ``grid`` (S / 16), S = ``image_size``.
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
from refervos.sam2.correction import STATE_TYPES, CorrectableTrack, check_restored, correct, keep_last, undo
from refervos.sam2.memory import MemoryBank, MemoryReading, group_by_layout, stack_readings
from refervos.sam2.prompting import Answer, answer_best, answer_masks, answer_points, check_geometry, check_within
from refervos.sam2.tracker import FrameFeatures, Sam2Tracker
from refervos.segmenter import FramePrediction, merge_predictions
from refervos.session.state_files import check_state


@dataclass(kw_only=True)
class Sam2Track(CorrectableTrack):
    """One prompt and what has to be remembered for it.

    Attributes:
        prompt: The clicks, box or mask on the first frame.
    """

    prompt: Prompt


class Sam2Segmenter(VideoSegmenterBase):
    """SAM2 video segmentation (Ravi et al. 2024, arXiv 2408.00714), versions 1 and 2.1. It is not trained here.

    Args:
        tracker: The weights; their gradients are switched off.
    """

    model_type = "refervos-sam2"

    def __init__(self, tracker: Sam2Tracker) -> None:
        super().__init__()
        self.config = tracker.config
        self.tracker = tracker
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Sam2Segmenter:
        """Stay in evaluation mode: dropout in the memory attention would only blur the masks."""
        return super().train(False)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of weights and activations; position tables stay in float32."""
        return self.tracker.dtype

    # What a session asks.

    @property
    def clip_length(self) -> int:
        """SAM2 looks at single frames."""
        return 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tracker.sine_top.device

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """The frame fills the square."""
        return stretch(frame_size, self.tracker.config.image_size)

    def begin(self, prompt: Prompt) -> Sam2Track:
        """Start a track for clicks, a box or a mask; the first frame it is given is the one they lie on.

        Args:
            prompt: What to follow.

        Returns:
            The track.

        Raises:
            PromptError: When the prompt has an expression or its mask is empty.
        """
        if prompt.expression is not None:
            raise PromptError("SAM2 understands points, boxes and masks; load a SAMWISE checkpoint for sentences.")
        check_geometry(prompt)
        config = self.tracker.config
        memory = MemoryBank(map_limit=config.memory_slots - 1, pointer_limit=config.pointer_limit - 1)
        return Sam2Track(prompt=prompt, memory=memory)

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[Sam2Track], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames of one video, one at a time (see ``Segmenter``).

        Args:
            pixels: Placed frames (T, 3, S, S).
            tracks: The N tracks, of any age; for a new one, the first frame is the one its prompt is about.
            placements: Where each frame lies in the square, length T.

        Returns:
            An iterator over T predictions; each frame is computed when it is asked for.

        Raises:
            PromptError: At once, before any track has moved, when a new track's click or box lies outside the first
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
        """Encode a frame (3, S, S) once, then answer and remember it for each track; the tracks move on by one."""
        features = self.tracker.pyramid(self.tracker.encode(frame.unsqueeze(0)))
        readings = [track.memory.read(track.frame) for track in tracks]
        groups = group_by_layout(readings, [_question(track) for track in tracks])
        answers = []
        for members in groups:
            group = [tracks[index] for index in members]
            mine = _repeat(features, len(members))
            answer = self._answer(mine, group, stack_readings([readings[index] for index in members]), placement)
            answers.append(answer)
            self._remember(mine, group, answer)
        none = torch.zeros(len(tracks), dtype=torch.bool, device=frame.device)
        parts = [
            FramePrediction(answer.mask_logits[:, 0], answer.score, none[: len(members)])
            for members, answer in zip(groups, answers, strict=True)
        ]
        prediction = merge_predictions(groups, parts)
        keep_last(tracks, frame.unsqueeze(0), prediction)
        return prediction

    def _answer(
        self, features: FrameFeatures, tracks: Sequence[Sam2Track], memory: MemoryReading, placement: Placement
    ) -> Answer:
        """The masks of tracks that are alike: all new with prompts of one kind, or all with the same layout."""
        if tracks[0].frame:
            sparse = self.tracker.padding_points(len(tracks))  # (n, 2, C)
            conditioned = self.tracker.condition(features.top, memory)
            return answer_best(self.tracker, conditioned, features, sparse, multimask=True)
        prompts = [track.prompt for track in tracks]
        if prompts[0].mask is not None:
            return answer_masks(self.tracker, features, prompts, placement)
        return answer_points(self.tracker, features, prompts, placement)

    def _remember(self, features: FrameFeatures, tracks: Sequence[Sam2Track], answer: Answer) -> None:
        prompted = tracks[0].frame == 0
        maps = self.tracker.remember(features.top, answer.memory_logits, answer.score, binary=prompted)
        for row, track in enumerate(tracks):
            track.memory.store(track.frame, maps[row], answer.pointer[row], conditioning=prompted)
            track.frame += 1

    # What a user changes in mid-stream.

    def correct(self, track: Sam2Track, prompt: Prompt, placement: Placement) -> FramePrediction:
        """Answer the last frame again by clicks, a box or a mask (see ``correction.correct``)."""
        with torch.inference_mode():
            return correct(self.tracker, track, prompt, placement)

    def undo(self, track: Sam2Track) -> FramePrediction | None:
        """Take the last correction back (see ``correction.undo``)."""
        return undo(track)

    def set_prompt(self, track: Sam2Track, prompt: Prompt) -> None:
        """A track of clicks has no sentence to change.

        Raises:
            PromptError: Always.
        """
        raise PromptError("SAM2 follows clicks, boxes and masks; correct the track instead of renaming it.")

    def restart(self, track: Sam2Track) -> None:
        """Keep the memory: without it the object could not be found again."""

    def mark_gap(self, track: Sam2Track) -> None:
        """Nothing depends on frames being neighbours."""

    def check_restored(self, track: Sam2Track) -> None:
        """Check that a track that was read from a file can go on (see ``Segmenter``)."""
        check_state(track.prompt.expression is None and track.prompt.geometric, "a track is asked with a sentence")
        track.prompt.check()
        check_geometry(track.prompt)
        check_restored(track, self.config, self.compute_dtype)

    @property
    def mixes_sentences(self) -> bool:
        """There are none."""
        return False

    @property
    def state_types(self) -> tuple[type, ...]:
        """The classes that a track is made of."""
        return (Sam2Track, *STATE_TYPES)

    # What it is.

    def stages_to_compile(self) -> Sequence[Stage]:
        """Those of the tracker."""
        return self.tracker.stages_to_compile()

    def describe(self) -> dict[str, Any]:
        """Parts and parameter counts."""
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


def _question(track: Sam2Track) -> str | int:
    """What is asked of a track's current frame; equal questions are answered in one batch."""
    if track.frame:
        return "follow"
    prompt = track.prompt
    if prompt.mask is not None:
        return "mask"
    return 2 * (prompt.box is not None) + (0 if prompt.points is None else len(prompt.points))


def _repeat(features: FrameFeatures, count: int) -> FrameFeatures:
    """One frame's features (1, ...) for several tracks (count, ...), without copying."""
    return FrameFeatures(*(level.expand(count, -1, -1, -1) for level in (features.fine, features.middle, features.top)))
