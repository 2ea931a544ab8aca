"""Masks from prompt tokens by SAM2: frame by frame, or propagated through memory from the first frame.

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
    """State of one phrase: its prompt token and its memory.

    Attributes:
        token: The prompt token (C,), used on the first frame only.
    """

    token: Tensor


def begin_tracks(tracker: Sam2Tracker, tokens: Tensor) -> list[PhraseTrack]:
    """Start a track for each prompt token (N, C); its first frame is the prompted one."""
    return [PhraseTrack(token=token, memory=empty_memory(tracker.config)) for token in tokens]


def follow_phrases(tracker: Sam2Tracker, frame: Tensor, tracks: Sequence[PhraseTrack]) -> FramePrediction:
    """Predict the masks of phrases in the next frame, from the prompt tokens or, after the first frame, from memory.

    Args:
        tracker: The weights.
        frame: The placed frame (3, S, S).
        tracks: The N tracks; they advance by one frame.

    Returns:
        Mask logits (N, 4g, 4g), gated by the object scores.
    """

    def first(features: FrameFeatures, group: Sequence[PhraseTrack]) -> GroupPrediction:
        tokens = torch.stack([track.token for track in group])  # (n, C)
        return predict_from_tokens(tracker, features, tokens.unsqueeze(1))

    return segment_frame(tracker, frame, tracks, [None] * len(tracks), first)


def decode_frame(
    tracker: Sam2Tracker, features: FrameFeatures, tokens: Tensor, *, stability: bool | None = None
) -> Decoded:
    """Predict a single mask for each prompt token in one frame, without memory, as in training.

    The prompt token is the only sparse token (no "not a point" padding), and the object score does not gate the mask.

    Args:
        tracker: The weights.
        features: One frame's features (1, ...).
        tokens: Prompt tokens (N, C).
        stability: See ``Sam2Tracker.decode``.

    Returns:
        Output of the mask decoder, one mask per token.
    """
    shared = repeated(features, len(tokens))
    sparse = tokens.to(tracker.dtype).unsqueeze(1)  # (N, 1, C)
    return tracker.decode(tracker.without_memory(shared.top), shared, sparse, stability=stability)
