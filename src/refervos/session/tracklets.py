"""Tracklets: successive masks that overlap and thus show the same object; the evidence for each of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

SAME_OBJECT = 0.2
"""Masks of successive frames belong to one tracklet from this intersection over union on."""


@dataclass
class Tracklet:
    """Successive frames whose masks show the same object.

    Attributes:
        evidence: Sum of the presence over its frames.
        frame: Index of the frame with the highest presence, the last of equals.
        presence: Presence in that frame.
        mask: Mask in that frame, bool (H, W).
    """

    evidence: float
    frame: int
    presence: float
    mask: npt.NDArray[np.bool_]

    def add(self, frame: int, mask: npt.NDArray[np.bool_], presence: float) -> None:
        """Append the next frame."""
        self.evidence += presence
        if presence >= self.presence:
            self.frame, self.presence, self.mask = frame, presence, mask


@dataclass
class TrackletSearch:
    """Search for the tracklet with the most evidence, over masks that come frame by frame; keeps two tracklets.

    Attributes:
        best: The finished tracklet with the most evidence so far.
        current: The tracklet of the last frame; None if its mask was empty.
    """

    best: Tracklet | None = None
    current: Tracklet | None = None
    _last: npt.NDArray[np.bool_] | None = field(default=None, repr=False)

    def add(self, frame: int, mask: npt.NDArray[np.bool_], presence: float) -> None:
        """Add the next frame: its mask (H, W) and its presence in [0, 1]."""
        if self.current is not None and self._last is not None and overlap(self._last, mask) >= SAME_OBJECT:
            self.current.add(frame, mask, presence)
        else:
            self.best = self.winner()
            self.current = Tracklet(presence, frame, presence, mask) if mask.any() else None
        self._last = mask

    def winner(self) -> Tracklet | None:
        """Return the tracklet with the most evidence, the later one of equals; None if all masks were empty."""
        known = [tracklet for tracklet in (self.current, self.best) if tracklet is not None]
        return max(known, key=lambda tracklet: tracklet.evidence, default=None)


def overlap(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Return the intersection over union of two masks; 0 if their sizes differ or both are empty."""
    if one.shape != other.shape:
        return 0.0
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 0.0
