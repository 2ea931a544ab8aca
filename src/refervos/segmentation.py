"""Result of a session for one frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Segmentation:
    """Masks of one frame: one mask per track, in the order of the session's tracks.

    Attributes:
        frame_index: Position of the frame in the stream, from 0.
        track_ids: Number of each track in the session, length N.
        expressions: Expression of each track, length N (a description of the prompt if it has none).
        masks: bool (N, H, W) at the frame's own size.
        presence: float32 (N,) in [0, 1], probability that the object is visible in this frame; models without an
            object score report 1 if the mask is non-empty and 0 otherwise.
        switched: bool (N,), True if the mask stored in memory for this frame was rewritten (by the CME).
        logits: float32 (N, H, W) mask logits at the frame's size, or None unless requested.
        cut: Whether a scene cut was detected before this frame.
        repeated: Whether this frame was detected as a repetition of the previous one, and its masks were reused.
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
