"""Plain SAM2: clicks, a box or a mask on a track's first frame, followed from then on.

The model keeps nothing between calls: what a track needs remembered lives in a ``Sam2Track`` held by the caller.
Shapes: N tracks, of which n are in one batch; P points; C = ``hidden``, g = ``grid`` (S / 16), S = ``image_size``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import PromptError
from refervos.frames import Placement, stretch
from refervos.pretrained import Pretrained
from refervos.prompts import Prompt
from refervos.sam2.memory import MemoryBank, MemoryReading, group_by_layout, stack_readings
from refervos.sam2.tracker import FrameFeatures, Sam2Tracker, gate
from refervos.segmenter import FramePrediction
from refervos.weights import count_parameters

BOX_LABELS = (2, 3)
"""Labels of a box's top-left and bottom-right corner among the points."""

MULTIMASK_POINTS = 1
"""Up to this many points are ambiguous, so SAM2 proposes three masks and the best one counts; tracked frames too."""

MASK_LOGIT = 10.0
"""A mask prompt is taken for an answer with this logit inside the object, and minus this logit outside."""


@dataclass
class Sam2Track:
    """One prompt and what has to be remembered for it.

    Attributes:
        prompt: The clicks, box or mask on the first frame.
        memory: Maps and pointers of past frames.
        frame: Frames seen so far.
    """

    prompt: Prompt
    memory: MemoryBank
    frame: int = 0


@dataclass(frozen=True)
class _Answer:
    """One frame of a group of tracks, before it is remembered."""

    mask_logits: Tensor  # (n, 1, 4g, 4g), gated
    memory_logits: Tensor  # (n, 1, S, S)
    pointer: Tensor  # (n, C)
    score: Tensor | None  # (n,)


