"""Your own data as an export of CVAT 1.1, "for video" or "for images": polygons, and masks drawn with the brush.

The layouts are described at https://docs.cvat.ai/docs/dataset_management/formats/format-xml/ and written by CVAT's
``dataset_manager/formats/cvat.py``. Sentences are no part of them; where they are taken from, and which frames count,
is told in ``docs/data/own-data.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from refervos.data.files import IMAGE_SUFFIXES, Problems, inside
from refervos.data.frames import FileFrames, ImageFrames, VideoDecoder, fitting
from refervos.data.ground_truth import StoredMasks, decode_polygons
from refervos.data.layouts.cvat_frames import (
    Task,
    TaskFrames,
    numbers_in_names,
    pictures_in,
    read_task,
    task_pictures,
    task_video,
    video_file,
    whole,
)
from refervos.data.records import take_id, take_size
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.data.xml_files import read_xml
from refervos.errors import DataError

NAME = "cvat"

FILE = "annotations.xml"
"""What CVAT names the annotations of a task."""

ALL = "all"
"""The only split: CVAT exports a task as a whole."""

MASKS = ("polygon", "mask")
"""Shapes that are masks."""


def read_cvat(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read exports of CVAT tasks, jobs and projects; each task is a video.

    Args:
        folder: An unpacked export, or a folder of several, or an ``annotations.xml``. The frames are in ``images``
            beside it, or in a video file beside it.
        split: ``all``.
        problems: Told what is wrong with single exports, tasks and tracks.

    Returns:
        A sample for each sentence about a video; objects of the same sentence are meant together.

    Raises:
        DataError: When there is no export.
    """
    if split != ALL:
        raise DataError(f"{folder} has no split {split!r}; the only split of a CVAT export is {ALL!r}.")
    files = [folder] if folder.is_file() else sorted([*folder.glob(FILE), *folder.glob(f"*/{FILE}")])
    if not files:
        raise DataError(f"{folder} holds no {FILE}, nor does a folder in it.")
    decoder = VideoDecoder()
    samples: list[Sample] = []
    exports: dict[str, Path] = {}
    for file in files:
        with problems.collect():
            for video in _videos(file, decoder, problems):
                other = exports.setdefault(video.video.id, file)
                if other != file:
                    raise DataError(f"{other} and {file} both hold a video {video.video.id!r}; rename one folder.")
                with problems.collect():
                    samples.extend(_samples(video, problems))
    return Dataset(NAME, split, tuple(samples))


@dataclass(frozen=True, eq=False)
class _Drawn:
    """One object: a track, or what was drawn once.

    Attributes:
        id: As CVAT numbers it.
        label: What kind of thing it is.
        sentences: What it is called where it is visible, by CVAT's number of the frame; empty where nobody says.
        shapes: Its polygon or brush mask where it is visible, likewise.
        hidden: Numbers of the frames from which on it is outside, until it is visible again.
    """

    id: str
    label: str
    sentences: Mapping[int, str]
    shapes: Mapping[int, ElementTree.Element]
    hidden: frozenset[int] = frozenset()

    @property
    def once(self) -> bool:
        """Whether it was drawn in one frame only, which says nothing of the others."""
        return len(self.shapes) == 1

    def known(self, sentence: str, numbers: Iterable[int], drawn_once: frozenset[int]) -> set[int]:
        """In which frames it is known whether the object is visible and called by a sentence.

        CVAT writes a track out for every frame in which it is visible, those between key frames too, and closes it with
        a shape that is outside. A frame that is passed over in between is not annotated, nor is one in which the
        object has another sentence.

        Args:
            sentence: The sentence.
            numbers: Of the frames that are there, by CVAT's count, ascending.
            drawn_once: Frames in which anything was drawn singly, whose drawer will have drawn all there was.
        """
        if self.once:
            return set(drawn_once)
        known, shown = set(), False
        told = iter(sorted({*self.shapes, *self.hidden}))
        upcoming = next(told, None)
        for number in numbers:
            while upcoming is not None and upcoming <= number:
                shown = upcoming in self.shapes
                upcoming = next(told, None)
            if number in self.shapes:
                if self.sentences[number] == sentence:
                    known.add(number)
            elif not shown:
                known.add(number)
        return known


