"""Numbers and file names of tracks and frames in the outputs."""

from __future__ import annotations

import re
from pathlib import Path

from refervos.errors import VideoError
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame


class TrackNumbers:
    """Numbers of tracks from 0, in order of first appearance.

    A track keeps its number, and thus its colour and folder, when other tracks are added or dropped.
    """

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def of(self, track_id: int) -> int:
        """Return the number of a track, assigning a new one on first use."""
        return self._numbers.setdefault(track_id, len(self._numbers))


class FrameNames:
    """Unique file names of frames."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def of(self, frame: Frame) -> str:
        """Return the stem for the files of a frame: its own name, or its index in five digits.

        Raises:
            VideoError: The name is not a plain file name, or is already used.
        """
        name = frame.name if frame.name is not None else f"{frame.index:05d}"
        if not name or name in (".", "..") or re.search(r"[/\\\0]", name):
            raise VideoError(f"Frame {frame.index} has the name {name!r}; it must be the stem of a file, not a path.")
        if name in self._used:
            raise VideoError(f"Frame {frame.index} has the name {name!r} of an earlier frame; each needs its own.")
        self._used.add(name)
        return name


def file_stem(name: str) -> str:
    """Derive a short file name from a source's name, without folder, extension and special characters."""
    stem = Path(name.rstrip("/")).stem.lstrip(".") or "result"
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)[:100]


def check_fit(frame: Frame, segmentation: Segmentation) -> None:
    """Check that a segmentation fits a frame.

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
