"""``mask_dict.json``, in which MeViS and ReVOS store run-length masks per annotation and frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refervos.data.files import read_json
from refervos.data.frames import ImageFrames
from refervos.data.ground_truth import RunLengthTracks
from refervos.data.layouts.meta_expressions import ListedExpression, ListedVideo
from refervos.data.records import require_ids
from refervos.errors import DataError


@dataclass(frozen=True, eq=False)
class MaskDictionary:
    """Annotations of one or more splits.

    Attributes:
        file: The file that was read.
        tracks: Stored masks by annotation id.
    """

    file: Path
    tracks: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, file: Path) -> MaskDictionary:
        """Read the file; DataError when it is missing or invalid."""
        content = read_json(file)
        if not isinstance(content, dict):
            raise DataError(f"{file} must be an object with run-length masks by annotation id.")
        return cls(file, content)

    def ground_truth(self, expression: ListedExpression, video: ListedVideo, frames: ImageFrames) -> RunLengthTracks:
        """Return the ground truth of an expression: the union of the annotations in ``anno_id``, possibly none.

        Args:
            expression: The expression.
            video: Its video.
            frames: The video's frames.

        Returns:
            The ground truth.

        Raises:
            DataError: When an annotation is missing, or its frames do not match the video's.
        """
        tracks = {}
        for id in require_ids(expression.fields, "anno_id", expression.where):
            if id not in self.tracks:
                raise DataError(f"{self.file} has no annotation {id}, which {expression.where} refers to.")
            tracks[id] = require_track(self.tracks[id], video, f"{self.file}, annotation {id}")
        return RunLengthTracks(self.file, tracks, frames)


def require_track(track: Any, video: ListedVideo, where: str) -> Sequence[Any]:
    """Check that a track has one entry for each frame of a video.

    Args:
        track: The stored track.
        video: The video.
        where: Name of the track in error messages.

    Returns:
        The track.

    Raises:
        DataError: When it has not, or the video's frames are listed out of order, in which case the match is ambiguous,
            as other loaders sort the frames.
    """
    if not isinstance(track, list):
        raise DataError(f"{where} must be a list of run-length masks.")
    if len(track) != len(video.frames):
        raise DataError(f"{where} has {len(track)} masks, {video.where} has {len(video.frames)} frames.")
    if list(video.frames) != sorted(video.frames):
        raise DataError(f"{video.where} lists its frames out of order, so the frame of each mask is ambiguous.")
    return track