@dataclass(frozen=True, eq=False)
class _Annotated:
    """A video and all that is drawn in it.

    Attributes:
        where: What to call the export in an error.
        video: The video.
        frames: Its frames, by CVAT's numbers.
        sizes: Height and width that the export tells, of all frames or by CVAT's number.
        objects: Everything drawn.
        said: Whether anything in the export has a sentence; otherwise labels are sentences.
    """

    where: str
    video: Video
    frames: TaskFrames
    sizes: Mapping[int, tuple[int, int]]
    objects: Sequence[_Drawn]
    said: bool


def _samples(annotated: _Annotated, problems: Problems) -> Iterator[Sample]:
    """A sample for each sentence about a video."""
    indices, frames = annotated.frames.indices, annotated.frames.frames
    objects = [thing for thing in annotated.objects if thing.shapes]
    for thing in objects:
        for number in thing.shapes:
            if number not in indices:
                place = f"{annotated.where}, track {thing.id} ({thing.label})"
                raise DataError(f"{place} is in frame {number}, which the video does not have.")
    drawn_once = frozenset(number for thing in objects if thing.once for number in thing.shapes)
    together: dict[str, list[_Drawn]] = {}
    for thing in objects:
        for sentence in dict.fromkeys(thing.sentences.values()) if annotated.said else (thing.label,):
            if sentence:
                together.setdefault(sentence, []).append(thing)
    for position, (sentence, meant) in enumerate(together.items()):
        known = set(indices)
        for thing in meant:
            told = thing if annotated.said else replace(thing, sentences=dict.fromkeys(thing.shapes, sentence))
            known &= told.known(sentence, indices, drawn_once)
        if not known:
            problems.report(
                f"{annotated.where}: there is no frame in which it is known of all {len(meant)} tracks of {sentence!r} "
                "whether they are visible; a track is passed over in silence where it has no shape."
            )
            continue
        readers = {}
        for number in sorted(known):
            shapes = [thing.shapes[number] for thing in meant if number in thing.shapes]
            index = indices[number]
            where = f"{annotated.where}, {sentence!r}, frame {frames.names[index]}"
            readers[index] = partial(_draw, shapes, frames, index, annotated.sizes.get(number), where)
        ids = tuple(thing.id for thing in meant)
        yield Sample(annotated.video, str(position), sentence, StoredMasks(readers), has_target=True, object_ids=ids)


def _videos(file: Path, decoder: VideoDecoder, problems: Problems) -> Iterator[_Annotated]:
    """The videos of one export."""
    root = read_xml(file)
    if root.tag != "annotations":
        raise DataError(f"{file} is no export of CVAT: it begins with <{root.tag[:40]}>, not with <annotations>.")
    for element in root:
        if element.tag not in ("version", "meta", "track", "image"):
            raise DataError(f"{file} holds <{element.tag[:40]}>, which neither CVAT for video nor for images has.")
    for_images = root.find("image") is not None
    if for_images and root.find("track") is not None:
        raise DataError(f"{file} holds tracks as well as images; an export is either for video or for images.")
    said = any((element.text or "").strip() for element in root.iterfind(".//attribute[@name='expression']"))
    if for_images:
        yield from _of_images(root, file, decoder, said, problems)
    else:
        yield from _of_tracks(root, file, decoder, said, problems)


# CVAT for video.


def _of_tracks(
    root: ElementTree.Element, file: Path, decoder: VideoDecoder, said: bool, problems: Problems
) -> Iterator[_Annotated]:
    name = file.resolve().parent.name
    elements = root.findall("meta/project/tasks/task")
    told = elements or [*root.findall("meta/task"), *root.findall("meta/job")]
    if len(told) > 1 and not elements:
        raise DataError(f"{file} tells of {len(told)} tasks or jobs; only the export of a project has several.")
    tasks = [read_task(element, root, f"{file}, {element.tag}") for element in told] or [Task(f"{file}, meta")]
    tracks, subsets = _by_task(root, file, tasks, problems)
    if not elements:
        task = tasks[0]
        found = _frames_of_task(task, file.parent, decoder, problems)
        yield _annotated(file, name, task, found, tracks[task.id], said)
        return
    tasks = [replace(task, where=f"{file}, task {task.id}", subset=subsets.get(task.id, task.subset)) for task in tasks]
    numbered = list(_numbered(tasks, tracks, file, problems))
    for one in numbered:
        with problems.collect():
            id = f"{name}-{take_id({'id': one.task.id}, 'id', one.task.where)}"
            found = _frames_in_project(one, numbered, file.parent, decoder, problems)
            yield _annotated(file, id, one.task, found, tracks[one.task.id], said)


