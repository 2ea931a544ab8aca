"""Frames of videos as a COCO export of images, as Roboflow, CVAT and LabelMe write them.

Such exports know no videos. Here the pictures of a folder whose names differ in their last number only are a video, in
the order of these numbers: ``dog_0001.jpg`` and ``dog_0010.jpg``, or ``dog_mp4-1_jpg.rf.0a1b.jpg``, as Roboflow calls a
frame of ``dog.mp4``. Where images tell a ``video_id``, that is taken instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

from refervos.data.files import Problems, inside
from refervos.data.frames import ImageFrames, fitting
from refervos.data.layouts.coco_objects import (
    CocoObject,
    CocoVideo,
    categories_of,
    category_of,
    expressions_of,
    folder_of,
)
from refervos.data.records import as_id, take, take_id, take_size
from refervos.data.sample import Video
from refervos.errors import DataError
from refervos.video.sources import natural_key

IMAGE_FOLDERS = (".", "JPEGImages", "images", "../images/{split}", "../images", "{split}")
"""What the images' file names are relative to, below the folder of the annotations."""

_ROBOFLOW = re.compile(r"_(?:jpe?g|png|bmp|webp)\.rf\.\w+$", re.IGNORECASE | re.ASCII)
"""What Roboflow puts behind the name that a picture was given, without its suffix."""

_TRACKS = ("track_id", "instance_id")
"""What tells which annotations are of the same object, in them or among their attributes."""

_NO_NAMES = {"images", "JPEGImages", "."}
"""Folders that say nothing of what is in them."""


@dataclass(frozen=True)
class _Image:
    """An image of the export.

    Attributes:
        where: What to call it in an error.
        id: As the export calls it.
        name: Its file.
        size: Height and width.
        group: What it has in common with the other frames of its video.
        place: Where it stands among them, which no other of them does.
    """

    where: str
    id: str
    name: str
    size: tuple[int, int]
    group: tuple[str, ...]
    place: tuple[Any, ...]


def read_coco_images(
    content: Any, file: Path, split: str, problems: Problems
) -> tuple[dict[str, CocoVideo], dict[str, CocoObject]]:
    """Read an export of images.

    Args:
        content: What the file holds.
        file: The file.
        split: Of the data set.
        problems: Told what is wrong with single images and annotations.

    Returns:
        The videos by id, and the objects by id. Frames in which something is drawn are annotated: in the others,
        objects may be absent, or nobody may have looked.

    Raises:
        DataError: When there are no images or no annotations.
    """
    if "expressions" in content:
        raise DataError(f"{file} lists expressions about images; these belong to 'videos', or to single annotations.")
    images = _images(content, file, problems)
    together: dict[tuple[str, ...], list[_Image]] = {}
    for image in images.values():
        together.setdefault(image.group, []).append(image)
    places = [file.parent / place.format(split=split) for place in IMAGE_FOLDERS]
    videos: dict[str, CocoVideo] = {}
    frame_of: dict[str, tuple[str, int]] = {}
    named = _names(together, content, file, split)
    for group, frames in together.items():
        with problems.collect():
            id = as_id(named[group], f"{frames[0].where}: the name of its video")
            if id in videos:
                raise DataError(f"{frames[0].where}: its video would be called {id!r}, as another is.")
            videos[id] = CocoVideo(None)
            frames.sort(key=lambda image: image.place)
            frame_of |= {image.id: (id, index) for index, image in enumerate(frames)}
            videos[id] = CocoVideo(_video(id, frames, places, problems))
    objects = _objects(content, file, frame_of, problems)
    drawn: dict[str, set[int]] = {id: set() for id in videos}
    for thing in objects.values():
        drawn[thing.video].update(thing.segmentations)
    return {id: CocoVideo(told.video, sorted(drawn[id])) for id, told in videos.items()}, objects


