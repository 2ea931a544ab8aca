"""Video frames in a COCO export of images, as written by Roboflow, CVAT and LabelMe.

Such exports have no videos. The images of a folder whose names differ only in their last number form a video, in the
order of these numbers: ``dog_0001.jpg`` and ``dog_0010.jpg``, or ``dog_mp4-1_jpg.rf.0a1b.jpg``, Roboflow's name for a
frame of ``dog.mp4``. A ``video_id`` in the images takes precedence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from refervos.data.files import Problems, require_inside
from refervos.data.frames import ImageFrames, require_frame_size
from refervos.data.layouts.coco_objects import (
    CocoObject,
    CocoVideo,
    categories_of,
    category_of,
    expressions_of,
    folder_of,
)
from refervos.data.records import as_id, records_of, require_field, require_id, require_new_id, require_size
from refervos.data.sample import Video
from refervos.errors import DataError
from refervos.video.sources import natural_key

IMAGE_FOLDERS = (".", "JPEGImages", "images", "../images/{split}", "../images", "{split}")
"""Folders that the images' file names may be relative to, below the folder of the annotations."""

_ROBOFLOW = re.compile(r"_(?:jpe?g|png|bmp|webp)\.rf\.\w+$", re.IGNORECASE | re.ASCII)
"""Suffix that Roboflow appends to the stem of an image's original name."""

_TRACK_FIELDS = ("track_id", "instance_id")
"""Fields of an annotation, or of its attributes, that identify its track."""

_GENERIC_FOLDERS = {"images", "JPEGImages", "."}
"""Folder names that do not contribute to a video's name."""


@dataclass(frozen=True)
class _Image:
    """Image of the export.

    Attributes:
        where: Name of the image in error messages.
        id: Its id in the export.
        name: File name.
        size: Height and width.
        group: Key shared by all frames of its video.
        position: Sort key within the video, unique there.
    """

    where: str
    id: str
    name: str
    size: tuple[int, int]
    group: tuple[str, ...]
    position: tuple[Any, ...]


def read_coco_images(
    content: Any, file: Path, split: str, problems: Problems
) -> tuple[dict[str, CocoVideo], dict[str, CocoObject]]:
    """Read an export of images.

    Args:
        content: The parsed file.
        file: The file.
        split: Split of the data set.
        problems: Collects problems with single images and annotations.

    Returns:
        The videos by id, and the objects by id. Only frames with at least one annotation count as annotated: others may
        be empty or not yet labelled.

    Raises:
        DataError: When there are no images or no annotations.
    """
    if "expressions" in content:
        raise DataError(f"{file} lists expressions about images; put them into the annotations, or list 'videos'.")
    images = _images(content, file, problems)
    groups: dict[tuple[str, ...], list[_Image]] = {}
    for image in images.values():
        groups.setdefault(image.group, []).append(image)
    folders = [file.parent / folder.format(split=split) for folder in IMAGE_FOLDERS]
    videos: dict[str, CocoVideo] = {}
    frame_of: dict[str, tuple[str, int]] = {}
    names = _video_names(groups, content, file, split)
    for group, frames in groups.items():
        with problems.collect():
            id = as_id(names[group], f"{frames[0].where}: the name of its video")
            if id in videos:
                raise DataError(f"{frames[0].where}: its video would be named {id!r}, which another video is.")
            videos[id] = CocoVideo(None)
            frames.sort(key=lambda image: image.position)
            frame_of |= {image.id: (id, index) for index, image in enumerate(frames)}
            videos[id] = CocoVideo(_video(id, frames, folders, problems))
    objects = _objects(content, file, frame_of, problems)
    annotated: dict[str, set[int]] = {id: set() for id in videos}
    for obj in objects.values():
        annotated[obj.video].update(obj.segmentations)
    return {id: CocoVideo(entry.video, sorted(annotated[id])) for id, entry in videos.items()}, objects