def _annotated(file: Path, id: str, task: Task, found: TaskFrames, things: list[_Drawn], said: bool) -> _Annotated:
    size = fitting(found.frames, 0, task.size, task.where)
    sizes = dict.fromkeys(found.indices, size)
    return _Annotated(str(file), Video(id, found.frames, size), found, sizes, things, said)


def _by_task(
    root: ElementTree.Element, file: Path, tasks: Sequence[Task], problems: Problems
) -> tuple[dict[str, list[_Drawn]], dict[str, str]]:
    """The tracks of each task, and the subset that these say the task is in, both by its id."""
    drawn: dict[str, list[_Drawn]] = {task.id: [] for task in tasks}
    if len(drawn) < len(tasks):
        raise DataError(f"{file} tells of a task twice, or of several without an id.")
    owners = sorted({id for element in root.iterfind("track") if (id := element.get("task_id")) is not None})
    if len(owners) > 1 and list(drawn) == [""]:
        raise DataError(f"{file} has tracks of the tasks {', '.join(owners)}, but does not tell of tasks.")
    subsets: dict[str, str] = {}
    seen = set()
    for number, element in enumerate(root.iterfind("track")):
        with problems.collect():
            id = take_id(element.attrib, "id", f"{file}, track {number}")
            where = f"{file}, track {id} ({element.get('label', '')})"
            if id in seen:
                raise DataError(f"{where}: its id is there twice.")
            seen.add(id)
            owner = element.get("task_id")
            if owner is None and len(tasks) > 1:
                raise DataError(f"{where} does not say of which task it is, of which there are {len(tasks)}.")
            if owner is None or list(drawn) == [""]:
                owner = tasks[0].id
            if owner not in drawn:
                raise DataError(f"{where} is of task {owner}, of which nothing is told.")
            if subset := element.get("subset"):
                subsets[owner] = subset
            drawn[owner].append(_track(element, id, where))
    return drawn, subsets


def _track(track: ElementTree.Element, id: str, where: str) -> _Drawn:
    shapes: dict[int, ElementTree.Element] = {}
    told: dict[int, str] = {}
    hidden = set()
    for shape in track:
        _require_mask(shape, where)
        frame = whole(shape.get("frame"), where)
        if frame in shapes or frame in hidden:
            raise DataError(f"{where} is in frame {frame} twice.")
        if shape.get("outside", "0") not in ("0", "1"):
            raise DataError(f"{where}, frame {frame}: 'outside' is {shape.get('outside')!r}; it must be 0 or 1.")
        if shape.get("outside") == "1":
            hidden.add(frame)
        else:
            shapes[frame], told[frame] = shape, _sentence(shape)
    return _Drawn(id, track.get("label", ""), _carried(told), shapes, frozenset(hidden))


def _carried(told: Mapping[int, str]) -> dict[int, str]:
    """Sentences by frame, where a frame that tells none has that of the frame before, or else the first one told."""
    sentence = next((told[frame] for frame in sorted(told) if told[frame]), "")
    carried = {}
    for frame in sorted(told):
        carried[frame] = sentence = told[frame] or sentence
    return carried


def _frames_of_task(task: Task, folder: Path, decoder: VideoDecoder, problems: Problems) -> TaskFrames:
    """The frames of the only task of an export."""
    images = folder / "images"
    if images.is_dir():
        return task_pictures(task, images, pictures_in(images), problems)
    return task_video(task, video_file(folder, task.source), decoder, 0, problems)


@dataclass(frozen=True)
class _Numbered:
    """A task of a project.

    Attributes:
        task: The task.
        shift: What was added to its numbers.
        place: The folder that its pictures are in, maybe with those of others.
    """

    task: Task
    shift: int
    place: Path

    @property
    def raised(self) -> Task:
        """The task as its frames are numbered in the export."""
        return replace(self.task, start=self.task.start + self.shift)


