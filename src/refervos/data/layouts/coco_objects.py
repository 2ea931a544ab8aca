"""What the layouts of COCO have in common: objects, where they are drawn, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refervos.data.files import Problems, inside
from refervos.data.records import take, take_id
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
"""Where the annotations of a split are, below the folder of the data set."""

WHOLE_FILES = ("annotations.json", "_annotations.coco.json")
"""Where the annotations of the split ``all`` may be besides."""


@dataclass(frozen=True)
class CocoObject:
    """One object of a video.

    Attributes:
        video: Id of the video.
        segmentations: Polygons or run lengths by the index of the frame; none where it is not visible.
        expressions: What it was told to be called; none in most exports.
        category: Name of its category, or empty.
        track: What it has in common with what is the same thing under another name; None where nothing is told.
    """

    video: str
    segmentations: Mapping[int, Any]
    expressions: tuple[str, ...]
    category: str
    track: str | None = None


@dataclass(frozen=True)
class CocoVideo:
    """A video of an export.

    Attributes:
        video: The video; None where something is wrong with it.
        annotated: Indices of the frames in which all objects are known.
    """

    video: Video | None
    annotated: Sequence[int] = ()


def expressions_of(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Find what an annotation says itself: a list, a text, or an attribute as annotation tools write it.

    Args:
        record: The annotation.
        where: What to call it in an error.

    Returns:
        The sentences; none where nothing is said.

    Raises:
        DataError: When one is no text.
    """
    attributes = record.get("attributes")
    told = record.get("expressions", record.get("expression"))
    if told is None and isinstance(attributes, dict):
        told = attributes.get("expression")
    told = [] if told in (None, "") else told if isinstance(told, list) else [told]
    if not all(isinstance(text, str) and text for text in told):
        raise DataError(f"{where}: an expression must be text.")
    return tuple(told)


def categories_of(content: Any, file: Path, problems: Problems) -> dict[str, str]:
    """Read the names of the categories by id; none where the export has no categories."""
    names = {}
    for number, record in enumerate(take(content, "categories", list, str(file)) if "categories" in content else ()):
        where = f"{file}, category {number}"
        with problems.collect():
            names[take_id(record, "id", where)] = take(record, "name", str, where)
    return names


def category_of(record: Mapping[str, Any], categories: Mapping[str, str], where: str) -> str:
    """Find the name of an annotation's category; empty where it has none, or one that is not told."""
    return categories.get(take_id(record, "category_id", where), "") if "category_id" in record else ""


def folder_of(places: Sequence[Path], name: str, where: str, problems: Problems) -> Path:
    """Find the folder that file names are relative to.

    Args:
        places: Where it may be.
        name: One of the names.
        where: What to call the place where it is told in an error.
        problems: Knows whether files outside are allowed.

    Returns:
        The first that has a file of that name, or else the first.

    Raises:
        DataError: When the name leads outside.
    """
    return next((place for place in places if inside(place, name, where, problems).is_file()), places[0])
