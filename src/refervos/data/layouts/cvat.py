"""Your own data as a CVAT 1.1 export, "for video" or "for images": polygons and brush masks.

The layouts are described at https://docs.cvat.ai/docs/dataset_management/formats/format-xml/ and written by CVAT's
``dataset_manager/formats/cvat.py``. They do not include expressions; ``docs/data/own-data.md`` describes the sources of
expressions and which frames count as annotated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

import numpy as np

from refervos.data.files import IMAGE_SUFFIXES, Problems, require_inside
from refervos.data.frames import FileFrames, ImageFrames, VideoDecoder, require_frame_size
from refervos.data.ground_truth import StoredMasks, decode_polygons
from refervos.data.layouts.cvat_frames import (
    Task,
    TaskFrames,
    image_frames,
    images_by_number,
    list_images,
    read_task,
    video_file,
    video_frames,
    whole_number,
)
from refervos.data.records import require_id, require_size
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.data.xml_files import read_xml
from refervos.errors import DataError

NAME = "cvat"

FILE = "annotations.xml"
"""CVAT's file name for the annotations of a task."""

ALL = "all"
"""The only split: CVAT exports a task as a whole."""

MASKS = ("polygon", "mask")
"""Shapes that are read as masks."""


def read_cvat(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read exports of CVAT tasks, jobs and projects; each task is a video.

    Args:
        folder: An unpacked export, a folder of several exports, or an ``annotations.xml``. The frames are in ``images``
            or in a video file beside it.
        split: ``all``.
        problems: Collects problems with single exports, tasks and tracks.

    Returns:
        A sample for each expression about a video; its target is the union of all objects with that expression.

    Raises:
        DataError: When there is no export.
    """
    if split != ALL:
        raise DataError(f"{folder} has no split {split!r}; the only split of a CVAT export is {ALL!r}.")
    files = [folder] if folder.is_file() else sorted([*folder.glob(FILE), *folder.glob(f"*/{FILE}")])
    if not files:
        raise DataError(f"{folder} contains no {FILE}, nor does a folder in it.")
    decoder = VideoDecoder()
    samples: list[Sample] = []
    exports: dict[str, Path] = {}
    for file in files:
        with problems.collect():
            for video in _videos(file, decoder, problems):
                other = exports.setdefault(video.video.id, file)
                if other != file:
                    raise DataError(f"{other} and {file} both contain a video {video.video.id!r}; rename one folder.")
                with problems.collect():
                    samples.extend(_samples(video, problems))
    return Dataset(NAME, split, tuple(samples))


@dataclass(frozen=True, eq=False)
class _Object:
    """An object: a track, or a single shape.

    Attributes:
        id: CVAT's id.
        label: Its label.
        expressions: Its expression in each frame in which it is visible, by CVAT's frame number; may be empty text.
        shapes: Its polygon or brush mask in these frames, likewise.
        hidden: Numbers of the frames from which it is outside, until it is visible again.
    """

    id: str
    label: str
    expressions: Mapping[int, str]
    shapes: Mapping[int, ElementTree.Element]
    hidden: frozenset[int] = frozenset()

    @property
    def single(self) -> bool:
        """True for a shape in only one frame, which gives no information about other frames."""
        return len(self.shapes) == 1

    def annotated(self, expression: str, numbers: Iterable[int], single_frames: frozenset[int]) -> set[int]:
        """Return the frames in which the object's mask for an expression is known.

        CVAT writes a shape of a track for every frame in which it is visible, also between key frames, and ends the
        track with a shape that is outside. A frame skipped in between is not annotated, nor is one in which the object
        has another expression.

        Args:
            expression: The expression.
            numbers: CVAT's numbers of all frames, ascending.
            single_frames: Frames with single shapes, in which the annotator is assumed to have drawn every object.
        """
        if self.single:
            return set(single_frames)
        known, visible = set(), False
        changes = iter(sorted({*self.shapes, *self.hidden}))
        upcoming = next(changes, None)
        for number in numbers:
            while upcoming is not None and upcoming <= number:
                visible = upcoming in self.shapes
                upcoming = next(changes, None)
            if number in self.shapes:
                if self.expressions[number] == expression:
                    known.add(number)
            elif not visible:
                known.add(number)
        return known


@dataclass(frozen=True, eq=False)
class _AnnotatedVideo:
    """A video with all its objects.

    Attributes:
        where: Name of the export in error messages.
        video: The video.
        frames: Its frames, by CVAT's numbers.
        sizes: Height and width in the export, by CVAT's frame number.
        objects: All objects.
        any_expression: Whether anything in the export has an expression; otherwise labels are the expressions.
    """

    where: str
    video: Video
    frames: TaskFrames
    sizes: Mapping[int, tuple[int, int]]
    objects: Sequence[_Object]
    any_expression: bool


def _samples(annotated: _AnnotatedVideo, problems: Problems) -> Iterator[Sample]:
    """Yield a sample for each expression about a video."""
    indices, frames = annotated.frames.indices, annotated.frames.frames
    objects = [obj for obj in annotated.objects if obj.shapes]
    for obj in objects:
        for number in obj.shapes:
            if number not in indices:
                where = f"{annotated.where}, track {obj.id} ({obj.label})"
                raise DataError(f"{where} is in frame {number}, which the video does not have.")
    single_frames = frozenset(number for obj in objects if obj.single for number in obj.shapes)
    by_expression: dict[str, list[_Object]] = {}
    for obj in objects:
        if not annotated.any_expression:
            obj = replace(obj, expressions=dict.fromkeys(obj.shapes, obj.label))
        for expression in dict.fromkeys(obj.expressions.values()):
            if expression:
                by_expression.setdefault(expression, []).append(obj)
    for position, (expression, targets) in enumerate(by_expression.items()):
        known = set(indices)
        for target in targets:
            known &= target.annotated(expression, indices, single_frames)
        if not known:
            problems.report(
                f"{annotated.where}: no frame is annotated for all {len(targets)} tracks of {expression!r}; a frame "
                "without a shape is annotated only before the track starts and while it is outside."
            )
            continue
        readers = {}
        for number in sorted(known):
            shapes = [target.shapes[number] for target in targets if number in target.shapes]
            index = indices[number]
            where = f"{annotated.where}, {expression!r}, frame {frames.names[index]}"
            readers[index] = partial(_draw, shapes, frames, index, annotated.sizes.get(number), where)
        ids = tuple(target.id for target in targets)
        yield Sample(annotated.video, str(position), expression, StoredMasks(readers), has_target=True, object_ids=ids)


def _videos(file: Path, decoder: VideoDecoder, problems: Problems) -> Iterator[_AnnotatedVideo]:
    """Read the videos of one export."""
    root = read_xml(file)
    if root.tag != "annotations":
        raise DataError(f"{file} is not a CVAT export: its root is <{root.tag[:40]}>, not <annotations>.")
    for element in root:
        if element.tag not in ("version", "meta", "track", "image"):
            raise DataError(f"{file} contains <{element.tag[:40]}>, which no CVAT export for video or for images has.")
    for_images = root.find("image") is not None
    if for_images and root.find("track") is not None:
        raise DataError(f"{file} contains both tracks and images; an export is either for video or for images.")
    any_expression = any((element.text or "").strip() for element in root.iterfind(".//attribute[@name='expression']"))
    if for_images:
        yield from _videos_of_images(root, file, decoder, any_expression, problems)
    else:
        yield from _videos_of_tracks(root, file, decoder, any_expression, problems)


# CVAT for video.


def _videos_of_tracks(
    root: ElementTree.Element, file: Path, decoder: VideoDecoder, any_expression: bool, problems: Problems
) -> Iterator[_AnnotatedVideo]:
    name = file.resolve().parent.name
    elements = root.findall("meta/project/tasks/task")
    listed = elements or [*root.findall("meta/task"), *root.findall("meta/job")]
    if len(listed) > 1 and not elements:
        raise DataError(f"{file} lists {len(listed)} tasks or jobs; only a project export may have several.")
    tasks = [read_task(element, root, f"{file}, {element.tag}") for element in listed] or [Task(f"{file}, meta")]
    tracks, subsets = _tracks_by_task(root, file, tasks, problems)
    if not elements:
        task = tasks[0]
        frames = _frames_of_task(task, file.parent, decoder, problems)
        yield _annotated_video(file, name, task, frames, tracks[task.id], any_expression)
        return
    tasks = [replace(task, where=f"{file}, task {task.id}", subset=subsets.get(task.id, task.subset)) for task in tasks]
    shifted = list(_shifted_tasks(tasks, tracks, file, problems))
    for one in shifted:
        with problems.collect():
            id = f"{name}-{require_id({'id': one.task.id}, 'id', one.task.where)}"
            frames = _frames_in_project(one, shifted, file.parent, decoder, problems)
            yield _annotated_video(file, id, one.task, frames, tracks[one.task.id], any_expression)


def _annotated_video(
    file: Path, id: str, task: Task, frames: TaskFrames, objects: list[_Object], any_expression: bool
) -> _AnnotatedVideo:
    size = require_frame_size(frames.frames, 0, task.size, task.where)
    sizes = dict.fromkeys(frames.indices, size)
    return _AnnotatedVideo(str(file), Video(id, frames.frames, size), frames, sizes, objects, any_expression)


def _tracks_by_task(
    root: ElementTree.Element, file: Path, tasks: Sequence[Task], problems: Problems
) -> tuple[dict[str, list[_Object]], dict[str, str]]:
    """Read the tracks of each task, and the task's subset as stated by its tracks, both by task id."""
    tracks: dict[str, list[_Object]] = {task.id: [] for task in tasks}
    if len(tracks) < len(tasks):
        raise DataError(f"{file} lists a task twice, or several tasks without an id.")
    owners = sorted({id for element in root.iterfind("track") if (id := element.get("task_id")) is not None})
    if len(owners) > 1 and list(tracks) == [""]:
        raise DataError(f"{file} has tracks of the tasks {', '.join(owners)}, but lists no tasks.")
    subsets: dict[str, str] = {}
    seen = set()
    for number, element in enumerate(root.iterfind("track")):
        with problems.collect():
            id = require_id(element.attrib, "id", f"{file}, track {number}")
            where = f"{file}, track {id} ({element.get('label', '')})"
            if id in seen:
                raise DataError(f"{where}: its id occurs twice.")
            seen.add(id)
            owner = element.get("task_id")
            if owner is None and len(tasks) > 1:
                raise DataError(f"{where} has no task_id, which is required with {len(tasks)} tasks.")
            if owner is None or list(tracks) == [""]:
                owner = tasks[0].id
            if owner not in tracks:
                raise DataError(f"{where} belongs to task {owner}, which is not listed.")
            if subset := element.get("subset"):
                subsets[owner] = subset
            tracks[owner].append(_track(element, id, where))
    return tracks, subsets


def _track(track: ElementTree.Element, id: str, where: str) -> _Object:
    shapes: dict[int, ElementTree.Element] = {}
    expressions: dict[int, str] = {}
    hidden = set()
    for shape in track:
        _require_mask(shape, where)
        frame = whole_number(shape.get("frame"), where)
        if frame in shapes or frame in hidden:
            raise DataError(f"{where} has frame {frame} twice.")
        if shape.get("outside", "0") not in ("0", "1"):
            raise DataError(f"{where}, frame {frame}: 'outside' is {shape.get('outside')!r}; it must be 0 or 1.")
        if shape.get("outside") == "1":
            hidden.add(frame)
        else:
            shapes[frame], expressions[frame] = shape, _expression(shape)
    return _Object(id, track.get("label", ""), _filled_in(expressions), shapes, frozenset(hidden))


def _filled_in(expressions: Mapping[int, str]) -> dict[int, str]:
    """Fill in missing expressions by frame, from the frame before or else from the first expression."""
    expression = next((expressions[frame] for frame in sorted(expressions) if expressions[frame]), "")
    filled = {}
    for frame in sorted(expressions):
        filled[frame] = expression = expressions[frame] or expression
    return filled


def _frames_of_task(task: Task, folder: Path, decoder: VideoDecoder, problems: Problems) -> TaskFrames:
    """Find the frames of the only task of an export."""
    images = folder / "images"
    if images.is_dir():
        return image_frames(task, images, list_images(images), problems)
    return video_frames(task, video_file(folder, task.source), decoder, 0, problems)


@dataclass(frozen=True)
class _ShiftedTask:
    """A task of a project with the offset of its frame numbers.

    Attributes:
        task: The task.
        shift: Offset added to its frame numbers in the export.
        folder: Folder of its images, perhaps shared with other tasks.
    """

    task: Task
    shift: int
    folder: Path

    @property
    def shifted(self) -> Task:
        """The task with its frame numbers in the export."""
        return replace(self.task, start=self.task.start + self.shift)


def _shifted_tasks(
    tasks: Sequence[Task], tracks: Mapping[str, Sequence[_Object]], file: Path, problems: Problems
) -> Iterator[_ShiftedTask]:
    """Infer the offset of the frame numbers of each task of a project.

    Newer versions of CVAT number the frames of a subset's tasks consecutively; older ones restart with each task.
    """
    subsets: dict[str, list[Task]] = {}
    for task in tasks:
        subsets.setdefault(task.subset, []).append(task)
    for subset, members in subsets.items():
        with problems.collect():
            images = file.parent / "images"
            folder = require_inside(images, subset, f"{file}, subset", problems)
            if not subset or not folder.is_dir():
                folder = images
            image_numbers = (images_by_number(list_images(folder)) if folder.is_dir() else None) or {}
            shape_numbers = [[number for obj in tracks[task.id] for number in obj.shapes] for task in members]
            consecutive = [sum(task.span for task in members[:position]) for position in range(len(members))]
            possible = {
                tuple(shifts)
                for shifts in (consecutive, [0] * len(members))
                if _numbers_fit(members, shifts, shape_numbers, list(image_numbers) if folder != images else [])
            }
            if len(possible) != 1:
                names = ", ".join(task.id for task in members)
                raise DataError(
                    f"{file}: the frame numbers of the tracks of tasks {names} are ambiguous; export each task "
                    "separately."
                )
            shifts = possible.pop()
            yield from (_ShiftedTask(task, shift, folder) for task, shift in zip(members, shifts, strict=True))


def _numbers_fit(
    tasks: Sequence[Task], shifts: Sequence[int], shape_numbers: Sequence[Sequence[int]], image_numbers: Sequence[int]
) -> bool:
    """Return whether all numbers of shapes and images are frame numbers of the tasks shifted by these offsets."""
    ranges = []
    for task, shift, own in zip(tasks, shifts, shape_numbers, strict=True):
        numbers = replace(task, start=task.start + shift).numbers
        if numbers is not None and any(number not in numbers for number in own):
            return False
        ranges.append(numbers)
    return all(any(numbers is None or image in numbers for numbers in ranges) for image in image_numbers)


def _frames_in_project(
    task: _ShiftedTask, tasks: Sequence[_ShiftedTask], folder: Path, decoder: VideoDecoder, problems: Problems
) -> TaskFrames:
    """Find the frames of one task of a project."""
    if not (folder / "images").is_dir():
        return video_frames(
            task.task, video_file(folder, task.task.source, sure=len(tasks) == 1), decoder, task.shift, problems
        )
    sharing = [other for other in tasks if other.folder == task.folder]
    images = list_images(task.folder)
    if len(sharing) > 1:
        numbered, own = images_by_number(images), task.shifted.numbers
        overlapping = [other for other in sharing if other is not task and _overlap(own, other.shifted.numbers)]
        if numbered is None or own is None or overlapping or any(other.task.mode == "annotation" for other in sharing):
            raise DataError(
                f"{task.task.where}: {task.folder} contains the images of {len(sharing)} tasks, and their names do not "
                "identify the task; export each task separately, or the project as 'CVAT for images 1.1'."
            )
        images = [image for number, image in numbered.items() if number in own]
    return image_frames(task.shifted, task.folder, images, problems)


def _overlap(one: range | None, other: range | None) -> bool:
    """Return whether two tasks may have a frame number in common."""
    return one is None or other is None or (one.start < other.stop and other.start < one.stop)


# CVAT for images.


@dataclass(frozen=True, eq=False)
class _Image:
    """An image listed in an export.

    Attributes:
        where: Name of the image in error messages.
        number: CVAT's frame number.
        name: Its path below ``images``, without suffix for a video frame.
        subset: Subset of a project, a folder of ``images``, or empty.
        task: Id of its task, or empty.
        size: Height and width.
        shapes: Its polygons and brush masks.
    """

    where: str
    number: int
    name: PurePosixPath
    subset: str
    task: str
    size: tuple[int, int]
    shapes: Sequence[ElementTree.Element]


def _videos_of_images(
    root: ElementTree.Element, file: Path, decoder: VideoDecoder, any_expression: bool, problems: Problems
) -> Iterator[_AnnotatedVideo]:
    """Read each folder of images of each task as a video."""
    groups: dict[tuple[str, str, str], list[_Image]] = {}
    for position, element in enumerate(root.iterfind("image")):
        with problems.collect():
            image = _image(element, f"{file}, image {position}")
            folder = image.name.parent.as_posix()
            groups.setdefault((image.subset, image.task, "" if folder == "." else folder), []).append(image)
    name = file.resolve().parent.name
    several = len(groups) > 1
    for (_, task, folder), images in groups.items():
        with problems.collect():
            parts = [part for part in (name, task, *PurePosixPath(folder).parts) if part] if several else [name]
            images.sort(key=lambda image: image.number)
            frames = _listed_frames(images, file, decoder, problems)
            size = require_frame_size(frames.frames, 0, images[0].size, images[0].where)
            sizes = {image.number: image.size for image in images}
            objects = [
                _Object(
                    f"{image.number}-{position}",
                    shape.get("label", ""),
                    {image.number: _expression(shape)},
                    {image.number: shape},
                )
                for image in images
                for position, shape in enumerate(image.shapes)
            ]
            video = Video("-".join(parts), frames.frames, size)
            yield _AnnotatedVideo(str(file), video, frames, sizes, objects, any_expression)


def _image(element: ElementTree.Element, where: str) -> _Image:
    path = element.get("name") or ""
    where = f"{where} ({path[:200]})"
    number = whole_number(element.get("id"), where)
    size = require_size({side: whole_number(element.get(side), where) for side in ("height", "width")}, where)
    shapes = [shape for shape in element if shape.tag != "tag"]  # tags describe whole images
    for shape in shapes:
        _require_mask(shape, where)
    name = PurePosixPath(path)
    if not name.name:
        raise DataError(f"{where} has no name.")
    return _Image(where, number, name, element.get("subset") or "", element.get("task_id") or "", size, shapes)


def _listed_frames(images: Sequence[_Image], file: Path, decoder: VideoDecoder, problems: Problems) -> TaskFrames:
    """Find the frames of one video whose images the export lists."""
    indices = {image.number: index for index, image in enumerate(images)}
    if len(indices) < len(images) or len({image.name.stem for image in images}) < len(images):
        raise DataError(f"{images[0].where}: another image of its video has the same number or the same stem.")
    folder = file.parent / "images"
    if not folder.is_dir():
        if any(image.name.suffix for image in images):
            folder = file.parent
        else:  # frames of a video
            frames = video_frames(Task(images[0].where), video_file(file.parent, ""), decoder, 0, problems)
            missing = [image for image in images if image.number not in frames.indices]
            if missing:
                raise DataError(f"{missing[0].where} is frame {missing[0].number}, which the video does not have.")
            return TaskFrames(frames.frames, {number: frames.indices[number] for number in indices})
    if images[0].subset and (folder / images[0].subset).is_dir():
        folder = require_inside(folder, images[0].subset, images[0].where, problems)
    files = tuple(_image_file(image, folder, problems) for image in images)
    return TaskFrames(ImageFrames(folder, files), indices)


def _image_file(image: _Image, folder: Path, problems: Problems) -> str:
    """Find the file of an image, relative to a folder."""
    suffixes = ("",) if image.name.suffix else IMAGE_SUFFIXES
    for suffix in (*suffixes, *(suffix.upper() for suffix in suffixes if suffix)):
        name = f"{image.name}{suffix}"
        if require_inside(folder, name, image.where, problems).is_file():
            return name
    raise DataError(f"{folder / image.name}, listed by {image.where}, is missing.")


# Shapes.


def _require_mask(shape: ElementTree.Element, where: str) -> None:
    if shape.tag not in MASKS:
        raise DataError(f"{where} has a {shape.tag}, which is not a mask; draw polygons or brush masks.")


def _expression(shape: ElementTree.Element) -> str:
    return " ".join(
        text.strip() for element in shape.iterfind("attribute[@name='expression']") if (text := element.text)
    )


def _draw(
    shapes: Sequence[ElementTree.Element], frames: FileFrames, index: int, stated: tuple[int, int] | None, where: str
) -> Mask:
    """Draw the union of polygons and brush masks."""
    size = require_frame_size(frames, index, stated, where)
    union = np.zeros(size, dtype=np.bool_)
    for shape in shapes:
        if shape.tag == "polygon":
            union |= decode_polygons([_coordinates(shape.get("points", ""), where)], size, where)
        else:
            _paint(union, shape, where)
    return union


def _coordinates(points: str, where: str) -> list[float]:
    """Parse ``x1,y1;x2,y2;...`` to a flat list."""
    try:
        return [float(value) for point in points.split(";") for value in point.split(",", 1)]
    except ValueError:
        raise DataError(f"{where}: the points of a polygon must be x1,y1;x2,y2;..., not {points[:40]!r}.") from None


def _paint(union: Mask, shape: ElementTree.Element, where: str) -> None:
    """Add a brush mask, stored as alternating runs of 0 and 1 along the rows of a box."""
    left, top, width, height = (whole_number(shape.get(name), where) for name in ("left", "top", "width", "height"))
    runs = [whole_number(run, where) for run in shape.get("rle", "").split(",")]
    if top + height > union.shape[0] or left + width > union.shape[1]:
        raise DataError(f"{where}: a mask extends outside the frame of {union.shape[1]}x{union.shape[0]}.")
    if sum(runs) != width * height:
        raise DataError(f"{where}: the run lengths of a mask do not add up to its {width}x{height} pixels.")
    painted = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    union[top : top + height, left : left + width] |= painted
