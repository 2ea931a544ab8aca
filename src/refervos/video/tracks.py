"""Ties the tracks of a session to the places that they have in the outputs."""

from __future__ import annotations

import re

from refervos.errors import VideoError
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame


class TrackNumbers:
    """Numbers tracks from 0 in the order in which they first appear.

    A track keeps its number, and with it its colour and folder, when others come and go.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def of(self, track_id: int) -> int:
        """The number of a track, a new one where it has not been met before."""
        return self._numbers.setdefault(track_id, len(self._numbers))


class FrameNames:
    """Names the files of frames and makes sure that no two frames share one."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def of(self, frame: Frame) -> str:
        """The stem for the files of a frame: its own name, or its index in five digits.

        Raises:
            VideoError: The name is not one of a single file, or has been used already.
        """
        name = frame.name if frame.name is not None else f"{frame.index:05d}"
        if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
            raise VideoError(f"Frame {frame.index} has the name {name!r}; it must be the stem of a file, not a path.")
        if name in self._used:
            raise VideoError(f"Frame {frame.index} has the name {name!r} of an earlier frame; each needs its own.")
        self._used.add(name)
        return name


def check_fit(frame: Frame, segmentation: Segmentation) -> None:
    """Makes sure that a segmentation belongs to a frame of this size.

    Args:
        frame: The frame.
        segmentation: Its masks.

    Raises:
        VideoError: Their sizes differ, or the parts of the segmentation differ in number.
    """
    count = len(segmentation.track_ids)
    wanted = (count, *frame.image.shape[:2])
    if segmentation.masks.shape != wanted:
        raise VideoError(
            f"Frame {frame.index} has masks of shape {segmentation.masks.shape}; "
            f"for its size and {count} tracks they must be {wanted}."
        )
    if not (len(segmentation.expressions) == len(segmentation.presence) == len(segmentation.switched) == count):
        raise VideoError(
            f"Frame {frame.index} has {count} tracks but {len(segmentation.expressions)} expressions, "
            f"{len(segmentation.presence)} presences and {len(segmentation.switched)} switches; "
            "give one of each per track."
        )