def _images(content: Any, file: Path, problems: Problems) -> dict[str, _Image]:
    images: dict[str, _Image] = {}
    for number, record in enumerate(take(content, "images", list, str(file))):
        where = f"{file}, image {number}"
        with problems.collect():
            id, name, size = (
                take_id(record, "id", where),
                take(record, "file_name", str, where),
                take_size(record, where),
            )
            if id in images:
                raise DataError(f"{file} has image {id} twice.")
            path = PurePosixPath(name.replace("\\", "/"))  # written on Windows
            stem = _ROBOFLOW.sub("", path.stem)
            told = re.fullmatch(r"(.*?)(\d{0,18})", stem, re.ASCII | re.DOTALL)
            assert told is not None  # both parts may be empty
            group: tuple[str, ...] = (path.parent.as_posix(), told[1])
            place: tuple[Any, ...] = (int(told[2] or 0),)
            if "video_id" in record:
                group = (take_id(record, "video_id", where),)
                place = (take(record, "frame_id", int, where),) if "frame_id" in record else natural_key(stem)
            images[id] = _Image(where, id, path.as_posix(), size, group, place)
    return images


def _names(
    together: Mapping[tuple[str, ...], Sequence[_Image]], content: Any, file: Path, split: str
) -> dict[tuple[str, ...], str]:
    """What to call each video: by its folder and what its pictures are called, or as the data set."""
    told = {}
    listed = content.get("videos")
    for record in listed if isinstance(listed, list) else ():
        if isinstance(record, dict) and isinstance(record.get("name"), str) and isinstance(record.get("id"), int | str):
            told[str(record["id"])] = PurePosixPath(record["name"]).stem
    home = next(
        (part for part in reversed(file.resolve().parent.parts) if part not in ("annotations", split)), "images"
    )
    names: dict[tuple[str, ...], str] = {}
    for group in together:
        if len(group) == 1:
            names[group] = told.get(group[0], group[0])
            continue
        folder, prefix = group
        parts = [part for part in PurePosixPath(folder).parts if part not in _NO_NAMES]
        prefix = prefix.strip("-_. ")
        names[group] = "-".join([*parts, *([prefix] if prefix else [])]) or home
    return names


def _video(id: str, frames: Sequence[_Image], places: Sequence[Path], problems: Problems) -> Video:
    for one, other in pairwise(frames):
        if one.place == other.place:
            raise DataError(
                f"{other.where} ({other.name}) and {one.name} are the same frame of video {id}, by the numbers in "
                "their names; export each frame once, without augmentation."
            )
    if len({PurePosixPath(image.name).stem for image in frames}) < len(frames):
        raise DataError(f"{frames[0].where}: two frames of its video {id} have the same stem; each needs its own.")
    folder = folder_of(places, frames[0].name, frames[0].where, problems)
    for image in frames:
        if not inside(folder, image.name, image.where, problems).is_file():
            raise DataError(f"{folder / image.name} is missing.")
    read = ImageFrames(folder, tuple(image.name for image in frames))
    return Video(id, read, fitting(read, 0, frames[0].size, frames[0].where))


def _objects(
    content: Any, file: Path, frame_of: Mapping[str, tuple[str, int]], problems: Problems
) -> dict[str, CocoObject]:
    """The annotations, those of the same track together."""
    categories = categories_of(content, file, problems)
    objects: dict[str, CocoObject] = {}
    seen = set()
    for number, record in enumerate(take(content, "annotations", list, str(file))):
        where = f"{file}, annotation {number}"
        with problems.collect():
            id, image = take_id(record, "id", where), take_id(record, "image_id", where)
            if id in seen:
                raise DataError(f"{file} has annotation {id} twice.")
            seen.add(id)
            if image not in frame_of:
                raise DataError(f"{where} is about image {image}, which is not there or not read.")
            segmentation = record.get("segmentation")
            if not isinstance(segmentation, list | dict) or not segmentation:
                raise DataError(f"{where} has no 'segmentation'; a box is no mask.")
            video, index = frame_of[image]
            sentences, category = expressions_of(record, where), category_of(record, categories, where)
            track = _track(record, where)
            key = id if track is None else f"{video}, track {track}, {sentences or category}"
            known = objects.setdefault(key, CocoObject(video, {}, sentences, category, track))
            if index in known.segmentations:
                raise DataError(f"{where}: track {track} is in image {image} twice.")
            assert isinstance(known.segmentations, dict)
            known.segmentations[index] = segmentation
    return objects


def _track(record: Mapping[str, Any], where: str) -> str | None:
    """What tells which object of the video an annotation is about; None where nothing does."""
    attributes = record.get("attributes")
    for told in (record, attributes if isinstance(attributes, dict) else {}):
        for name in _TRACKS:
            if told.get(name) is not None:
                return take_id(told, name, where)
    return None
