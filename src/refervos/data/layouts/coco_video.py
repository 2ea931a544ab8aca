"""Your own data as a COCO export: the JSON of YouTube-VIS, or of images that are frames; with sentences or without.

The layout is YouTube-VIS's (https://youtube-vos.org/dataset/vis): ``videos`` with their ``file_names``, ``annotations``
with a segmentation for each frame, ``categories``; or COCO's own, with ``images`` and an annotation for each object in
each image (``coco_images``). Sentences are no part of either; where they are taken from is told in
``docs/data/own-data.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from refervos.data.files import Problems, inside, read_json
from refervos.data.frames import ImageFrames, fitting
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
    folder_of,
)
from refervos.data.records import take, take_id, take_ids, take_size
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.errors import DataError

NAME = "coco-video"

IMAGE_FOLDERS = ("JPEGImages", "images", "{split}/JPEGImages", ".")
"""What the frames' file names are relative to, below the folder of the annotations."""


def read_coco_video(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a COCO-video export.

    Args:
        folder: The data set, or its JSON file, which then is the split ``all``.
        split: Names the JSON file: ``train`` is ``train.json``, ``train/instances.json`` or ``instances_train.json``.
        problems: Told what is wrong with single videos, annotations and sentences.

    Returns:
        A sample for each sentence about a video; objects of the same sentence are meant together.

    Raises:
        DataError: When the JSON file is missing or damaged.
    """
    file = _annotation_file(folder, split)
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file} must be an object with named fields, such as 'videos' or 'images'.")
    listed = [video for video in content["videos"] if isinstance(video, dict)] if _has(content, "videos") else []
    if not _has(content, "videos") and not _has(content, "images"):
        raise DataError(f"{file} has neither 'videos', as YouTube-VIS has them, nor 'images', as COCO has them.")
    if _has(content, "images") and not any("file_names" in video for video in listed):
        videos, objects = read_coco_images(content, file, split, problems)
    else:
        videos = _videos(content, file, split, problems)
        objects = _objects(content, file, videos, problems)
    if "expressions" in content:
        sentences = list(_listed(content, file, videos, objects, problems))
    else:
        sentences = list(_grouped(objects, file, problems))
    tracks: dict[tuple[str, str], dict[str, CocoObject]] = {}
    for id, thing in objects.items():
        if thing.track is not None:
            tracks.setdefault((thing.video, thing.track), {})[id] = thing
    by_video: dict[str, dict[str, Sample]] = {id: {} for id in videos}
    for sentence in sentences:
        told, samples = videos[sentence.video], by_video[sentence.video]
        if told.video is None:
            continue
        if sentence.id in samples:
            problems.report(f"{file} has expression {sentence.id} twice about video {sentence.video}.")
            continue
        meant = {id: objects[id] for id in sentence.objects}
        # Where a thing has another name at the moment, this sentence was not asked.
        unknown = {
            index
            for thing in meant.values()
            if thing.track is not None
            for id, other in tracks[thing.video, thing.track].items()
            if id not in meant
            for index in other.segmentations
        }
        annotated = [index for index in told.annotated if index not in unknown]
        samples[sentence.id] = _sample(sentence, told.video, annotated, meant, file)
    return Dataset(NAME, split, tuple(sample for samples in by_video.values() for sample in samples.values()))


@dataclass(frozen=True)
class _Sentence:
    """What is asked about a video, by ids."""

    id: str
    text: str
    video: str
    objects: tuple[str, ...]


def _has(content: dict[str, Any], name: str) -> bool:
    """Whether an export lists anything of a kind."""
    return isinstance(content.get(name), list) and bool(content[name])


def _annotation_file(folder: Path, split: str) -> Path:
    if folder.is_file():
        if split != "all":
            raise DataError(f"{folder} is one file, whose only split is 'all', not {split!r}.")
        return folder
    whole = WHOLE_FILES if split == "all" else ()
    places = [folder / place for place in (*(place.format(split=split) for place in ANNOTATION_FILES), *whole)]
    for place in places:
        if place.is_file():
            return place
    there = [
        name for name in SPLITS if any((folder / place.format(split=name)).is_file() for place in ANNOTATION_FILES)
    ]
    hint = f"; there are {', '.join(there)}" if there else ""
    raise DataError(f"Split {split!r} is in none of {', '.join(str(place) for place in places)}{hint}.")


def _videos(content: Any, file: Path, split: str, problems: Problems) -> dict[str, CocoVideo]:
    """The videos by id."""
    root: Path | None = None
    videos: dict[str, CocoVideo] = {}
    for number, record in enumerate(take(content, "videos", list, str(file))):
        where = f"{file}, video {number}"
        with problems.collect():
            id = take_id(record, "id", where)
            if id in videos:
                raise DataError(f"{file} has video {id} twice.")
            videos[id] = CocoVideo(None)
            size, names = take_size(record, where), take(record, "file_names", list, where)
            if not names or not all(isinstance(name, str) and name for name in names):
                raise DataError(f"{where}: 'file_names' must list the file of each frame.")
            if "length" in record and record["length"] != len(names):
                raise DataError(f"{where}: its 'length' is not that of its 'file_names', which is {len(names)}.")
            if len({PurePosixPath(name).stem for name in names}) < len(names):
                raise DataError(f"{where}: two of its 'file_names' have the same stem; each frame needs its own.")
            places = [file.parent / place.format(split=split) for place in IMAGE_FOLDERS]
            root = root or folder_of(places, names[0], where, problems)
            for name in names:
                if not inside(root, name, where, problems).is_file():
                    raise DataError(f"{root / name} is missing.")
            frames = ImageFrames(root, tuple(names))
            videos[id] = CocoVideo(Video(id, frames, fitting(frames, 0, size, where)), range(len(names)))
    return videos


def _objects(content: Any, file: Path, videos: dict[str, CocoVideo], problems: Problems) -> dict[str, CocoObject]:
    """The annotations by id."""
    categories = categories_of(content, file, problems)
    objects: dict[str, CocoObject] = {}
    for number, record in enumerate(take(content, "annotations", list, str(file))):
        where = f"{file}, annotation {number}"
        with problems.collect():
            id, video = take_id(record, "id", where), take_id(record, "video_id", where)
            if id in objects:
                raise DataError(f"{file} has annotation {id} twice.")
            if video not in videos:
                raise DataError(f"{where} is about video {video}, which is not there.")
            segmentations, about = take(record, "segmentations", list, where), videos[video].video
            if about is not None and len(segmentations) != len(about):
                raise DataError(
                    f"{where} has {len(segmentations)} segmentations, video {video} has {len(about)} frames."
                )
            visible = {index: told for index, told in enumerate(segmentations) if told}
            category = category_of(record, categories, where)
            objects[id] = CocoObject(video, visible, expressions_of(record, where), category)
    return objects


def _listed(
    content: Any, file: Path, videos: dict[str, CocoVideo], objects: dict[str, CocoObject], problems: Problems
) -> Iterator[_Sentence]:
    """The sentences of an export that lists them."""
    for number, record in enumerate(take(content, "expressions", list, str(file))):
        where = f"{file}, expression {number}"
        with problems.collect():
            id, video = take_id(record, "id", where), take_id(record, "video_id", where)
            text, meant = take(record, "expression", str, where), take_ids(record, "annotation_ids", where)
            if video not in videos:
                raise DataError(f"{where} is about video {video}, which is not there.")
            for object_id in meant:
                if object_id not in objects or objects[object_id].video != video:
                    raise DataError(f"{where} means annotation {object_id}, which video {video} does not have.")
            yield _Sentence(id, text, video, meant)


def _grouped(objects: dict[str, CocoObject], file: Path, problems: Problems) -> Iterator[_Sentence]:
    """What the annotations say themselves, numbered in each video; the categories where none says anything."""
    said = any(thing.expressions for thing in objects.values())
    together: dict[str, dict[str, list[str]]] = {}
    for id, thing in objects.items():
        if not said and not thing.category:
            problems.report(f"{file}: annotation {id} has no expression, and no category whose name could be one.")
            continue
        for text in thing.expressions if said else (thing.category,):
            together.setdefault(thing.video, {}).setdefault(text, []).append(id)
    for video, sentences in together.items():
        for number, (text, ids) in enumerate(sentences.items()):
            yield _Sentence(str(number), text, video, tuple(ids))


def _sample(
    sentence: _Sentence, video: Video, annotated: Sequence[int], meant: dict[str, CocoObject], file: Path
) -> Sample:
    frames = video.frames
    assert isinstance(frames, ImageFrames)
    visible: dict[int, list[Any]] = {index: [] for index in annotated}
    for thing in meant.values():
        for index, segmentation in thing.segmentations.items():
            if index in visible:
                visible[index].append(segmentation)
    what = f"annotation {', '.join(meant)}" if len(meant) < 4 else f"{len(meant)} annotations"
    readers = {}
    for index, segmentations in visible.items():
        where = f"{file}, {what}, frame {frames.names[index]}"
        readers[index] = partial(_decode, frames, index, segmentations, video.size, where)
    return Sample(
        video,
        sentence.id,
        sentence.text,
        StoredMasks(readers),
        has_target=bool(meant),
        object_ids=sentence.objects,
    )


def _decode(
    frames: ImageFrames, index: int, segmentations: Sequence[Any], told: tuple[int, int] | None, where: str
) -> Mask:
    return decode_segmentations(segmentations, fitting(frames, index, told, where), where)
