"""The contract between models and sessions: models are stateless, tracks hold the state, sessions hold the tracks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from refervos.errors import CheckpointError
from refervos.placement import Placement
from refervos.prompts import Prompt

CPU_BUDGET = 2**30
"""Bytes that one batch may take on a CPU, where larger ones save next to no time."""

SHARE_OF_FREE = 0.5
"""Share of the free memory of a GPU that one batch may take; other work and fragments need the rest."""


def batch_budget(device: torch.device, chosen: int | None = None) -> int:
    """Choose how much memory one batch may take.

    Args:
        device: Where it is computed.
        chosen: What the user set, in bytes; None for a share of what the device has free now.

    Returns:
        Bytes.
    """
    if chosen is not None:
        return chosen
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(SHARE_OF_FREE * (free + reusable))
    if device.type == "mps":
        free = torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
        return max(CPU_BUDGET, int(SHARE_OF_FREE * free))
    return CPU_BUDGET


@dataclass(frozen=True)
class FramePrediction:
    """What a model says of one frame, for N tracks.

    Attributes:
        mask_logits: Low-resolution mask logits over the model's square image (N, h, w).
        score: Object score logits (N,), or None when the model has none.
        switched: bool (N,), where the memory of this frame was rewritten.
    """

    mask_logits: Tensor
    score: Tensor | None
    switched: Tensor

    @property
    def has_nan(self) -> Tensor:
        """Whether there is a NaN in it, bool () on its device: it would show as an empty mask. See ``check_numbers``"""
        has_nan = self.mask_logits.isnan().any()
        return has_nan if self.score is None else has_nan | self.score.isnan().any()


def check_numbers(has_nan: bool) -> None:
    """Refuse an answer that has no meaning.

    Args:
        has_nan: See ``FramePrediction.has_nan``.

    Raises:
        CheckpointError: When it is.
    """
    if has_nan:
        raise CheckpointError(
            "the model answers with NaN instead of numbers; its weights are damaged, or what it computes is too large "
            "for float16: load it in bfloat16 or float32, or take another checkpoint."
        )


def merge_predictions(groups: Sequence[Sequence[int]], parts: Sequence[FramePrediction]) -> FramePrediction:
    """Put the answers for groups of tracks back together, in the tracks' order.

    Args:
        groups: Positions of each group's tracks.
        parts: Each group's answer for the frame, its rows in that order.

    Returns:
        One answer.
    """
    order = order_of(groups)
    scores = [part.score for part in parts if part.score is not None]
    return FramePrediction(
        mask_logits=torch.cat([part.mask_logits for part in parts])[order.to(parts[0].mask_logits.device)],
        score=torch.cat(scores)[order.to(scores[0].device)] if scores else None,
        switched=torch.cat([part.switched for part in parts])[order.to(parts[0].switched.device)],
    )


def order_of(groups: Sequence[Sequence[int]]) -> Tensor:
    """The permutation that brings rows lined up group by group back into their own order, int64 (N,)."""
    return torch.tensor([index for members in groups for index in members]).argsort()


Track = TypeVar("Track")


class Segmenter(Protocol[Track]):
    """What a session asks of a model. Implementations keep nothing between calls."""

    @property
    def clip_length(self) -> int:
        """How many frames the model likes to see at once; 1 for models that look at single frames only."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """How a frame of this height and width goes into the model's square image."""
        ...

    def begin(self, prompt: Prompt) -> Track:
        """Start a track: everything that one prompt needs remembered from frame to frame."""
        ...

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[Track], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames, one prediction a frame, and update the tracks.

        Args:
            pixels: Placed frames (T, 3, S, S).
            tracks: The N tracks; their state moves on by T frames.
            placements: Where each frame lies in the square (for prompts in pixels), length T.
        """
        ...

    def check(self, track: Track, frame_size: tuple[int, int]) -> None:
        """Check that the clicks, box or mask of a track that has seen no frame fit its first one, if there are any.

        Raises:
            PromptError: When they do not.
        """
        ...

    def correct(self, track: Track, prompt: Prompt, placement: Placement) -> FramePrediction:
        """Answer the track's last frame again, by clicks, a box or a mask on it; returns one row."""
        ...

    def undo(self, track: Track) -> FramePrediction | None:
        """Take the last correction back; returns the last frame's answer as it was, unless frames came since."""
        ...

    def set_prompt(self, track: Track, prompt: Prompt) -> None:
        """Replace the prompt of a running track; its memory is kept."""
        ...

    def restart(self, track: Track) -> None:
        """Forget what was seen before a scene cut, if the object can be found again without it."""
        ...

    def mark_gap(self, track: Track) -> None:
        """Declare that frames were lost before the next one."""
        ...

    @property
    def mixes_sentences(self) -> bool:
        """Whether what a track is answered depends on those that are asked with it, beyond rounding."""
        ...

    @property
    def state_types(self) -> tuple[type, ...]:
        """The dataclasses that a track is made of, for writing it to disk."""
        ...

    def check_restored(self, track: Track) -> None:
        """Check that a track that was read from a file is one that this model could have left, by types and shapes.

        Raises:
            StateError: When it is not.
        """
        ...

    def fingerprint(self) -> str:
        """Tells this model from any that would go on differently with a track of this one."""
        ...

    def describe(self) -> dict[str, Any]:
        """What this model is: family, parts, parameters."""
        ...


@runtime_checkable
class BatchSegmenter(Segmenter[Track], Protocol[Track]):
    """A segmenter that can also take clips of several videos at once, each with one track of its own."""

    def segment_clips(self, pixels: Tensor, tracks: Sequence[Track]) -> Iterator[FramePrediction]:
        """Segment N clips of equal length, one prediction with N rows a frame, and update the tracks.

        Args:
            pixels: Placed frames (N, T, 3, S, S).
            tracks: The N tracks, asked with sentences; each moves on by the T frames of its clip.

        Raises:
            PromptError: At once, before any track has moved, when a track waits for its first frame with clicks, a box
                or a mask.
        """
        ...
