"""``mask_dict.json``, in which MeViS and ReVOS store the masks of each annotation: run lengths, one entry a frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refervos.data.files import read_json
from refervos.data.frames import ImageFrames
from refervos.data.ground_truth import RunLengthTracks
from refervos.data.layouts.meta_expressions import ListedExpression, ListedVideo
from refervos.data.records import take_ids
from refervos.errors import DataError


@dataclass(frozen=True, eq=False)
class MaskDictionary:
    """The annotations of a split, or of several.

    Attributes:
        file: Where they were read.
        tracks: What is stored of each annotation, by its id.
    """

    file: Path
    tracks: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, file: Path) -> MaskDictionary:
        """Read the file; DataError when it is missing or no such JSON."""
        content = read_json(file)
        if not isinstance(content, dict):
            raise DataError(f"{file} must be an object with run-length masks by annotation.")
        return cls(file, content)

    def ground_truth(self, expression: ListedExpression, video: ListedVideo, frames: ImageFrames) -> RunLengthTracks:
        """Find what an expression means: all annotations in its ``anno_id``; nothing where that is empty.

        Args:
            expression: The expression.
            video: The video that it is about.
            frames: The video's frames.

        Returns:
            The union of the annotations.

        Raises:
            DataError: When an annotation is missing, or its frames are not the video's.
        """
        tracks = {}
        for id in take_ids(expression.fields, "anno_id", expression.where):
            if id not in self.tracks:
                raise DataError(f"{self.file} has no annotation {id}, which {expression.where} means.")
            tracks[id] = fitting_track(self.tracks[id], video, f"{self.file}, annotation {id}")
        return RunLengthTracks(self.file, tracks, frames)


def fitting_track(track: Any, video: ListedVideo, where: str) -> Sequence[Any]:
    """Make sure that there is an entry for each frame of a video.

    Args:
        track: What is stored.
        video: The video.
        where: What to call the track in an error.

    Returns:
        The same.

    Raises:
        DataError: When there is not, or the video's frames are listed out of order: loaders of the field sort them, so
            it would be unclear which entry is of which frame.
    """
    if not isinstance(track, list):
        raise DataError(f"{where} must be a list of run-length masks.")
    if len(track) != len(video.frames):
        raise DataError(f"{where} has {len(track)} masks, {video.where} has {len(video.frames)} frames.")
    if list(video.frames) != sorted(video.frames):
        raise DataError(f"{video.where} lists its frames out of order, so it is unclear which mask is of which frame.")
    return track
