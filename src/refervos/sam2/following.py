"""Segmentation of one frame for tracks with SAM2 memory: encode once, then decode and store each group of tracks.

Shapes: N tracks, of which n are in one batch; k prompt tokens a track, C = ``hidden``, S = ``image_size``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from refervos.sam2.config import Sam2Config
from refervos.sam2.correction import CorrectableTrack, keep_last, show_different_objects
from refervos.sam2.memory import MemoryBank, MemoryReading, group_by_layout, stack_readings
from refervos.sam2.prompting import GroupPrediction, predict_best
from refervos.sam2.tracker import FrameFeatures, Sam2Tracker
from refervos.segmenter import FramePrediction, merge_predictions

Track = TypeVar("Track", bound=CorrectableTrack)


def empty_memory(config: Sam2Config) -> MemoryBank:
    """Return the empty memory of a new track."""
    return MemoryBank(map_limit=config.memory_slots - 1, pointer_limit=config.pointer_limit - 1)


def predict_from_tokens(tracker: Sam2Tracker, features: FrameFeatures, tokens: Tensor) -> GroupPrediction:
    """Predict masks from prompt tokens in a frame without memory; the best of three candidates each.

    Two "not a point" tokens are added, as for a prompt without clicks.

    Args:
        tracker: The weights.
        features: The frame's features (n, ...).
        tokens: Prompt tokens, for instance of text (n, k, C).

    Returns:
        The predicted masks.
    """
    sparse = torch.cat([tracker.padding_points(len(tokens)), tokens.to(tracker.dtype)], dim=1)  # (n, 2 + k, C)
    return predict_best(tracker, tracker.without_memory(features.top), features, sparse, multimask=True)


def segment_frame(
    tracker: Sam2Tracker,
    frame: Tensor,
    tracks: Sequence[Track],
    kinds: Sequence[Hashable],
    first: Callable[[FrameFeatures, Sequence[Track]], GroupPrediction],
    prompted: Sequence[bool] | None = None,
) -> FramePrediction:
    """Predict the masks of all tracks in the next frame and store them; the tracks advance by one frame.

    Args:
        tracker: The weights.
        frame: The placed frame (3, S, S).
        tracks: The N tracks, of any age.
        kinds: A value per track; prompted tracks with equal values are passed to ``first`` as one batch.
        first: Predicts the masks of n prompted tracks in this frame from features (n, ...).
        prompted: Whether each track is prompted in this frame, which then becomes a conditioning frame; default the new
            tracks. When a running track is prompted again and its mask moves to another object, its memory is cleared.

    Returns:
        The predictions, in the order of the tracks.
    """
    features = tracker.pyramid(tracker.encode(frame.unsqueeze(0)))
    readings = [track.memory.read(track.frame) for track in tracks]
    prompted = [track.frame == 0 for track in tracks] if prompted is None else prompted
    groups = group_by_layout(readings, list(zip(prompted, kinds, strict=True)))
    predicted = []
    for members in groups:
        group = [tracks[index] for index in members]
        group_features = repeated(features, len(members))
        conditioning = prompted[members[0]]
        if conditioning:
            part = first(group_features, group)
            _forget_other_objects(group, part)
        else:
            part = _follow(tracker, group_features, stack_readings([readings[index] for index in members]))
        predicted.append(part)
        _remember(tracker, group_features, group, part, conditioning=conditioning)
    none = torch.zeros(len(tracks), dtype=torch.bool, device=frame.device)
    parts = [
        FramePrediction(part.mask_logits[:, 0], part.score, none[: len(members)])
        for members, part in zip(groups, predicted, strict=True)
    ]
    prediction = merge_predictions(groups, parts)
    keep_last(tracks, frame.unsqueeze(0), prediction)
    return prediction


def _follow(tracker: Sam2Tracker, features: FrameFeatures, memory: MemoryReading) -> GroupPrediction:
    """Predict the masks of running tracks from their memory; the best of three candidates each."""
    sparse = tracker.padding_points(len(features.top))  # (n, 2, C)
    return predict_best(tracker, tracker.condition(features.top, memory), features, sparse, multimask=True)


def _forget_other_objects(tracks: Sequence[Track], predicted: GroupPrediction) -> None:
    """Clear the memory of tracks whose prompt shows another object than their last mask."""
    for row, track in enumerate(tracks):
        if track.last is not None and show_different_objects(
            track.last.mask_logits, predicted.mask_logits[row : row + 1]
        ):
            track.memory.clear()


def _remember(
    tracker: Sam2Tracker,
    features: FrameFeatures,
    tracks: Sequence[Track],
    predicted: GroupPrediction,
    *,
    conditioning: bool,
) -> None:
    maps = tracker.remember(features.top, predicted.memory_logits, predicted.score, binary=conditioning)
    for row, track in enumerate(tracks):
        track.memory.store(track.frame, maps[row], predicted.pointer[row], conditioning=conditioning)
        track.frame += 1


def repeated(features: FrameFeatures, count: int) -> FrameFeatures:
    """Repeat one frame's features (1, ...) for several tracks (count, ...), without copying."""
    return FrameFeatures(*(level.expand(count, -1, -1, -1) for level in (features.fine, features.middle, features.top)))
