"""Masks of the computed frames, appended to a file of JSON lines; the last line of a frame counts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco

from refervos.serving.wire import TrackMask


class MaskRecord:
    """Masks and presences of a session, by frame.

    Lines are ``{"frame", "time", "size": [h, w], "tracks": [{"id", "presence", "counts"}]}`` with COCO run lengths.
    Only positions in the file and presences are kept in memory.

    Args:
        path: The file; created, or continued if it exists.
        longest: Number of frames after which the oldest is forgotten, so that a camera can be watched for days without
            filling the memory; its line stays in the file. None for no limit.
    """

    def __init__(self, path: Path, longest: int | None = None) -> None:
        self._longest = longest
        self._lock = threading.Lock()
        self._places: dict[int, tuple[int, int]] = {}  # offset and length of each frame's line
        self._presence: dict[int, dict[int, float]] = {}  # by track and frame
        self._file = path.open("a+b")
        self._end = 0
        self._read_existing()

    @property
    def frames(self) -> list[int]:
        """Indices of the frames with masks, ascending."""
        with self._lock:
            return sorted(self._places)

    def append(self, frame: int, time: float | None, size: tuple[int, int], masks: Sequence[TrackMask]) -> None:
        """Record the masks of a frame, in place of earlier ones.

        Args:
            frame: Index of the frame.
            time: Seconds since the first frame, if known.
            size: Height and width.
            masks: The masks.
        """
        tracks = [
            {
                "id": each.track,
                "presence": round(each.presence, 4),
                "counts": coco.encode(np.asfortranarray(each.mask, dtype=np.uint8))["counts"].decode("ascii"),
            }
            for each in masks
        ]
        line = json.dumps({"frame": frame, "time": time, "size": list(size), "tracks": tracks}).encode() + b"\n"
        with self._lock:
            self._file.seek(0, 2)
            self._file.write(line)
            self._note(frame, self._end, line, tracks)

    def lines(self, begin: int, end: int, tracks: set[int] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the recorded frames from ``begin`` to before ``end``.

        Args:
            begin: First frame.
            end: Frame before which to stop.
            tracks: Numbers of the tracks to keep; None for all.
        """
        for frame in self.frames:
            if begin <= frame < end:
                record = self.read(frame)
                if record is not None:
                    if tracks is not None:
                        record["tracks"] = [each for each in record["tracks"] if each["id"] in tracks]
                    yield record

    def read(self, frame: int) -> dict[str, Any] | None:
        """Return the record of one frame; None if it has none."""
        with self._lock:
            place = self._places.get(frame)
            if place is None:
                return None
            self._file.flush()
            self._file.seek(place[0])
            record: dict[str, Any] = json.loads(self._file.read(place[1]))
            return record

    def presence(self, track: int, longest: int = 1000) -> list[tuple[int, float]]:
        """Return a track's presence as frames and values, thinned out to at most ``longest`` pairs."""
        with self._lock:
            pairs = sorted(self._presence.get(track, {}).items())
        step = max(1, -(-len(pairs) // longest))
        return pairs[::step]

    def flush(self) -> None:
        """Pass everything on to the system, so that it survives a killed process."""
        with self._lock:
            self._file.flush()

    def close(self) -> None:
        """Close the file; safe to call twice."""
        with self._lock:
            self._file.close()

    def _note(self, frame: int, offset: int, line: bytes, tracks: list[dict[str, Any]]) -> None:
        self._places[frame] = (offset, len(line))
        self._end = offset + len(line)
        for presences in self._presence.values():
            presences.pop(frame, None)
        for track in tracks:
            self._presence.setdefault(track["id"], {})[frame] = track["presence"]
        if self._longest is not None and len(self._places) > self._longest:
            oldest = next(iter(self._places))  # frames of live sources only ascend
            del self._places[oldest]
            for presences in self._presence.values():
                presences.pop(oldest, None)

    def _read_existing(self) -> None:
        """Read the lines of an earlier process; an unfinished last line is removed."""
        self._file.seek(0)
        for line in self._file:
            try:
                record = json.loads(line)
                frame, tracks = int(record["frame"]), list(record["tracks"])
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            self._note(frame, self._end, line, tracks)
        self._file.truncate(self._end)


def decode_counts(counts: str, height: int, width: int) -> np.ndarray:
    """Decode COCO run lengths of a record.

    Args:
        counts: The compressed counts.
        height: Height of the mask.
        width: Its width.

    Returns:
        bool (H, W).
    """
    mask: np.ndarray = coco.decode({"size": [height, width], "counts": counts.encode("ascii")})
    return mask.astype(bool)
