"""Your own data as a COCO-video export: the JSON of YouTube-VIS, with sentences or without.

The layout is YouTube-VIS's (https://youtube-vos.org/dataset/vis): ``videos`` with their ``file_names``, ``annotations``
with a segmentation for each frame, ``categories``. Sentences are no part of it; where they are taken from is told in
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
from refervos.data.records import take, take_id, take_ids, take_size
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.data.truths import StoredMasks, decode_segmentations
from refervos.errors import DataError

NAME = "coco-video"

ANNOTATION_FILES = ("{split}.json", "{split}/instances.json", "instances_{split}.json")
"""Where the annotations of a split are, below the folder of the data set."""

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
    videos = _videos(content, file, split, problems)
    objects = _objects(content, file, videos, problems)
    if "expressions" in content:
        sentences = list(_listed(content, file, videos, objects, problems))
    else:
        sentences = list(_grouped(objects, file, problems))
    by_video: dict[str, dict[str, Sample]] = {id: {} for id in videos}
    for sentence in sentences:
        video, samples = videos[sentence.video], by_video[sentence.video]
        if video is None:
            continue
        if sentence.id in samples:
            problems.report(f"{file} has expression {sentence.id} twice about video {sentence.video}.")
            continue
        meant = {id: objects[id] for id in sentence.objects}
        samples[sentence.id] = _sample(sentence, video, meant, file)
    return Dataset(NAME, split, tuple(sample for samples in by_video.values() for sample in samples.values()))


@dataclass(frozen=True)
class _Object:
    """An annotation: one object of a video.

    Attributes:
        video: Id of the video.
        segmentations: One for each frame: polygons or run lengths; None, or no polygon, where it is not visible.
        expressions: What it was told to be called; none in most exports.
        category: Name of its category.
    """

    video: str
    segmentations: list[Any]
    expressions: tuple[str, ...]
    category: str


@dataclass(frozen=True)
class _Sentence:
    """What is asked about a video, by ids."""

    id: str
    text: str
    video: str
    objects: tuple[str, ...]


def _annotation_file(folder: Path, split: str) -> Path:
    if folder.is_file():
        if split != "all":
            raise DataError(f"{folder} is one file, whose only split is 'all', not {split!r}.")
        return folder
    places = [folder / place.format(split=split) for place in ANNOTATION_FILES]
    for place in places:
        if place.is_file():
            return place
    raise DataError(f"Split {split!r} is in none of {', '.join(str(place) for place in places)}.")


def _videos(content: Any, file: Path, split: str, problems: Problems) -> dict[str, Video | None]:
    """The videos by id; None for those with which something is wrong."""
    root: Path | None = None
    videos: dict[str, Video | None] = {}
    for number, record in enumerate(take(content, "videos", list, str(file))):
        where = f"{file}, video {number}"
        with problems.tolerated():
            id = take_id(record, "id", where)
            if id in videos:
                raise DataError(f"{file} has video {id} twice.")
            videos[id] = None
            size, names = take_size(record, where), take(record, "file_names", list, where)
            if not names or not all(isinstance(name, str) and name for name in names):
                raise DataError(f"{where}: 'file_names' must list the file of each frame.")
            if "length" in record and record["length"] != len(names):
                raise DataError(f"{where}: its 'length' is not that of its 'file_names', which is {len(names)}.")
            if len({PurePosixPath(name).stem for name in names}) < len(names):
                raise DataError(f"{where}: two of its 'file_names' have the same stem; each frame needs its own.")
            root = root or _image_folder(file, split, names[0], where, problems)
            for name in names:
                if not inside(root, name, where, problems).is_file():
                    raise DataError(f"{root / name} is missing.")
            frames = ImageFrames(root, tuple(names))
            videos[id] = Video(id, frames, fitting(frames, 0, size, where))
    return videos


def _image_folder(file: Path, split: str, name: str, where: str, problems: Problems) -> Path:
    places = [file.parent / place.format(split=split) for place in IMAGE_FOLDERS]
    return next((place for place in places if inside(place, name, where, problems).is_file()), places[0])


def _objects(content: Any, file: Path, videos: dict[str, Video | None], problems: Problems) -> dict[str, _Object]:
    """The annotations by id."""
    categories = {}
    for number, record in enumerate(take(content, "categories", list, str(file)) if "categories" in content else ()):
        where = f"{file}, category {number}"
        with problems.tolerated():
            categories[take_id(record, "id", where)] = take(record, "name", str, where)
    objects: dict[str, _Object] = {}
    for number, record in enumerate(take(content, "annotations", list, str(file))):
        where = f"{file}, annotation {number}"
        with problems.tolerated():
            id, video = take_id(record, "id", where), take_id(record, "video_id", where)
            if id in objects:
                raise DataError(f"{file} has annotation {id} twice.")
            if video not in videos:
                raise DataError(f"{where} is about video {video}, which is not there.")
            segmentations, about = take(record, "segmentations", list, where), videos[video]
            if about is not None and len(segmentations) != len(about):
                raise DataError(
                    f"{where} has {len(segmentations)} segmentations, video {video} has {len(about)} frames."
                )
            category = categories.get(take_id(record, "category_id", where), "") if "category_id" in record else ""
            objects[id] = _Object(video, segmentations, _expressions(record, where), category)
    return objects


def _expressions(record: dict[str, Any], where: str) -> tuple[str, ...]:
    """What an annotation says itself: a list, a text, or an attribute as annotation tools write it."""
    attributes = record.get("attributes")
    told = record.get("expressions", record.get("expression"))
    if told is None and isinstance(attributes, dict):
        told = attributes.get("expression")
    told = [] if told in (None, "") else told if isinstance(told, list) else [told]
    if not all(isinstance(text, str) and text for text in told):
        raise DataError(f"{where}: an expression must be text.")
    return tuple(told)


def _listed(
    content: Any, file: Path, videos: dict[str, Video | None], objects: dict[str, _Object], problems: Problems
) -> Iterator[_Sentence]:
    """The sentences of an export that lists them."""
    for number, record in enumerate(take(content, "expressions", list, str(file))):
        where = f"{file}, expression {number}"
        with problems.tolerated():
            id, video = take_id(record, "id", where), take_id(record, "video_id", where)
            text, meant = take(record, "expression", str, where), take_ids(record, "annotation_ids", where)
            if video not in videos:
                raise DataError(f"{where} is about video {video}, which is not there.")
            for object_id in meant:
                if object_id not in objects or objects[object_id].video != video:
                    raise DataError(f"{where} means annotation {object_id}, which video {video} does not have.")
            yield _Sentence(id, text, video, meant)


def _grouped(objects: dict[str, _Object], file: Path, problems: Problems) -> Iterator[_Sentence]:
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


def _sample(sentence: _Sentence, video: Video, meant: dict[str, _Object], file: Path) -> Sample:
    frames = video.frames
    assert isinstance(frames, ImageFrames)
    readers = {}
    for index, name in enumerate(frames.names):
        visible = [thing.segmentations[index] for thing in meant.values() if thing.segmentations[index]]
        where = f"{file}, annotation {', '.join(meant)}, frame {name}"
        readers[index] = partial(_decode, frames, index, visible, video.size, where)
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
