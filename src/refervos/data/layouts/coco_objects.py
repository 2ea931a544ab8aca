"""Objects, segmentations and names shared by the COCO layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from refervos.data.files import Problems, require_inside
from refervos.data.records import require_field, require_id
from refervos.data.sample import Video
from refervos.errors import DataError

SPLITS = ("all", "train", "val", "valid", "test", "default")
"""Usual names of splits."""

ANNOTATION_FILES = (
    "{split}.json",
    "{split}/instances.json",
    "instances_{split}.json",
    "annotations/instances_{split}.json",
    "annotations/{split}.json",
    "{split}/_annotations.coco.json",
    "{split}/annotations.json",
)
"""Paths of a split's annotations, below the folder of the data set."""

WHOLE_FILES = ("annotations.json", "_annotations.coco.json")
"""Additional paths of the annotations of the split ``all``."""


@dataclass(frozen=True)
class CocoObject:
    """Object of a video.

    Attributes:
        video: Id of the video.
        segmentations: Polygons or run lengths by frame index, only for frames in which it is visible.
        expressions: Expressions in its annotation; empty in most exports.
        category: Name of its category, or empty.
        track: Track id, shared with the same object under other expressions; None when not given.
    """

    video: str
    segmentations: Mapping[int, Any]
    expressions: tuple[str, ...]
    category: str
    track: str | None = None


@dataclass(frozen=True)
class CocoVideo:
    """Video of an export.

    Attributes:
        video: The video; None when it has a problem.
        annotated: Indices of the frames with complete annotations.
    """

    video: Video | None
    annotated: Sequence[int] = ()


def expressions_of(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the expressions in an annotation: a list, a text, or an attribute written by an annotation tool.

    Args:
        record: The annotation.
        where: Name of the annotation in error messages.

    Returns:
        The expressions, possibly none.

    Raises:
        DataError: When one is not text.
    """
    attributes = record.get("attributes")
    found = record.get("expressions", record.get("expression"))
    if found is None and isinstance(attributes, dict):
        found = attributes.get("expression")
    found = [] if found in (None, "") else found if isinstance(found, list) else [found]
    if not all(isinstance(text, str) and text for text in found):
        raise DataError(f"{where}: an expression must be text.")
    return tuple(found)


def file_names_of(record: Mapping[str, Any], where: str) -> list[str]:
    """Return the file names of a video's frames.

    Args:
        record: The video.
        where: Name of the video in error messages.

    Returns:
        The names, each with its own stem.

    Raises:
        DataError: When there are none, or two have the same stem.
    """
    names = require_field(record, "file_names", list, where)
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{where}: 'file_names' must list one file per frame.")
    if len({PurePosixPath(name).stem for name in names}) < len(names):
        raise DataError(f"{where}: two of its 'file_names' have the same stem; each frame needs its own.")
    return names


def categories_of(content: Any, file: Path, problems: Problems) -> dict[str, str]:
    """Read the names of the categories by id, possibly none."""
    names = {}
    records = require_field(content, "categories", list, str(file)) if "categories" in content else ()
    for number, record in enumerate(records):
        where = f"{file}, category {number}"
        with problems.collect():
            names[require_id(record, "id", where)] = require_field(record, "name", str, where)
    return names


def category_of(record: Mapping[str, Any], categories: Mapping[str, str], where: str) -> str:
    """Return the name of an annotation's category; empty when it has none or an unknown one."""
    return categories.get(require_id(record, "category_id", where), "") if "category_id" in record else ""


def folder_of(candidates: Sequence[Path], name: str, where: str, problems: Problems) -> Path:
    """Find the folder that file names are relative to.

    Args:
        candidates: Possible folders.
        name: One of the file names.
        where: Position in the annotations, for error messages.
        problems: States whether files outside are allowed.

    Returns:
        The first candidate that contains the file, or else the first.

    Raises:
        DataError: When the name leads outside.
    """
    found = (folder for folder in candidates if require_inside(folder, name, where, problems).is_file())
    return next(found, candidates[0])
