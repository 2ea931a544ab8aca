"""Your own data as a "CVAT for video 1.1" export: tracks of polygons, and masks drawn with the brush.

The layout is described at https://docs.cvat.ai/docs/dataset_management/formats/format-xml/ and written by CVAT's
``dataset_manager/formats/cvat.py``. Sentences are no part of it; where they are taken from is told in
``docs/data/own-data.md``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from refervos.data.files import Problems
from refervos.data.frames import FileFrames, ImageFrames, VideoDecoder, VideoFileFrames, image_files
from refervos.data.records import take_id, take_size
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.data.truths import StoredMasks, decode_polygons
from refervos.errors import DataError

NAME = "cvat"

FILE = "annotations.xml"
"""What CVAT names the annotations of a task."""

ALL = "all"
"""The only split: CVAT exports a task as a whole."""

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi")


def read_cvat(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read exports of CVAT tasks, one for each video.

    Args:
        folder: An unpacked export, or a folder of several, or an ``annotations.xml``. The frames are in ``images``
            beside it, or in one video file beside it.
        split: ``all``.
        problems: Told what is wrong with single exports and tracks.

    Returns:
        A sample for each sentence about a video; tracks of the same sentence are meant together.

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
    for file in files:
        with problems.tolerated():
            samples.extend(_task(file, decoder, problems))
    return Dataset(NAME, split, tuple(samples))


@dataclass(frozen=True)
class _Track:
    """One object, or a single mask of one.

    Attributes:
        id: As CVAT numbers it.
        label: What kind of thing it is.
        expression: The sentence about it, or empty.
        shapes: Where it is visible: its polygon or brush mask by the index of the frame.
    """

    id: str
    label: str
    expression: str
    shapes: Mapping[int, ElementTree.Element]


def _task(file: Path, decoder: VideoDecoder, problems: Problems) -> Iterator[Sample]:
    """The samples of one export."""
    root = read_xml(file)
    frames = _frames(file.parent, decoder)
    size = _size(root, frames, file)
    video = Video(file.resolve().parent.name, frames, size)
    indices = _indices(root, frames, file)
    tracks = list(_tracks(root, indices, file, problems))
    said = any(track.expression for track in tracks)
    together: dict[str, list[_Track]] = {}
    for track in tracks:
        if sentence := track.expression if said else track.label:
            together.setdefault(sentence, []).append(track)
    drawn_singly = sorted({index for track in tracks if len(track.shapes) == 1 for index in track.shapes})
    for number, (sentence, meant) in enumerate(together.items()):
        # CVAT writes a track out for every frame in which it is visible, those between key frames too, so all frames
        # are known. Of what is drawn frame by frame, only the frames are known in which somebody has drawn.
        tracked = any(len(track.shapes) > 1 for track in meant)
        readers = {}
        for index in indices.values() if tracked else drawn_singly:
            shapes = [track.shapes[index] for track in meant if index in track.shapes]
            readers[index] = partial(_draw, shapes, size, f"{file}, {sentence!r}, frame {frames.names[index]}")
        ids = tuple(track.id for track in meant)
        yield Sample(video, str(number), sentence, StoredMasks(readers), has_target=True, object_ids=ids)


def _frames(folder: Path, decoder: VideoDecoder) -> FileFrames:
    images = folder / "images"
    if images.is_dir():
        return ImageFrames(images, image_files(images))
    videos = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in VIDEO_SUFFIXES]
    if len(videos) != 1:
        raise DataError(f"{folder} must hold the frames: a folder 'images', or one video file; it has {len(videos)}.")
    return VideoFileFrames(videos[0], decoder)


def _size(root: ElementTree.Element, frames: FileFrames, file: Path) -> tuple[int, int]:
    """Height and width; CVAT tells them of videos only, not of tasks made of images."""
    told = root.find("meta//original_size")
    if told is None:
        return frames.size
    where = f"{file}, original_size"
    return take_size({name: _whole(told.findtext(name), where) for name in ("height", "width")}, where)


def _indices(root: ElementTree.Element, frames: FileFrames, file: Path) -> dict[int, int]:
    """Index of each frame of the task by CVAT's number: a task may start late in a video, and pass over frames."""
    where, count = f"{file}, meta", len(frames.names)
    start = _whole(root.findtext("meta/*/start_frame", "0"), where)
    stop = _whole(root.findtext("meta/*/stop_frame", str(count - 1)), where)
    stepped = re.search(r"step\s*=\s*([1-9]\d*)", root.findtext("meta/*/frame_filter", ""))
    step = int(stepped[1]) if stepped else 1
    if isinstance(frames, VideoFileFrames):  # the whole video; an export's images are the task's frames alone
        return {number: number for number in range(start, min(stop + 1, count), step)}
    return {start + step * index: index for index in range(count)}


