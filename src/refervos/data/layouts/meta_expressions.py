"""``meta_expressions.json``, in which most benchmarks of the field list their videos and expressions.

It holds an object ``videos`` with, for each video, its ``frames`` and its ``expressions`` by id. What else is told of
an expression differs from benchmark to benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refervos.data.files import Problems, read_json, report_missing
from refervos.data.frames import ImageFrames
from refervos.data.records import as_id, is_name, take
from refervos.errors import DataError


@dataclass(frozen=True, eq=False)
class ListedExpression:
    """An expression as it is listed.

    Attributes:
        id: Unique within the video.
        text: What is asked.
        fields: All that is told about it.
        where: What to call it in an error.
    """

    id: str
    text: str
    fields: Mapping[str, Any] = field(repr=False)
    where: str


@dataclass(frozen=True, eq=False)
class ListedVideo:
    """A video as it is listed.

    Attributes:
        id: The name of its folder; ReVOS has names with slashes.
        frames: Names of the frames, without suffix, as listed.
        expressions: In the order of the file.
        fields: All that is told about it.
        where: What to call it in an error.
    """

    id: str
    frames: tuple[str, ...]
    expressions: tuple[ListedExpression, ...]
    fields: Mapping[str, Any] = field(repr=False)
    where: str

    def images(self, folder: Path, problems: Problems) -> ImageFrames | None:
        """Find the frames, ``<folder>/<video>/<frame>.jpg``.

        Args:
            folder: ``JPEGImages``.
            problems: Told of each frame that is missing.

        Returns:
            The frames in ascending order; None where the video's folder is missing.
        """
        files = tuple(f"{name}.jpg" for name in sorted(self.frames))
        there = report_missing(folder / self.id, files, problems)
        return ImageFrames(folder / self.id, files) if there else None


def read_meta_expressions(path: Path, problems: Problems) -> dict[str, ListedVideo]:
    """Read the videos and expressions of a split.

    Args:
        path: ``meta_expressions.json``.
        problems: Told what is wrong with single videos and expressions, which are then left out.

    Returns:
        The videos by id, in the order of the file.

    Raises:
        DataError: When the file is missing, no JSON, lists no videos, or has a video or an expression twice.
    """
    listed = {}
    for id, fields in take(read_json(path), "videos", dict, str(path)).items():
        with problems.collect():
            listed[id] = _video(id, fields, path, problems)
    return listed


def _video(id: str, fields: Any, path: Path, problems: Problems) -> ListedVideo:
    where = f"{path}, video {id}"
    if not all(map(is_name, id.split("/"))):
        raise DataError(f"{where}: this is no name of a folder.")
    frames = take(fields, "frames", list, where)
    if not frames or not all(isinstance(name, str) and is_name(name) for name in frames):
        raise DataError(f"{where}: 'frames' must be a list of at least one name, such as \"00000\".")
    if len(set(frames)) < len(frames):
        twice = next(name for name in frames if frames.count(name) > 1)
        raise DataError(f"{where}: frame {twice} is listed twice.")
    expressions = []
    for expression_id, told in take(fields, "expressions", dict, where).items():
        asked = f"{where}, expression {expression_id}"
        with problems.collect():
            as_id(expression_id, f"{where}: an expression's id")
            expressions.append(ListedExpression(expression_id, take(told, "exp", str, asked), told, asked))
    return ListedVideo(id, tuple(frames), tuple(expressions), fields, where)
