"""Corrections: clicks, a box or a mask on the last answered frame of a running track, and taking them back.

Clicks on one frame add up: each is read together with those before it.

The corrected frame is answered again, by SAM2 alone, and remembered as a frame that the user prompted: it stays in
memory while others come and go. Where the answer moves to another object, all that is remembered shows the wrong one
and is forgotten. From then on the track goes by hand: adapters that let a sentence change what the image encoder sees
would pull it back to where the sentence was misread.
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
from refervos.sam2.prompting import answer_masks, answer_points, check_geometry, check_within
from refervos.sam2.tracker import Sam2Tracker, gate
from refervos.segmenter import FramePrediction
from refervos.session.state_files import check_state, check_tensor

UNDO_STEPS = 16
"""So many corrections of a track can be taken back; what is older is not kept."""

SAME_OBJECT = 0.1
"""Masks whose intersection is a smaller share of the smaller one show different objects."""

Calibration = Callable[[Tensor | None], tuple[Tensor | None, Tensor | None]]
"""From object scores (n,) to the logit of the presence, and by how much that is above the threshold's, (n,) each."""


@dataclass(frozen=True)
class LastFrame:
    """What is kept of the last answered frame of a track, so that it can be answered again.

    Attributes:
        pixels: The placed frame (3, S, S).
        mask_logits: The answer (1, 1, 4g, 4g).
        score: Its object score logit (1,) as the model shows it, so calibrated where it is; or None.
    """

    pixels: Tensor
    mask_logits: Tensor
    score: Tensor | None

    @property
    def prediction(self) -> FramePrediction:
        """The answer as a session wants it."""
        switched = torch.zeros(1, dtype=torch.bool, device=self.mask_logits.device)
        return FramePrediction(self.mask_logits[:, 0], self.score, switched)


@dataclass(frozen=True)
class BeforeCorrection:
    """What a correction changed, as it was.

    Attributes:
        frame: The frame that was corrected.
        memory: Before it; None for a frame that others have followed, as it cannot be gone back to.
        last: Before it; likewise.
        manually_corrected: Before it.
        said: All that the user has said about that frame, this correction included.
        earlier: The correction before this one, which can be taken back after it.
    """

    frame: int
    memory: MemoryBank | None
    last: LastFrame | None
    manually_corrected: bool
    said: Prompt
    earlier: BeforeCorrection | None = None