def _numbered(
    tasks: Sequence[Task], tracks: Mapping[str, Sequence[_Drawn]], file: Path, problems: Problems
) -> Iterator[_Numbered]:
    """Find out what was added to the numbers of each task of a project.

    Newer versions of CVAT number the frames of all tasks of a subset on and on; older ones begin anew with each task.
    """
    subsets: dict[str, list[Task]] = {}
    for task in tasks:
        subsets.setdefault(task.subset, []).append(task)
    for subset, together in subsets.items():
        with problems.collect():
            images = file.parent / "images"
            place = inside(images, subset, f"{file}, subset", problems)
            if not subset or not place.is_dir():
                place = images
            pictures = (numbers_in_names(pictures_in(place)) if place.is_dir() else None) or {}
            drawn = [[number for thing in tracks[task.id] for number in thing.shapes] for task in together]
            further = [sum(task.span for task in together[:position]) for position in range(len(together))]
            possible = {
                tuple(raised)
                for raised in (further, [0] * len(together))
                if _numbers_fit(together, raised, drawn, list(pictures) if place != images else [])
            }
            if len(possible) != 1:
                names = ", ".join(task.id for task in together)
                raise DataError(
                    f"{file}: it cannot be told which frames of the tasks {names} its tracks are about; export each "
                    "task alone."
                )
            shifts = possible.pop()
            yield from (_Numbered(task, shift, place) for task, shift in zip(together, shifts, strict=True))


def _numbers_fit(
    tasks: Sequence[Task], shifts: Sequence[int], drawn: Sequence[Sequence[int]], pictures: Sequence[int]
) -> bool:
    """Whether all numbers of shapes and pictures are frames of the tasks whose numbers were so raised."""
    ranges = []
    for task, shift, own in zip(tasks, shifts, drawn, strict=True):
        raised = replace(task, start=task.start + shift).numbers
        if raised is not None and any(number not in raised for number in own):
            return False
        ranges.append(raised)
    return all(any(raised is None or picture in raised for raised in ranges) for picture in pictures)


def _frames_in_project(
    task: _Numbered, tasks: Sequence[_Numbered], folder: Path, decoder: VideoDecoder, problems: Problems
) -> TaskFrames:
    """The frames of one task of a project."""
    if not (folder / "images").is_dir():
        return task_video(
            task.task, video_file(folder, task.task.source, sure=len(tasks) == 1), decoder, task.shift, problems
        )
    beside = [other for other in tasks if other.place == task.place]
    pictures = pictures_in(task.place)
    if len(beside) > 1:
        named, own = numbers_in_names(pictures), task.raised.numbers
        alike = [other for other in beside if other is not task and _overlap(own, other.raised.numbers)]
        if named is None or own is None or alike or any(other.task.mode == "annotation" for other in beside):
            raise DataError(
                f"{task.task.where}: the pictures of {len(beside)} tasks are together in {task.place}, and their names "
                "do not tell whose they are; export each task alone, or the project as 'CVAT for images 1.1'."
            )
        pictures = [picture for number, picture in named.items() if number in own]
    return task_pictures(task.raised, task.place, pictures, problems)


def _overlap(one: range | None, other: range | None) -> bool:
    """Whether two tasks may have a number in common."""
    return one is None or other is None or (one.start < other.stop and other.start < one.stop)


# CVAT for images.


@dataclass(frozen=True, eq=False)
class _Image:
    """An image as an export lists it.

    Attributes:
        where: What to call it in an error.
        number: CVAT's number of the frame.
        name: Its path below ``images``, for a frame of a video without suffix.
        place: In which folder of ``images`` that of a project is, or empty.
        task: Id of its task, or empty.
        size: Height and width.
        shapes: What is drawn in it.
    """

    where: str
    number: int
    name: PurePosixPath
    place: str
    task: str
    size: tuple[int, int]
    shapes: Sequence[ElementTree.Element]


def _of_images(
    root: ElementTree.Element, file: Path, decoder: VideoDecoder, said: bool, problems: Problems
) -> Iterator[_Annotated]:
    """Every folder of pictures of every task is a video."""
    together: dict[tuple[str, str, str], list[_Image]] = {}
    for position, element in enumerate(root.iterfind("image")):
        with problems.collect():
            image = _image(element, f"{file}, image {position}")
            folder = image.name.parent.as_posix()
            together.setdefault((image.place, image.task, "" if folder == "." else folder), []).append(image)
    name = file.resolve().parent.name
    several = len(together) > 1
    for (_, task, folder), images in together.items():
        with problems.collect():
            parts = [part for part in (name, task, *PurePosixPath(folder).parts) if part] if several else [name]
            images.sort(key=lambda image: image.number)
            found = _listed_frames(images, file, decoder, problems)
            size = fitting(found.frames, 0, images[0].size, images[0].where)
            sizes = {image.number: image.size for image in images}
            things = [
                _Drawn(
                    f"{image.number}-{place}",
                    shape.get("label", ""),
                    {image.number: _sentence(shape)},
                    {image.number: shape},
                )
                for image in images
                for place, shape in enumerate(image.shapes)
            ]
            yield _Annotated(str(file), Video("-".join(parts), found.frames, size), found, sizes, things, said)


