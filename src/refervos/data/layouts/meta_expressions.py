"""``meta_expressions.json``, in which most RVOS benchmarks list their videos and expressions.

Its object ``videos`` has, for each video, ``frames`` and ``expressions`` by id. Further fields of an expression differ
between benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refervos.data.files import Problems, read_json, report_missing
from refervos.data.frames import ImageFrames
from refervos.data.records import as_id, is_name, require_field
from refervos.errors import DataError


@dataclass(frozen=True, eq=False)
class ListedExpression:
    """An expression in the list.

    Attributes:
        id: Unique within the video.
        text: Text of the expression.
        fields: All its fields.
        where: Name of the expression in error messages.
    """

    id: str
    text: str
    fields: Mapping[str, Any] = field(repr=False)
    where: str


@dataclass(frozen=True, eq=False)
class ListedVideo:
    """A video in the list.

    Attributes:
        id: Name of its folder; ReVOS has names with slashes.
        frames: Names of the frames, without suffix, in the order of the file.
        expressions: Expressions, in the order of the file.
        fields: All its fields.
        where: Name of the video in error messages.
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
            problems: Collects each missing frame.

        Returns:
            The frames in ascending order; None when the video's folder is missing.
        """
        files = tuple(f"{name}.jpg" for name in sorted(self.frames))
        exists = report_missing(folder / self.id, files, problems)
        return ImageFrames(folder / self.id, files) if exists else None


def read_meta_expressions(path: Path, problems: Problems) -> dict[str, ListedVideo]:
    """Read the videos and expressions of a split.

    Args:
        path: ``meta_expressions.json``.
        problems: Collects problems with single videos and expressions, which are left out.

    Returns:
        The videos by id, in the order of the file.

    Raises:
        DataError: When the file is missing, not valid JSON, lists no videos, or has a duplicate video or expression.
    """
    listed = {}
    for id, fields in require_field(read_json(path), "videos", dict, str(path)).items():
        with problems.collect():
            listed[id] = _video(id, fields, path, problems)
    return listed


def _video(id: str, fields: Any, path: Path, problems: Problems) -> ListedVideo:
    where = f"{path}, video {id}"
    if not all(map(is_name, id.split("/"))):
        raise DataError(f"{where}: its id is not a valid folder name.")
    frames = require_field(fields, "frames", list, where)
    if not frames or not all(isinstance(name, str) and is_name(name) for name in frames):
        raise DataError(f"{where}: 'frames' must be a non-empty list of names, such as \"00000\".")
    if len(set(frames)) < len(frames):
        twice = next(name for name in frames if frames.count(name) > 1)
        raise DataError(f"{where}: frame {twice} is listed twice.")
    expressions = []
    for expression_id, record in require_field(fields, "expressions", dict, where).items():
        name = f"{where}, expression {expression_id}"
        with problems.collect():
            as_id(expression_id, f"{where}: an expression's id")
            expressions.append(ListedExpression(expression_id, require_field(record, "exp", str, name), record, name))
    return ListedVideo(id, tuple(frames), tuple(expressions), fields, where)
