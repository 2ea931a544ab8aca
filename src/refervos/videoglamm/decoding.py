"""From prompt tokens to masks, by SAM2: each frame by itself, or from the first frame on through memory.

Shapes: N phrases, C = SAM2's hidden width, g = grid, S = image size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from refervos.sam2.correction import CorrectableTrack
from refervos.sam2.following import empty_memory, predict_from_tokens, repeated, segment_frame
from refervos.sam2.mask_decoder import Decoded
from refervos.sam2.prompting import GroupPrediction
from refervos.sam2.tracker import FrameFeatures, Sam2Tracker
from refervos.segmenter import FramePrediction


@dataclass(kw_only=True)
class PhraseTrack(CorrectableTrack):
    """A phrase's prompt token and what has to be remembered for it.

    Attributes:
        token: The prompt token (C,), which is read on the first frame alone.
    """

    token: Tensor


def begin_tracks(tracker: Sam2Tracker, tokens: Tensor) -> list[PhraseTrack]:
    """Start a track for each prompt token (N, C); the first frame it is given is the one that is prompted."""
    return [PhraseTrack(token=token, memory=empty_memory(tracker.config)) for token in tokens]


def follow_phrases(tracker: Sam2Tracker, frame: Tensor, tracks: Sequence[PhraseTrack]) -> FramePrediction:
    """Predict the masks of phrases in the next frame: of the prompt tokens in a track's first, of memory afterwards.

    Args:
        tracker: The weights.
        frame: The placed frame (3, S, S).
        tracks: The N tracks; they advance by one frame.

    Returns:
        Masks of (N, 4g, 4g), gated by their object scores.
    """

    def first(features: FrameFeatures, group: Sequence[PhraseTrack]) -> GroupPrediction:
        tokens = torch.stack([track.token for track in group])  # (n, C)
        return predict_from_tokens(tracker, features, tokens.unsqueeze(1))

    return segment_frame(tracker, frame, tracks, [None] * len(tracks), first)


def decode_frame(
    tracker: Sam2Tracker, features: FrameFeatures, tokens: Tensor, *, stability: bool | None = None
) -> Decoded:
    """Predict a single mask for each prompt token in one frame, without memory, as in training.

    The prompt token stands alone, without "not a point" tokens; the object score gates nothing.

    Args:
        tracker: The weights.
        features: One frame's features (1, ...).
        tokens: Prompt tokens (N, C).
        stability: See ``Sam2Tracker.decode``.

    Returns:
        What the mask decoder predicts, one mask each.
    """
    shared = repeated(features, len(tokens))
    sparse = tokens.to(tracker.dtype).unsqueeze(1)  # (N, 1, C)
    return tracker.decode(tracker.without_memory(shared.top), shared, sparse, stability=stability)