def _image(element: ElementTree.Element, where: str) -> _Image:
    told = element.get("name") or ""
    where = f"{where} ({told[:200]})"
    number = whole(element.get("id"), where)
    size = take_size({side: whole(element.get(side), where) for side in ("height", "width")}, where)
    shapes = [shape for shape in element if shape.tag != "tag"]  # tags are about whole images
    for shape in shapes:
        _require_mask(shape, where)
    name = PurePosixPath(told)
    if not name.name:
        raise DataError(f"{where} has no name.")
    return _Image(where, number, name, element.get("subset") or "", element.get("task_id") or "", size, shapes)


def _listed_frames(images: Sequence[_Image], file: Path, decoder: VideoDecoder, problems: Problems) -> TaskFrames:
    """The frames of one video, whose pictures the export names."""
    indices = {image.number: index for index, image in enumerate(images)}
    if len(indices) < len(images) or len({image.name.stem for image in images}) < len(images):
        raise DataError(f"{images[0].where}: another image of the same video has the same number or the same stem.")
    folder = file.parent / "images"
    if not folder.is_dir():
        if any(image.name.suffix for image in images):
            folder = file.parent
        else:  # frames of a video
            found = task_video(Task(images[0].where), video_file(file.parent, ""), decoder, 0, problems)
            missing = [image for image in images if image.number not in found.indices]
            if missing:
                raise DataError(f"{missing[0].where} is frame {missing[0].number}, which the video does not have.")
            return TaskFrames(found.frames, {number: found.indices[number] for number in indices})
    if images[0].place and (folder / images[0].place).is_dir():
        folder = inside(folder, images[0].place, images[0].where, problems)
    files = tuple(_picture(image, folder, problems) for image in images)
    return TaskFrames(ImageFrames(folder, files), indices)


def _picture(image: _Image, folder: Path, problems: Problems) -> str:
    """The file of an image, below a folder."""
    suffixes = ("",) if image.name.suffix else IMAGE_SUFFIXES
    for suffix in (*suffixes, *(suffix.upper() for suffix in suffixes if suffix)):
        name = f"{image.name}{suffix}"
        if inside(folder, name, image.where, problems).is_file():
            return name
    raise DataError(f"{folder / image.name} is missing, the picture of {image.where}.")


# Shapes.


def _require_mask(shape: ElementTree.Element, where: str) -> None:
    if shape.tag not in MASKS:
        raise DataError(
            f"{where} is drawn as a {shape.tag}, which is no mask; draw it with polygons or with the brush."
        )


def _sentence(shape: ElementTree.Element) -> str:
    return " ".join(
        text.strip() for element in shape.iterfind("attribute[@name='expression']") if (text := element.text)
    )


def _draw(
    shapes: Sequence[ElementTree.Element], frames: FileFrames, index: int, told: tuple[int, int] | None, where: str
) -> Mask:
    """The union of polygons and brush masks."""
    size = fitting(frames, index, told, where)
    union = np.zeros(size, dtype=np.bool_)
    for shape in shapes:
        if shape.tag == "polygon":
            union |= decode_polygons([_coordinates(shape.get("points", ""), where)], size, where)
        else:
            _paint(union, shape, where)
    return union


def _coordinates(points: str, where: str) -> list[float]:
    """``x1,y1;x2,y2`` as a list."""
    try:
        return [float(value) for point in points.split(";") for value in point.split(",", 1)]
    except ValueError:
        raise DataError(f"{where}: the points of a polygon must be x1,y1;x2,y2;... and not {points[:40]!r}.") from None


def _paint(union: Mask, shape: ElementTree.Element, where: str) -> None:
    """Add a brush mask: runs of off and on along the rows of a box."""
    left, top, width, height = (whole(shape.get(name), where) for name in ("left", "top", "width", "height"))
    runs = [whole(run, where) for run in shape.get("rle", "").split(",")]
    if top + height > union.shape[0] or left + width > union.shape[1]:
        raise DataError(f"{where}: a mask lies outside the frame of {union.shape[1]}x{union.shape[0]}.")
    if sum(runs) != width * height:
        raise DataError(f"{where}: the run lengths of a mask do not add up to its {width}x{height} pixels.")
    painted = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    union[top : top + height, left : left + width] |= painted
