"""VidSTG: expressions and questions about an object in a moment of a video, with its box in each frame.

Layout (https://github.com/Guaranteer/VidSTG-Dataset; videos and boxes of VidOR,
https://xdshang.github.io/docs/vidor.html; folder names of VideoGLaMM's and TubeDETR's loaders)::

    vidstg_annotations/<split>_annotations.json                  also annotations/
    vidor_annotations/training/0054/2463204137.json              also annotation/; validation/ for test
    video/0054/2463204137.mp4                                    also videos/

An annotation of VidSTG has a moment (``temporal_gt``, which ends before ``end_fid``) of a video (``vid``), and
``captions`` (declarative) and ``questions`` (interrogative), each with a ``target_id``, a track in VidOR's file of the
video. Train and val have VidOR's training videos, test has its validation videos.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from refervos.data.boxes import Box, BoxGroundTruth, SampledFrames, clip_box, require_numbers, sample_moment
from refervos.data.files import Problems, list_folder, read_json
from refervos.data.frames import VideoDecoder
from refervos.data.records import require_field, require_id, require_size
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import DataError

NAME = "vidstg"

DECLARATIVE, INTERROGATIVE = "declarative", "interrogative"
"""Kinds of expressions."""

KINDS = {"questions": INTERROGATIVE, "captions": DECLARATIVE}
"""Kind of the expressions in each field, in the order of the published evaluation."""

VIDOR_SPLITS = {"train": "training", "val": "training", "test": "validation"}

ANNOTATION_FOLDERS = ("vidstg_annotations", "annotations")
BOX_FOLDERS = ("vidor_annotations", "annotation")
VIDEO_FOLDERS = ("video", "videos")
"""Possible folders of VidSTG's annotations, VidOR's annotations and the videos; the first that exists is used."""


def read_vidstg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of VidSTG.

    Args:
        folder: Folder of the annotations and the videos.
        split: ``train``, ``val`` or ``test``.
        problems: Collects problems with single annotations.

    Returns:
        A sample for each expression about its moment, at one frame per second and at most 40 frames, as in the
        published evaluation of spatial grounding. The id of a video is VidOR's with the moment: ``2463204137_13_45``.

    Raises:
        DataError: When a folder or the file of the split is missing or damaged.
    """
    file = first_existing_folder(folder, ANNOTATION_FOLDERS) / f"{split}_annotations.json"
    content = read_json(file)
    if not isinstance(content, list):
        raise DataError(f"{file} must be a list of annotations.")
    boxes = first_existing_folder(folder, BOX_FOLDERS) / VIDOR_SPLITS[split]
    box_files = _box_files(boxes)
    root, decoder = first_existing_folder(folder, VIDEO_FOLDERS), VideoDecoder()
    videos: dict[str, Video] = {}
    samples: dict[str, list[Sample]] = {}
    for number, record in enumerate(content):
        where = f"{file}, annotation {number}"
        with problems.collect():
            vid = require_id(record, "vid", where)
            moment, size = require_field(record, "temporal_gt", dict, where), require_size(record, where)
            begin, end = (
                require_field(moment, name, int, f"{where}, 'temporal_gt'") for name in ("begin_fid", "end_fid")
            )
            (rate,) = require_numbers([record.get("fps")], f"{where}: 'fps'")
            numbers = sample_moment(begin, end, rate, f"{where}, 'temporal_gt',")
            id = f"{vid}_{begin}_{end}"
            if id not in videos:
                if vid not in box_files:
                    raise DataError(f"{boxes} has no file for video {vid}, which {where} is about.")
                path = root / box_files[vid].parent.name / f"{vid}.mp4"
                if not path.is_file():
                    raise DataError(f"{path} is missing.")
                videos[id] = Video(id, SampledFrames(path, decoder, numbers), size)
            listed = samples.setdefault(id, [])
            for text, kind, target in _expressions(record, where):
                ground_truth = BoxGroundTruth(partial(_boxes, box_files[vid], target, numbers, size), size)
                listed.append(Sample(videos[id], str(len(listed)), text, ground_truth, True, kind, (str(target),)))
    return Dataset(NAME, split, tuple(sample for listed in samples.values() for sample in listed))


def first_existing_folder(folder: Path, names: tuple[str, ...]) -> Path:
    """Find the first existing folder of several names.

    Args:
        folder: Parent folder.
        names: Possible names.

    Returns:
        Its path.

    Raises:
        DataError: When none exists.
    """
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(f"{folder} has no folder {' or '.join(repr(name) for name in names)}.")


def _box_files(folder: Path) -> dict[str, Path]:
    """Return VidOR's file of each video."""
    groups = (folder / name for name in list_folder(folder) if (folder / name).is_dir())
    return {
        name.removesuffix(".json"): group / name
        for group in groups
        for name in list_folder(group)
        if name.endswith(".json")
    }


def _expressions(record: Any, where: str) -> Iterator[tuple[str, str, int]]:
    """Yield text, kind and target of each expression of an annotation."""
    for field, kind in KINDS.items():
        for position, entry in enumerate(require_field(record, field, list, where)):
            name = f"{where}, {field} {position}"
            yield (require_field(entry, "description", str, name), kind, require_field(entry, "target_id", int, name))


def _boxes(file: Path, target: int, numbers: tuple[int, ...], size: tuple[int, int]) -> Mapping[int, Box]:
    """Read the boxes of a target in the selected frames from VidOR's file of the video."""
    trajectories = require_field(read_json(file), "trajectories", list, str(file))
    boxes: dict[int, Box] = {}
    for index, number in enumerate(numbers):
        if number >= len(trajectories):
            raise DataError(f"{file} has boxes for {len(trajectories)} frames, none for frame {number}.")
        where = f"{file}, frame {number}"
        if not isinstance(trajectories[number], list):
            raise DataError(f"{where} must be a list of boxes.")
        for entry in trajectories[number]:
            if require_field(entry, "tid", int, where) == target:
                box = require_field(entry, "bbox", dict, where)
                sides = [box.get(side) for side in ("xmin", "ymin", "xmax", "ymax")]
                left, top, right, bottom = require_numbers(sides, f"{where}: 'bbox'")
                inside = clip_box(left, top, right, bottom, size)
                if inside is not None:
                    boxes[index] = inside
    if not boxes:
        raise DataError(f"{file} has no box of object {target} in the moment.")
    return boxes
