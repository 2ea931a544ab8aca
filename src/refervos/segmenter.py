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
"""Memory budget of one batch on a CPU in bytes; larger batches save almost no time there."""

SHARE_OF_FREE = 0.5
"""Fraction of a GPU's free memory that one batch may use; the rest is for other work and fragmentation."""


def batch_budget(device: torch.device, chosen: int | None = None) -> int:
    """Choose the memory budget of one batch.

    Args:
        device: Device of the computation.
        chosen: Budget set by the user in bytes; None for a fraction of the device's free memory.

    Returns:
        The budget in bytes.
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
    """Prediction of a model for one frame and N tracks.

    Attributes:
        mask_logits: Low-resolution mask logits over the model's square image (N, h, w).
        score: Object score logits (N,), or None when the model has none.
        switched: bool (N,), True where the memory of this frame was rewritten.
    """

    mask_logits: Tensor
    score: Tensor | None
    switched: Tensor

    @property
    def has_nan(self) -> Tensor:
        """True if any value is NaN, which would give an empty mask; bool () on its device."""
        has_nan = self.mask_logits.isnan().any()
        return has_nan if self.score is None else has_nan | self.score.isnan().any()


def check_numbers(has_nan: bool) -> None:
    """Raise if a prediction contains NaN.

    Args:
        has_nan: See ``FramePrediction.has_nan``.

    Raises:
        CheckpointError: When it does.
    """
    if has_nan:
        raise CheckpointError(
            "the model's output contains NaN; its weights are damaged, or its values are too large for float16: "
            "load it in bfloat16 or float32, or use another checkpoint."
        )


def merge_predictions(groups: Sequence[Sequence[int]], parts: Sequence[FramePrediction]) -> FramePrediction:
    """Merge the predictions for groups of tracks, in the order of the tracks.

    Args:
        groups: Indices of each group's tracks.
        parts: Each group's prediction for the frame, its rows in that order.

    Returns:
        One prediction.
    """
    order = order_of(groups)
    scores = [part.score for part in parts if part.score is not None]
    return FramePrediction(
        mask_logits=torch.cat([part.mask_logits for part in parts])[order.to(parts[0].mask_logits.device)],
        score=torch.cat(scores)[order.to(scores[0].device)] if scores else None,
        switched=torch.cat([part.switched for part in parts])[order.to(parts[0].switched.device)],
    )


def order_of(groups: Sequence[Sequence[int]]) -> Tensor:
    """Return the permutation that brings rows sorted by group back into their original order, int64 (N,)."""
    return torch.tensor([index for members in groups for index in members]).argsort()


Track = TypeVar("Track")


class Segmenter(Protocol[Track]):
    """Contract between a session and a model. Implementations keep no state between calls."""

    @property
    def clip_length(self) -> int:
        """Preferred number of frames per clip; 1 for models that process single frames."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """Return the placement of a frame of this height and width in the model's square."""
        ...

    def begin(self, prompt: Prompt) -> Track:
        """Start a track: all state that one prompt needs from frame to frame."""
        ...

    def prepare(self, images: Sequence[Tensor], placements: Sequence[Placement], past: list[Any]) -> Any:
        """Prepare consecutive frames for ``segment_clip``.

        Args:
            images: The frames, uint8 (3, H, W), at least one.
            placements: Placement of each frame in the square.
            past: What the model keeps of the stream's earlier frames, updated here; empty at the start of a scene.

        Returns:
            The ``pixels`` of ``segment_clip``: placed frames (T, 3, S, S) for most models.
        """
        ...

    def check_past(self, past: list[Any]) -> None:
        """Check by types and shapes that what was read from a file is what ``prepare`` could have kept.

        Raises:
            StateError: When it is not.
        """
        ...

    def segment_clip(
        self, pixels: Any, tracks: Sequence[Track], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames, one prediction a frame, and update the tracks.

        Args:
            pixels: T frames as returned by ``prepare``.
            tracks: The N tracks; they advance by T frames.
            placements: Placement of each frame in the square (for prompts in pixels), length T.
        """
        ...

    def check(self, track: Track, frame_size: tuple[int, int]) -> None:
        """Check that the clicks, box or mask of a new track, if any, fit its first frame.

        Raises:
            PromptError: When they do not.
        """
        ...

    def correct(self, track: Track, prompt: Prompt, placement: Placement) -> FramePrediction:
        """Segment the track's last frame again from clicks, a box or a mask; return a prediction of one row."""
        ...

    def undo(self, track: Track) -> FramePrediction | None:
        """Undo the last correction; return the last frame's former prediction, or None if frames have come since."""
        ...

    def set_prompt(self, track: Track, prompt: Prompt) -> None:
        """Replace the prompt of a running track; its memory is kept."""
        ...

    def restart(self, track: Track) -> None:
        """Clear the memory at a scene cut, if the object can be found again without it."""
        ...

    def mark_gap(self, track: Track) -> None:
        """Declare that frames were lost before the next one."""
        ...

    @property
    def mixes_sentences(self) -> bool:
        """True if a track's prediction depends on the other tracks in the batch, beyond rounding."""
        ...

    @property
    def state_types(self) -> tuple[type, ...]:
        """The dataclasses that make up a track, for saving it."""
        ...

    def check_restored(self, track: Track) -> None:
        """Check by types and shapes that a track read from a file is one that this model could have saved.

        Raises:
            StateError: When it is not.
        """
        ...

    def fingerprint(self) -> str:
        """Return an identifier shared only by models that would continue a track identically."""
        ...

    def describe(self) -> dict[str, Any]:
        """Describe the model: family, parts, parameters."""
        ...


@runtime_checkable
class BatchSegmenter(Segmenter[Track], Protocol[Track]):
    """Segmenter that can also process clips of several videos at once, each with one track."""

    def segment_clips(self, pixels: Tensor, tracks: Sequence[Track]) -> Iterator[FramePrediction]:
        """Segment N clips of equal length, one prediction with N rows a frame, and update the tracks.

        Args:
            pixels: Placed frames (N, T, 3, S, S).
            tracks: The N tracks, prompted with sentences; each advances by the T frames of its clip.

        Raises:
            PromptError: Immediately, before any track changes, when a new track has clicks, a box or a mask.
        """
        ...