def _tracks(root: ElementTree.Element, indices: Mapping[int, int], file: Path, problems: Problems) -> Iterator[_Track]:
    seen = set()
    for number, element in enumerate(root.iterfind("track")):
        with problems.tolerated():
            id = take_id(element.attrib, "id", f"{file}, track {number}")
            where = f"{file}, track {id} ({element.get('label', '')})"
            if id in seen:
                raise DataError(f"{where}: its id is there twice.")
            seen.add(id)
            told = (item.text for item in element.iterfind("*/attribute[@name='expression']"))
            expression = next((text.strip() for text in told if text and text.strip()), "")
            yield _Track(id, element.get("label", ""), expression, dict(_visible(element, indices, where)))


def _visible(
    track: ElementTree.Element, indices: Mapping[int, int], where: str
) -> Iterator[tuple[int, ElementTree.Element]]:
    seen = set()
    for shape in track:
        if shape.tag not in ("polygon", "mask"):
            raise DataError(
                f"{where} is drawn as a {shape.tag}, which is no mask; draw it with polygons or with the brush."
            )
        frame = _whole(shape.get("frame"), where)
        if frame in seen:
            raise DataError(f"{where} is in frame {frame} twice.")
        seen.add(frame)
        if shape.get("outside") == "1":
            continue
        if frame not in indices:
            raise DataError(f"{where} is in frame {frame}, which the video does not have.")
        yield indices[frame], shape


def _draw(shapes: Sequence[ElementTree.Element], size: tuple[int, int], where: str) -> Mask:
    """The union of polygons and brush masks."""
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
    left, top, width, height = (_whole(shape.get(name), where) for name in ("left", "top", "width", "height"))
    runs = [_whole(run, where) for run in shape.get("rle", "").split(",")]
    if top + height > union.shape[0] or left + width > union.shape[1]:
        raise DataError(f"{where}: a mask lies outside the frame of {union.shape[1]}x{union.shape[0]}.")
    if sum(runs) != width * height:
        raise DataError(f"{where}: the run lengths of a mask do not add up to its {width}x{height} pixels.")
    painted = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    union[top : top + height, left : left + width] |= painted


def _whole(text: str | None, where: str) -> int:
    if text is None or not text.strip().isdecimal() or len(text) > 12:
        raise DataError(f"{where}: {text!r} should be a whole number.")
    return int(text)


def read_xml(path: Path) -> ElementTree.Element:
    """Read an XML file that defines no entities of its own, with which a small file could fill all memory.

    Args:
        path: The file.

    Returns:
        Its root.

    Raises:
        DataError: When it is missing or damaged, or has a document type declaration, the place of such entities.
    """
    try:
        return ElementTree.fromstring(path.read_bytes(), ElementTree.XMLParser(target=_PlainBuilder()))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except _DocumentTypeError:
        raise DataError(f"{path} was not read: it declares a document type, which no export of CVAT does.") from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path} is no valid XML: {error}.") from error


class _DocumentTypeError(Exception):
    """An XML file declares a document type."""


class _PlainBuilder(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> Any:
        raise _DocumentTypeError