@dataclass(kw_only=True)
class CorrectableTrack:
    """The part of a track that every family on SAM2's memory has.

    Attributes:
        memory: Maps and pointers of past frames.
        frame: Frames seen so far.
        last: The last answered frame; None before the first.
        before: What the last correction changed, and those before it; None when there was none, or all were taken back.
        manually_corrected: Whether the track was corrected.
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
"""The classes that such a track is made of, for writing it to disk."""


def keep_last(tracks: Sequence[CorrectableTrack], pixels: Tensor, prediction: FramePrediction) -> None:
    """Keep what a correction of this frame needs.

    Args:
        tracks: The N tracks that were answered.
        pixels: The placed frame, perhaps one of a clip (1, 3, S, S), or each track's own (N, 3, S, S).
        prediction: The answer for the N tracks.
    """
    kept = [frame.clone() for frame in pixels]  # on its own, and once for all tracks that share it
    for row, track in enumerate(tracks):
        score = None if prediction.score is None else prediction.score[row : row + 1]
        track.last = LastFrame(kept[min(row, len(kept) - 1)], prediction.mask_logits[row : row + 1].unsqueeze(1), score)


def check_restored(track: CorrectableTrack, config: Sam2Config, dtype: torch.dtype) -> None:
    """Check that a track that was read from a file can go on.

    Args:
        track: The track.
        config: The shape of the tracker that it shall go on with.
        dtype: What that computes in.

    Raises:
        StateError: When something about it is not as the tracker leaves it.
    """
    check_state(track.frame >= 0, f"a track has seen {track.frame} frames")
    check_state((track.last is None) == (track.frame == 0), "a track has no last frame, or one too many")
    _check_memory(track.memory, track.frame, config, dtype)
    if track.last is not None:
        _check_last(track.last, config)
    before, following = track.before, track.frame - 1
    while before is not None:
        check_state(0 <= before.frame <= following, "a correction is of a frame that was not seen")
        check_state((before.memory is None) == (before.last is None), "a correction can be taken back by half")
        if before.memory is not None and before.last is not None:
            _check_memory(before.memory, track.frame, config, dtype)
            _check_last(before.last, config)
        before.said.check()
        following, before = before.frame, before.earlier


def _check_memory(memory: MemoryBank, frame: int, config: Sam2Config, dtype: torch.dtype) -> None:
    limits = (config.memory_slots - 1, config.pointer_limit - 1)
    check_state((memory.map_limit, memory.pointer_limit) == limits, "a memory is of another length")
    kinds: tuple[tuple[Sequence[MemoryMap] | Sequence[ObjectPointer], int], ...] = (
        (memory.maps, limits[0]),
        (memory.pointers, limits[1]),
        (memory.conditioning_maps, CONDITIONING_LIMIT),
        (memory.conditioning_pointers, CONDITIONING_LIMIT),
    )
    for entries, limit in kinds:
        check_state(getattr(entries, "maxlen", None) == limit, "a memory is of another length")
        frames = [entry.frame for entry in entries]
        ascending = frames == sorted(set(frames)) and all(0 <= number < frame for number in frames)
        check_state(ascending, "a memory is of frames that were not seen, or out of order")
        for entry in entries:
            if isinstance(entry, MemoryMap):
                shape = (config.memory_width, config.grid, config.grid)
                check_tensor(entry.features, "a memory map", shape, dtype)
            else:
                check_tensor(entry.vector, "an object pointer", (config.hidden,), dtype)


def _check_last(last: LastFrame, config: Sam2Config) -> None:
    side = config.image_size
    check_tensor(last.pixels, "the last frame", (3, side, side), torch.float32)
    check_tensor(last.mask_logits, "the last mask", (1, 1, config.mask_size, config.mask_size))
    check_state((last.score is None) != config.object_score, "an object score is missing, or one too many")
    if last.score is not None:
        check_tensor(last.score, "an object score", (1,))


def correct(
    tracker: Sam2Tracker,
    track: CorrectableTrack,
    prompt: Prompt,
    placement: Placement,
    calibrated: Calibration | None = None,
) -> FramePrediction:
    """Answer a track's last frame again, by what the user says.

    Args:
        tracker: The weights.
        track: The track; its memory of that frame changes.
        prompt: Clicks, a box or a mask on that frame; its expression is not read.
        placement: Where the frame lies in the square.
        calibrated: What object scores say of presence; default what they are themselves. As on any other frame, masks
            are shown by it, and memory goes by the score as it is.

    Returns:
        The new answer for this track alone.

    Raises:
        PromptError: When no frame has been answered yet, the prompt has no geometry, or it does not fit the frame.
    """
    last = track.last
    if last is None:
        raise PromptError("there is nothing to correct before the first frame; give a frame first.")
    if not prompt.geometric:
        raise PromptError("a correction is clicks, a box or a mask; to ask for something else, rename the track.")
    check_geometry(prompt)
    check_within(prompt, placement.frame_size)
    frame = track.frame - 1
    if track.before is not None and track.before.frame == frame:
        prompt = together(track.before.said, prompt)
    features = tracker.pyramid(tracker.encode(last.pixels.unsqueeze(0)))
    ask = answer_points if prompt.mask is None else answer_masks
    answer = ask(tracker, features, [prompt], placement)
    earlier = _kept(track.before, frame, UNDO_STEPS - 1)
    track.before = BeforeCorrection(frame, track.memory.copy(), last, track.manually_corrected, prompt, earlier)
    if moved(last.mask_logits, answer.mask_logits):
        track.memory.clear()
    maps = tracker.remember(features.top, answer.memory_logits, answer.score, binary=True)
    track.memory.forget_frame(frame)
    track.memory.store(frame, maps[0], answer.pointer[0], conditioning=True)
    gated_logits, score = answer.mask_logits, answer.score
    if calibrated is not None and answer.ungated is not None:
        score, margin = calibrated(answer.score)
        gated_logits = gate(answer.ungated, margin)
    track.last = LastFrame(last.pixels, gated_logits, score)
    track.manually_corrected = True
    return track.last.prediction


def undo(track: CorrectableTrack) -> FramePrediction | None:
    """Take the last correction back; again, the one before it.

    Args:
        track: The track.

    Returns:
        The answer as it was before, when no frame has come since: then all is as if there had been no such correction.
        None when frames have come since: the corrected frame is no longer remembered, so that all corrections of it are
        taken back together; what followed from it is.

    Raises:
        PromptError: When there was no correction, or it was taken back.
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


def together(said: Prompt, more: Prompt) -> Prompt:
    """Add to what was said about a frame.

    Args:
        said: Clicks, a box or a mask.
        more: What is said now.

    Returns:
        All clicks, and the newer of two boxes. A mask, which says it all, stands alone, and gives way to what follows.
    """
    if said.mask is not None or more.mask is not None:
        return more
    labels = [*_labels(said), *_labels(more)]
    return replace(
        more,
        points=[*(said.points or ()), *(more.points or ())] or None,
        labels=labels or None,
        box=said.box if more.box is None else more.box,
    )


def _labels(prompt: Prompt) -> Sequence[int]:
    points = prompt.points or ()
    return [1] * len(points) if prompt.labels is None else prompt.labels


def _kept(correction: BeforeCorrection | None, frame: int, count: int) -> BeforeCorrection | None:
    """The last corrections, at most so many; of those of other frames only what taking them back needs."""
    if correction is None or count == 0:
        return None
    earlier = _kept(correction.earlier, frame, count - 1)
    if correction.frame == frame:
        return replace(correction, earlier=earlier)
    return replace(correction, memory=None, last=None, earlier=earlier)


def moved(before: Tensor, after: Tensor) -> bool:
    """Whether two answers (1, 1, h, w) show different objects; an empty one shows none, which is the same as any."""
    one, other = before > 0, after > 0
    smaller = torch.minimum(one.sum(), other.sum())
    return bool((one & other).sum() < SAME_OBJECT * smaller)
