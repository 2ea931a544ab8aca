"""What a session answers for one frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Segmentation:
    """The answer for one frame: one mask per track, in the order of the session's tracks.

    Attributes:
        frame_index: Position of the frame in the stream, from 0.
        track_ids: The session's number of each track, length N.
        expressions: What each track was asked for, length N (a description of the prompt where it was no sentence).
        masks: bool (N, H, W) at the frame's own size.
        presence: float32 (N,) in [0, 1], the model's belief that the object is visible in this frame; a model
            without an object score believes it (1) where its mask has a pixel, and else not (0).
        switched: bool (N,), True where what is remembered of this frame was rewritten.
        logits: float32 (N, H, W) mask logits at the frame's size, or None unless asked for.
        cut: Whether the session took this frame for the first of another scene.
        repeated: Whether it took it for the same picture as the one before, and gave the same answer.
    """

    frame_index: int
    track_ids: tuple[int, ...]
    expressions: tuple[str, ...]
    masks: npt.NDArray[np.bool_]
    presence: npt.NDArray[np.float32]
    switched: npt.NDArray[np.bool_]
    logits: npt.NDArray[np.float32] | None = None
    cut: bool = False
    repeated: bool = False
