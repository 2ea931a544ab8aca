"""Your own data as a COCO export: YouTube-VIS JSON, or images that are video frames.

The layout is YouTube-VIS's (https://youtube-vos.org/dataset/vis): ``videos`` with their ``file_names``, ``annotations``
with a segmentation per frame, ``categories``; or COCO's own, with ``images`` and an annotation per object and image
(``coco_images``). Neither includes expressions; ``docs/data/own-data.md`` describes their sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from refervos.data.files import Problems, read_json, require_inside
from refervos.data.frames import ImageFrames, require_frame_size
from refervos.data.ground_truth import StoredMasks, decode_segmentations
from refervos.data.layouts.coco_images import read_coco_images
from refervos.data.layouts.coco_objects import (
    ANNOTATION_FILES,
    SPLITS,
    WHOLE_FILES,
    CocoObject,
    CocoVideo,
    categories_of,
    category_of,
    expressions_of,
    file_names_of,
    folder_of,
)
from refervos.data.records import records_of, require_field, require_id, require_ids, require_new_id, require_size
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.errors import DataError

NAME = "coco-video"

IMAGE_FOLDERS = ("JPEGImages", "images", "{split}/JPEGImages", ".")
"""Folders that the frames' file names may be relative to, below the folder of the annotations."""


def read_coco_video(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a COCO-video export.

    Args:
        folder: Folder of the data set, or a JSON file, which is the split ``all``.
        split: Name of the JSON file: ``train`` is ``train.json``, ``train/instances.json`` or ``instances_train.json``.
        problems: Collects problems with single videos, annotations and expressions.

    Returns:
        A sample for each expression about a video; its target is the union of all objects with that expression.

    Raises:
        DataError: When the JSON file is missing or damaged.
    """
    file = _annotation_file(folder, split)
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file} must be an object with named fields, such as 'videos' or 'images'.")
    listed = [video for video in content["videos"] if isinstance(video, dict)] if _has(content, "videos") else []
    if not _has(content, "videos") and not _has(content, "images"):
        raise DataError(f"{file} has neither 'videos', as in YouTube-VIS, nor 'images', as in COCO.")
    if _has(content, "images") and not any("file_names" in video for video in listed):
        videos, objects = read_coco_images(content, file, split, problems)
    else:
        videos = _videos(content, file, split, problems)
        objects = _objects(content, file, videos, problems)
    if "expressions" in content:
        expressions = list(_listed_expressions(content, file, videos, objects, problems))
    else:
        expressions = list(_object_expressions(objects, file, problems))
    tracks: dict[tuple[str, str], dict[str, CocoObject]] = {}
    for id, obj in objects.items():
        if obj.track is not None:
            tracks.setdefault((obj.video, obj.track), {})[id] = obj
    by_video: dict[str, dict[str, Sample]] = {id: {} for id in videos}
    for expression in expressions:
        entry, samples = videos[expression.video], by_video[expression.video]
        if entry.video is None:
            continue
        if expression.id in samples:
            problems.report(f"{file} has expression {expression.id} twice about video {expression.video}.")
            continue
        targets = {id: objects[id] for id in expression.objects}
        # Frames in which a target's track has another expression are not annotated for this one.
        unknown = {
            index
            for target in targets.values()
            if target.track is not None
            for id, other in tracks[target.video, target.track].items()
            if id not in targets
            for index in other.segmentations
        }
        annotated = [index for index in entry.annotated if index not in unknown]
        samples[expression.id] = _sample(expression, entry.video, annotated, targets, file)
    return Dataset(NAME, split, tuple(sample for samples in by_video.values() for sample in samples.values()))


@dataclass(frozen=True)
class _Expression:
    """Expression about a video, with the ids of its target objects."""

    id: str
    text: str
    video: str
    objects: tuple[str, ...]


def _has(content: dict[str, Any], name: str) -> bool:
    """Return whether an export has a non-empty list of that name."""
    return isinstance(content.get(name), list) and bool(content[name])


def _annotation_file(folder: Path, split: str) -> Path:
    if folder.is_file():
        if split != "all":
            raise DataError(f"{folder} is a single file, whose only split is 'all', not {split!r}.")
        return folder
    whole = WHOLE_FILES if split == "all" else ()
    paths = [folder / path for path in (*(path.format(split=split) for path in ANNOTATION_FILES), *whole)]
    for path in paths:
        if path.is_file():
            return path
    present = [
        name for name in SPLITS if any((folder / path.format(split=name)).is_file() for path in ANNOTATION_FILES)
    ]
    hint = f"; present are {', '.join(present)}" if present else ""
    raise DataError(f"Split {split!r} is in none of {', '.join(str(path) for path in paths)}{hint}.")


def _videos(content: Any, file: Path, split: str, problems: Problems) -> dict[str, CocoVideo]:
    """Read the videos by id."""
    root: Path | None = None
    videos: dict[str, CocoVideo] = {}
    for where, record in records_of(content, "videos", file):
        with problems.collect():
            id = require_new_id(record, videos, "video", file, where)
            videos[id] = CocoVideo(None)
            size, names = require_size(record, where), file_names_of(record, where)
            if "length" in record and record["length"] != len(names):
                raise DataError(f"{where}: its 'length' must be the number of its 'file_names', {len(names)}.")
            folders = [file.parent / folder.format(split=split) for folder in IMAGE_FOLDERS]
            root = root or folder_of(folders, names[0], where, problems)
            for name in names:
                if not require_inside(root, name, where, problems).is_file():
                    raise DataError(f"{root / name} is missing.")
            frames = ImageFrames(root, tuple(names))
            videos[id] = CocoVideo(Video(id, frames, require_frame_size(frames, 0, size, where)), range(len(names)))
    return videos


def _objects(content: Any, file: Path, videos: dict[str, CocoVideo], problems: Problems) -> dict[str, CocoObject]:
    """Read the objects by id."""
    categories = categories_of(content, file, problems)
    objects: dict[str, CocoObject] = {}
    for where, record in records_of(content, "annotations", file):
        with problems.collect():
            id = require_new_id(record, objects, "annotation", file, where)
            video = require_id(record, "video_id", where)
            if video not in videos:
                raise DataError(f"{where} is about video {video}, which is missing.")
            segmentations, about = require_field(record, "segmentations", list, where), videos[video].video
            if about is not None and len(segmentations) != len(about):
                raise DataError(
                    f"{where} has {len(segmentations)} segmentations, video {video} has {len(about)} frames."
                )
            visible = {index: segmentation for index, segmentation in enumerate(segmentations) if segmentation}
            category = category_of(record, categories, where)
            objects[id] = CocoObject(video, visible, expressions_of(record, where), category)
    return objects


def _listed_expressions(
    content: Any, file: Path, videos: dict[str, CocoVideo], objects: dict[str, CocoObject], problems: Problems
) -> Iterator[_Expression]:
    """Read the ``expressions`` of an export."""
    for where, record in records_of(content, "expressions", file):
        with problems.collect():
            id, video = require_id(record, "id", where), require_id(record, "video_id", where)
            text = require_field(record, "expression", str, where)
            targets = require_ids(record, "annotation_ids", where)
            if video not in videos:
                raise DataError(f"{where} is about video {video}, which is missing.")
            for object_id in targets:
                if object_id not in objects or objects[object_id].video != video:
                    raise DataError(f"{where} refers to annotation {object_id}, which video {video} does not have.")
            yield _Expression(id, text, video, targets)


def _object_expressions(objects: dict[str, CocoObject], file: Path, problems: Problems) -> Iterator[_Expression]:
    """Collect the expressions in the annotations, numbered per video; category names when there are none."""
    any_expression = any(obj.expressions for obj in objects.values())
    by_video: dict[str, dict[str, list[str]]] = {}
    for id, obj in objects.items():
        if not any_expression and not obj.category:
            problems.report(f"{file}: annotation {id} has neither an expression nor a category to use as one.")
            continue
        for text in obj.expressions if any_expression else (obj.category,):
            by_video.setdefault(obj.video, {}).setdefault(text, []).append(id)
    for video, targets in by_video.items():
        for number, (text, ids) in enumerate(targets.items()):
            yield _Expression(str(number), text, video, tuple(ids))


def _sample(
    expression: _Expression, video: Video, annotated: Sequence[int], targets: dict[str, CocoObject], file: Path
) -> Sample:
    frames = video.frames
    assert isinstance(frames, ImageFrames)
    visible: dict[int, list[Any]] = {index: [] for index in annotated}
    for target in targets.values():
        for index, segmentation in target.segmentations.items():
            if index in visible:
                visible[index].append(segmentation)
    annotations = f"annotation {', '.join(targets)}" if len(targets) < 4 else f"{len(targets)} annotations"
    readers = {}
    for index, segmentations in visible.items():
        where = f"{file}, {annotations}, frame {frames.names[index]}"
        readers[index] = partial(_decode, frames, index, segmentations, video.size, where)
    return Sample(
        video,
        expression.id,
        expression.text,
        StoredMasks(readers),
        has_target=bool(targets),
        object_ids=expression.objects,
    )


def _decode(
    frames: ImageFrames, index: int, segmentations: Sequence[Any], stated: tuple[int, int] | None, where: str
) -> Mask:
    return decode_segmentations(segmentations, require_frame_size(frames, index, stated, where), where)