class Sam2Segmenter(Pretrained):
    """SAM2 video segmentation (Ravi et al. 2024, arXiv 2408.00714), versions 1 and 2.1. It is not trained here.

    Args:
        tracker: The weights; their gradients are switched off.
    """

    model_type = "refervos-sam2"

    def __init__(self, tracker: Sam2Tracker) -> None:
        super().__init__()
        self.config = tracker.config
        self.tracker = tracker
        self.compute_dtype = torch.float32
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Sam2Segmenter:
        """Stay in evaluation mode: dropout in the memory attention would only blur the masks."""
        return super().train(False)

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
        if prompt.mask is not None and not np.any(prompt.mask):
            raise PromptError("the mask prompt is empty; mark at least one pixel of the object.")
        config = self.tracker.config
        memory = MemoryBank(map_limit=config.memory_slots - 1, pointer_limit=config.pointer_limit - 1)
        return Sam2Track(prompt, memory)

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
        for track in tracks:
            if track.frame == 0 and placements:
                check_within(track.prompt, placements[0].frame_size)
        return self._segment(pixels, tracks, placements)

    @torch.inference_mode()
    def _segment(
        self, pixels: Tensor, tracks: Sequence[Sam2Track], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        for frame, placement in zip(pixels, placements, strict=True):
            # Not around the yield: there, autocast would stay on in the caller's code.
            with torch.autocast(frame.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32):
                prediction = self._segment_frame(frame, tracks, placement)
            yield prediction

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
        back = torch.tensor([index for members in groups for index in members]).argsort()
        scores = [answer.score for answer in answers if answer.score is not None]
        return FramePrediction(
            mask_logits=torch.cat([answer.mask_logits[:, 0] for answer in answers])[back],  # (N, 4g, 4g)
            score=torch.cat(scores)[back] if scores else None,
            switched=torch.zeros(len(tracks), dtype=torch.bool, device=frame.device),
        )

    def _answer(
        self, features: FrameFeatures, tracks: Sequence[Sam2Track], memory: MemoryReading, placement: Placement
    ) -> _Answer:
        """The masks of tracks that are alike: all new with prompts of one kind, or all with the same layout."""
        if tracks[0].frame:
            sparse = self.tracker.padding_points(len(tracks))  # (n, 2, C)
            return self._decode(self.tracker.condition(features.top, memory), features, sparse, multimask=True)
        weights = self.tracker.sine_top  # as the weights: device and type
        if tracks[0].prompt.mask is not None:
            masks = torch.stack([place_mask(track.prompt.mask, placement) for track in tracks])  # (n, 1, S, S)
            return self._take_masks(features, masks.to(weights))
        points, labels = zip(*(place_points(track.prompt, placement) for track in tracks), strict=True)
        sparse = self.tracker.embed_points(torch.stack(points).to(weights), torch.stack(labels).to(weights.device))
        multimask = len(labels[0]) <= MULTIMASK_POINTS
        return self._decode(self.tracker.without_memory(features.top), features, sparse, multimask=multimask)

    def _decode(self, conditioned: Tensor, features: FrameFeatures, sparse: Tensor, *, multimask: bool) -> _Answer:
        """Decode and keep the candidate whose predicted quality is best."""
        decoded = self.tracker.decode(conditioned, features, sparse, multimask=multimask)
        best = decoded.ious.argmax(dim=1)  # (n,), 0 where there is one candidate only
        rows = torch.arange(len(best), device=best.device)
        logits = gate(decoded.mask_logits[rows, best].unsqueeze(1), decoded.score)  # (n, 1, 4g, 4g)
        return _Answer(
            mask_logits=logits,
            memory_logits=self.tracker.upsample(logits),
            pointer=self.tracker.pointer(decoded.tokens[rows, best], decoded.score),
            score=decoded.score,
        )

    def _take_masks(self, features: FrameFeatures, masks: Tensor) -> _Answer:
        """Take mask prompts (n, 1, S, S) of zeros and ones for the answer; the decoder gives the pointer alone."""
        logits = masks * (2 * MASK_LOGIT) - MASK_LOGIT
        size = self.tracker.config.mask_size
        small = F.interpolate(logits, (size, size), mode="bilinear", antialias=True, align_corners=False)
        # The pointer comes from the single-mask token, as in Meta's code, with which the weights were trained
        # (transformers takes the best of the three others), and the features know of no missing memory.
        sparse, dense = self.tracker.padding_points(len(masks)), self.tracker.embed_mask(masks)
        decoded = self.tracker.decode(features.top, features, sparse, dense=dense)
        if decoded.score is None:
            return _Answer(small, logits, self.tracker.pointer(decoded.tokens[:, 0], None), None)
        # A mask of a few pixels may have vanished in the square.
        present = masks.flatten(1).amax(dim=1)  # (n,), 0 or 1
        score = present * (2 * MASK_LOGIT) - MASK_LOGIT
        pointer = self.tracker.pointer(decoded.tokens[:, 0], torch.minimum(decoded.score, score))
        return _Answer(small, logits, pointer, score)

    def _remember(self, features: FrameFeatures, tracks: Sequence[Sam2Track], answer: _Answer) -> None:
        prompted = tracks[0].frame == 0
        maps = self.tracker.remember(features.top, answer.memory_logits, answer.score, binary=prompted)
        for row, track in enumerate(tracks):
            track.memory.store(track.frame, maps[row], answer.pointer[row], conditioning=prompted)
            track.frame += 1

    # What it is.

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


# Prompts, from the frame into the square.


def check_within(prompt: Prompt, frame_size: tuple[int, int]) -> None:
    """Check that a prompt fits the frame it is about.

    Args:
        prompt: Clicks, a box or a mask.
        frame_size: Height and width in pixels.

    Raises:
        PromptError: When a click or the box lies outside the frame, or the mask has another size.
    """
    height, width = frame_size
    for x, y in () if prompt.points is None else prompt.points:
        if not (0 <= x < width and 0 <= y < height):
            raise PromptError(
                f"the click at x {x:g}, y {y:g} lies outside the frame; "
                f"x must be from 0 to {width - 1} and y from 0 to {height - 1}."
            )
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        if not (x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height):
            raise PromptError(
                f"the box from x {x0:g}, y {y0:g} to x {x1:g}, y {y1:g} reaches outside the frame; "
                f"x must be from 0 to {width} and y from 0 to {height}."
            )
    if prompt.mask is not None and prompt.mask.shape != (height, width):
        rows, columns = prompt.mask.shape
        raise PromptError(
            f"the mask prompt is {columns} x {rows} pixels and the frame {width} x {height}; "
            "give a mask of the frame's size."
        )


def place_points(prompt: Prompt, placement: Placement) -> tuple[Tensor, Tensor]:
    """The points of a prompt, corners of the box before the clicks, in pixels of the square.

    Args:
        prompt: Clicks, a box or both.
        placement: Where the frame lies in the square.

    Returns:
        float32 x, y (P, 2) and int64 labels (P,).
    """
    points: list[Sequence[float]] = []
    labels: list[int] = []
    if prompt.box is not None:
        points += [prompt.box[:2], prompt.box[2:]]
        labels += BOX_LABELS
    if prompt.points is not None:
        points += prompt.points
        labels += [1] * len(prompt.points) if prompt.labels is None else prompt.labels
    down, across = (new / old for new, old in zip(placement.resized, placement.frame_size, strict=True))
    placed = torch.tensor([(x * across, y * down) for x, y in points], dtype=torch.float32)
    return placed, torch.tensor(labels, dtype=torch.int64)


def place_mask(mask: Any, placement: Placement) -> Tensor:
    """A mask prompt in the square.

    Args:
        mask: bool (H, W), at the frame's size.
        placement: Where the frame lies in the square.

    Returns:
        float32 (1, S, S), zeros and ones.
    """
    placed = torch.from_numpy(np.array(mask, dtype=bool)).float()[None, None]  # (1, 1, H, W)
    if placement.resized != placement.frame_size:
        placed = F.interpolate(placed, placement.resized, mode="bilinear", antialias=True, align_corners=False)
        placed = (placed >= 0.5).float()
    height, width = placement.resized
    return F.pad(placed, (0, placement.image_size - width, 0, placement.image_size - height))[0]  # (1, S, S)


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