def _images(content: Any, file: Path, problems: Problems) -> dict[str, _Image]:
    images: dict[str, _Image] = {}
    for where, record in records_of(content, "images", file):
        with problems.collect():
            id = require_new_id(record, images, "image", file, where)
            name, size = require_field(record, "file_name", str, where), require_size(record, where)
            path = PurePosixPath(name.replace("\\", "/"))  # written on Windows
            stem = _ROBOFLOW.sub("", path.stem)
            numbered = re.fullmatch(r"(.*?)(\d{0,18})", stem, re.ASCII | re.DOTALL)
            assert numbered is not None  # both parts may be empty
            group: tuple[str, ...] = (path.parent.as_posix(), numbered[1])
            position: tuple[Any, ...] = (int(numbered[2] or 0),)
            if "video_id" in record:
                group = (require_id(record, "video_id", where),)
                position = (
                    (require_field(record, "frame_id", int, where),) if "frame_id" in record else natural_key(stem)
                )
            images[id] = _Image(where, id, path.as_posix(), size, group, position)
    return images


def _video_names(
    groups: Mapping[tuple[str, ...], Sequence[_Image]], content: Any, file: Path, split: str
) -> dict[tuple[str, ...], str]:
    """Name each video by its folder and the common part of its images' names, or else by the data set."""
    listed_names = {}
    listed = content.get("videos")
    for record in listed if isinstance(listed, list) else ():
        if isinstance(record, dict) and isinstance(record.get("name"), str) and isinstance(record.get("id"), int | str):
            listed_names[str(record["id"])] = PurePosixPath(record["name"]).stem
    home = next(
        (part for part in reversed(file.resolve().parent.parts) if part not in ("annotations", split)), "images"
    )
    names: dict[tuple[str, ...], str] = {}
    for group in groups:
        if len(group) == 1:
            names[group] = listed_names.get(group[0], group[0])
            continue
        folder, prefix = group
        parts = [part for part in PurePosixPath(folder).parts if part not in _GENERIC_FOLDERS]
        prefix = prefix.strip("-_. ")
        names[group] = "-".join([*parts, *([prefix] if prefix else [])]) or home
    return names


def _video(id: str, frames: Sequence[_Image], folders: Sequence[Path], problems: Problems) -> Video:
    for one, other in pairwise(frames):
        if one.position == other.position:
            raise DataError(
                f"{other.where} ({other.name}) and {one.name} are the same frame of video {id}, by the numbers in "
                "their names; export each frame once, without augmentation."
            )
    if len({PurePosixPath(image.name).stem for image in frames}) < len(frames):
        raise DataError(f"{frames[0].where}: two frames of its video {id} have the same stem; each needs its own.")
    folder = folder_of(folders, frames[0].name, frames[0].where, problems)
    for image in frames:
        if not require_inside(folder, image.name, image.where, problems).is_file():
            raise DataError(f"{folder / image.name} is missing.")
    images = ImageFrames(folder, tuple(image.name for image in frames))
    return Video(id, images, require_frame_size(images, 0, frames[0].size, frames[0].where))


def _objects(
    content: Any, file: Path, frame_of: Mapping[str, tuple[str, int]], problems: Problems
) -> dict[str, CocoObject]:
    """Read the objects, with the annotations of a track merged."""
    categories = categories_of(content, file, problems)
    objects: dict[str, CocoObject] = {}
    seen: set[str] = set()
    for where, record in records_of(content, "annotations", file):
        with problems.collect():
            id, image = require_new_id(record, seen, "annotation", file, where), require_id(record, "image_id", where)
            seen.add(id)
            if image not in frame_of:
                raise DataError(f"{where} is about image {image}, which is missing or was not read.")
            segmentation = record.get("segmentation")
            if not isinstance(segmentation, list | dict) or not segmentation:
                raise DataError(f"{where} has no 'segmentation'; a box is not a mask.")
            video, index = frame_of[image]
            expressions, category = expressions_of(record, where), category_of(record, categories, where)
            track = _track(record, where)
            key = id if track is None else f"{video}, track {track}, {expressions or category}"
            known = objects.setdefault(key, CocoObject(video, {}, expressions, category, track))
            if index in known.segmentations:
                raise DataError(f"{where}: track {track} is in image {image} twice.")
            assert isinstance(known.segmentations, dict)
            known.segmentations[index] = segmentation
    return objects


def _track(record: Mapping[str, Any], where: str) -> str | None:
    """Return the track id of an annotation; None when it has none."""
    attributes = record.get("attributes")
    for fields in (record, attributes if isinstance(attributes, dict) else {}):
        for name in _TRACK_FIELDS:
            if fields.get(name) is not None:
                return require_id(fields, name, where)
    return None
