"""Corrections of a running track by clicks, a box or a mask on its last frame, and undoing them.

Clicks on one frame add up: each correction uses all earlier clicks on that frame as well.

SAM2 alone segments the corrected frame again, and the frame is stored as a conditioning frame, which stays in memory
while others are replaced. When the new mask shows another object, the whole memory shows the wrong one and is cleared.
From then on the track is marked as manually corrected: adapters that let the sentence change the image features would
pull it back to the misread object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refervos.errors import PromptError
from refervos.placement import Placement
from refervos.prompts import Prompt
from refervos.sam2.config import Sam2Config
from refervos.sam2.memory import CONDITIONING_LIMIT, MemoryBank, MemoryMap, ObjectPointer
from refervos.sam2.prompting import check_geometry, check_within, predict_from_geometry
from refervos.sam2.tracker import Sam2Tracker, gate
from refervos.segmenter import FramePrediction
from refervos.session.state_files import check_state, check_tensor

UNDO_STEPS = 16
"""Corrections of a track that can be undone; older ones are dropped."""

SAME_OBJECT = 0.1
"""Two masks show different objects when they share less than this fraction of the smaller one."""

Calibration = Callable[[Tensor | None], tuple[Tensor | None, Tensor | None]]
"""Maps object scores (n,) to presence logits and to their margins over the presence threshold, (n,) each."""


@dataclass(frozen=True)
class LastFrame:
    """Last frame of a track, kept so that a correction can segment it again.

    Attributes:
        pixels: The placed frame (3, S, S).
        mask_logits: Predicted mask logits (1, 1, 4g, 4g).
        score: Object score logit (1,) as returned to the session (calibrated by models that calibrate), or None.
    """

    pixels: Tensor
    mask_logits: Tensor
    score: Tensor | None

    @property
    def prediction(self) -> FramePrediction:
        """The prediction in the format of ``Segmenter``."""
        switched = torch.zeros(1, dtype=torch.bool, device=self.mask_logits.device)
        return FramePrediction(self.mask_logits[:, 0], self.score, switched)


@dataclass(frozen=True)
class BeforeCorrection:
    """State of a track before a correction, for undoing it.

    Attributes:
        frame: Index of the corrected frame.
        memory: The memory before the correction; None once later frames make restoring it impossible.
        last: The last frame before the correction; None likewise.
        manually_corrected: Whether the track had been corrected before.
        said: All prompts given on that frame, merged, including this correction.
        earlier: The previous correction, which can be undone after this one.
    """

    frame: int
    memory: MemoryBank | None
    last: LastFrame | None
    manually_corrected: bool
    said: Prompt
    earlier: BeforeCorrection | None = None


@dataclass(kw_only=True)
class CorrectableTrack:
    """Track state shared by all families that use SAM2's memory.

    Attributes:
        memory: Maps and pointers of past frames.
        frame: Number of frames seen so far.
        last: The last frame; None before the first.
        before: State before the last correction, linked to those before it; None when no correction can be undone.
        manually_corrected: Whether a user has corrected the track.
    """

    memory: MemoryBank
    frame: int = 0
    last: LastFrame | None = None
    before: BeforeCorrection | None = None
    manually_corrected: bool = False


STATE_TYPES: tuple[type, ...] = (
    MemoryBank,
    MemoryMap,
    ObjectPointer,
    LastFrame,
    BeforeCorrection,
    Prompt,
)
"""The classes that make up such a track, for saving it."""


def keep_last(tracks: Sequence[CorrectableTrack], pixels: Tensor, prediction: FramePrediction) -> None:
    """Keep the frame and its prediction in each track, for a later correction.

    Args:
        tracks: The N tracks of the prediction.
        pixels: The placed frame (1, 3, S, S), or a frame for each track (N, 3, S, S).
        prediction: The prediction for the N tracks.
    """
    kept = [frame.clone() for frame in pixels]  # a copy outside the clip, shared by the tracks of one frame
    for row, track in enumerate(tracks):
        score = None if prediction.score is None else prediction.score[row : row + 1]
        track.last = LastFrame(kept[min(row, len(kept) - 1)], prediction.mask_logits[row : row + 1].unsqueeze(1), score)


def check_restored(track: CorrectableTrack, config: Sam2Config, dtype: torch.dtype) -> None:
    """Check that a track read from a file fits a tracker.

    Args:
        track: The track.
        config: Configuration of the tracker.
        dtype: Type of its weights and activations.

    Raises:
        StateError: When the track's state is not one that this tracker could have left.
    """
    check_state(track.frame >= 0, f"a track has seen {track.frame} frames")
    check_state(
        (track.last is None) == (track.frame == 0), "a track has a last frame without having seen one, or lacks it"
    )
    _check_memory(track.memory, track.frame, config, dtype)
    if track.last is not None:
        _check_last(track.last, config)
    before, following = track.before, track.frame - 1
    while before is not None:
        check_state(0 <= before.frame <= following, "a correction belongs to a frame that the track has not seen")
        check_state((before.memory is None) == (before.last is None), "the state before a correction is incomplete")
        if before.memory is not None and before.last is not None:
            _check_memory(before.memory, track.frame, config, dtype)
            _check_last(before.last, config)
        before.said.check()
        following, before = before.frame, before.earlier


def _check_memory(memory: MemoryBank, frame: int, config: Sam2Config, dtype: torch.dtype) -> None:
    limits = (config.memory_slots - 1, config.pointer_limit - 1)
    check_state((memory.map_limit, memory.pointer_limit) == limits, "a memory has another length")
    kinds: tuple[tuple[Sequence[MemoryMap] | Sequence[ObjectPointer], int], ...] = (
        (memory.maps, limits[0]),
        (memory.pointers, limits[1]),
        (memory.conditioning_maps, CONDITIONING_LIMIT),
        (memory.conditioning_pointers, CONDITIONING_LIMIT),
    )
    for entries, limit in kinds:
        check_state(getattr(entries, "maxlen", None) == limit, "a memory has another length")
        frames = [entry.frame for entry in entries]
        ascending = frames == sorted(set(frames)) and all(0 <= number < frame for number in frames)
        check_state(ascending, "a memory holds frames that the track has not seen, or holds them out of order")
        for entry in entries:
            if isinstance(entry, MemoryMap):
                shape = (config.memory_width, config.grid, config.grid)
                check_tensor(entry.features, "a memory map", shape, torch.bfloat16 if config.bfloat16_memory else dtype)
            else:
                check_tensor(entry.vector, "an object pointer", (config.hidden,), dtype)


def _check_last(last: LastFrame, config: Sam2Config) -> None:
    side = config.image_size
    check_tensor(last.pixels, "the last frame", (3, side, side), torch.float32)
    check_tensor(last.mask_logits, "the last mask", (1, 1, config.mask_size, config.mask_size))
    check_state((last.score is None) != config.object_score, "an object score is missing, or the model has none")
    if last.score is not None:
        check_tensor(last.score, "an object score", (1,))


def correct(
    tracker: Sam2Tracker,
    track: CorrectableTrack,
    prompt: Prompt,
    placement: Placement,
    calibrated: Calibration | None = None,
) -> FramePrediction:
    """Segment a track's last frame again, from clicks, a box or a mask.

    Args:
        tracker: The weights.
        track: The track; its memory of that frame is replaced.
        prompt: Clicks, a box or a mask on that frame; its expression is ignored.
        placement: Placement of the frame in the square.
        calibrated: Calibration of the object scores, default none. As on any other frame, the returned masks are gated
            by the calibrated score and the memory by the raw score.

    Returns:
        The new prediction, for this track alone.

    Raises:
        PromptError: When the track has seen no frame yet, or the prompt has no geometry or does not fit the frame.
    """
    last = track.last
    if last is None:
        raise PromptError("there is nothing to correct before the first frame; give a frame first.")
    if not prompt.geometric:
        raise PromptError("a correction needs clicks, a box or a mask; use set_prompt to change the track's sentence.")
    check_geometry(prompt)
    check_within(prompt, placement.frame_size)
    frame = track.frame - 1
    if track.before is not None and track.before.frame == frame:
        prompt = merge_prompts(track.before.said, prompt)
    features = tracker.pyramid(tracker.encode(last.pixels.unsqueeze(0)))
    predicted = predict_from_geometry(tracker, features, [prompt], placement)
    earlier = _limited(track.before, frame, UNDO_STEPS - 1)
    track.before = BeforeCorrection(frame, track.memory.copy(), last, track.manually_corrected, prompt, earlier)
    if show_different_objects(last.mask_logits, predicted.mask_logits):
        track.memory.clear()
    maps = tracker.remember(features.top, predicted.memory_logits, predicted.score, binary=True)
    track.memory.forget_frame(frame)
    track.memory.store(frame, maps[0], predicted.pointer[0], conditioning=True)
    gated_logits, score = predicted.mask_logits, predicted.score
    if calibrated is not None and predicted.ungated is not None:
        score, margin = calibrated(predicted.score)
        gated_logits = gate(predicted.ungated, margin)
    track.last = LastFrame(last.pixels, gated_logits, score)
    track.manually_corrected = True
    return track.last.prediction


def undo(track: CorrectableTrack) -> FramePrediction | None:
    """Undo a track's last correction; call again to undo the one before it.

    Args:
        track: The track.

    Returns:
        The prediction before the correction, when no frame has come since: the track is then as if it had never been
        corrected. None when frames have come since: all corrections of that frame are undone at once by removing it
        from memory, while the memories of the frames after it stay.

    Raises:
        PromptError: When there is no correction to undo.
    """
    before = track.before
    if before is None:
        raise PromptError("there is no correction to undo.")
    if before.frame == track.frame - 1 and before.memory is not None and before.last is not None:
        track.before, track.manually_corrected = before.earlier, before.manually_corrected
        track.memory, track.last = before.memory, before.last
        return before.last.prediction
    first = before
    while first.earlier is not None and first.earlier.frame == before.frame:
        first = first.earlier
    track.before, track.manually_corrected = first.earlier, first.manually_corrected
    track.memory.forget_frame(before.frame)
    return None


def merge_prompts(earlier: Prompt, newer: Prompt) -> Prompt:
    """Merge two prompts on the same frame.

    Args:
        earlier: Clicks, a box or a mask.
        newer: Clicks, a box or a mask given after it.

    Returns:
        All clicks, and the newer of two boxes. Masks are not merged: where either prompt is one, the newer prompt.
    """
    if earlier.mask is not None or newer.mask is not None:
        return newer
    labels = [*_labels(earlier), *_labels(newer)]
    return replace(
        newer,
        points=[*(earlier.points or ()), *(newer.points or ())] or None,
        labels=labels or None,
        box=earlier.box if newer.box is None else newer.box,
    )


def _labels(prompt: Prompt) -> Sequence[int]:
    points = prompt.points or ()
    return [1] * len(points) if prompt.labels is None else prompt.labels


def _limited(correction: BeforeCorrection | None, frame: int, count: int) -> BeforeCorrection | None:
    """Keep the last ``count`` corrections; those of other frames without the state that can no longer be restored."""
    if correction is None or count == 0:
        return None
    earlier = _limited(correction.earlier, frame, count - 1)
    if correction.frame == frame:
        return replace(correction, earlier=earlier)
    return replace(correction, memory=None, last=None, earlier=earlier)


def show_different_objects(before: Tensor, after: Tensor) -> bool:
    """Compare mask logits (1, 1, h, w) before and after a correction; an empty mask never differs from another."""
    one, other = before > 0, after > 0
    smaller = torch.minimum(one.sum(), other.sum())
    return bool((one & other).sum() < SAME_OBJECT * smaller)
