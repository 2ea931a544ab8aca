"""VidSTG: sentences and questions about an object in a moment of a video, with its box in each frame.

Layout (https://github.com/Guaranteer/VidSTG-Dataset; videos and boxes are VidOR's,
https://xdshang.github.io/docs/vidor.html; the folders' names are those of VideoGLaMM's and TubeDETR's loaders)::

    vidstg_annotations/<split>_annotations.json                  also annotations/
    vidor_annotations/training/0054/2463204137.json              also annotation/; validation/ for test
    video/0054/2463204137.mp4                                    also videos/

An annotation of VidSTG has a moment (``temporal_gt``, whose end is the frame after the last) of a video (``vid``), and
``captions`` (declarative) and ``questions`` (interrogative), each with the ``target_id`` that VidOR's file of the video
tracks. Train and val are of VidOR's training videos, test is of its validation videos.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from refervos.data.boxes import Box, BoxTruth, SampledFrames, clipped_box, require_numbers, sampled_moment
from refervos.data.files import Problems, read_json
from refervos.data.frames import VideoDecoder
from refervos.data.records import require_field, require_id, require_size
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import DataError

NAME = "vidstg"

DECLARATIVE, INTERROGATIVE = "declarative", "interrogative"
"""The kinds of sentences."""

SENTENCES = {"questions": INTERROGATIVE, "captions": DECLARATIVE}
"""The kind of the sentences in each field, in the order of the published evaluation."""

VIDOR_SPLITS = {"train": "training", "val": "training", "test": "validation"}

SENTENCE_FOLDERS = ("vidstg_annotations", "annotations")
BOX_FOLDERS = ("vidor_annotations", "annotation")
VIDEO_FOLDERS = ("video", "videos")
"""Where annotations of VidSTG, of VidOR, and videos may be; the first that is there counts."""


def read_vidstg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of VidSTG.

    Args:
        folder: The folder that holds the annotations and the videos.
        split: ``train``, ``val`` or ``test``.
        problems: Collects problems with single annotations.

    Returns:
        A sample for each sentence about its moment, at one frame a second and 40 at most, as the published evaluation
        of spatial grounding has it. The id of a video is VidOR's with the moment, such as ``2463204137_13_45``.

    Raises:
        DataError: When a folder or the file of the split is missing or damaged.
    """
    file = first_there(folder, SENTENCE_FOLDERS) / f"{split}_annotations.json"
    content = read_json(file)
    if not isinstance(content, list):
        raise DataError(f"{file} must be a list of annotations.")
    boxes = first_there(folder, BOX_FOLDERS) / VIDOR_SPLITS[split]
    places = _places(boxes)
    root, decoder = first_there(folder, VIDEO_FOLDERS), VideoDecoder()
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
            numbers = sampled_moment(begin, end, rate, f"{where}, 'temporal_gt',")
            id = f"{vid}_{begin}_{end}"
            if id not in videos:
                if vid not in places:
                    raise DataError(f"{boxes} has no file of video {vid}, which {where} is about.")
                path = root / places[vid].parent.name / f"{vid}.mp4"
                if not path.is_file():
                    raise DataError(f"{path} is missing.")
                videos[id] = Video(id, SampledFrames(path, decoder, numbers), size)
            of_video = samples.setdefault(id, [])
            for sentence, kind, target in _sentences(record, where):
                boxes_of = BoxTruth(partial(_boxes, places[vid], target, numbers, size), size)
                expression_id = str(len(of_video))
                of_video.append(Sample(videos[id], expression_id, sentence, boxes_of, True, kind, (str(target),)))
    return Dataset(NAME, split, tuple(sample for of_video in samples.values() for sample in of_video))


def first_there(folder: Path, names: tuple[str, ...]) -> Path:
    """Find the first of some folders that is there.

    Args:
        folder: Where to look.
        names: What it may be called.

    Returns:
        Its path.

    Raises:
        DataError: When none is there.
    """
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise DataError(f"{folder} has no folder {' or '.join(repr(name) for name in names)}.")


def _places(folder: Path) -> dict[str, Path]:
    """Return VidOR's file of each video."""
    try:
        groups = sorted(entry for entry in folder.iterdir() if entry.is_dir())
        return {
            name.removesuffix(".json"): group / name
            for group in groups
            for name in os.listdir(group)
            if name.endswith(".json")
        }
    except OSError as error:
        raise DataError(f"{folder} is no folder that can be read ({error.strerror}).") from error


def _sentences(record: Any, where: str) -> Iterator[tuple[str, str, int]]:
    """Yield each sentence of an annotation, its kind and its target."""
    for name, kind in SENTENCES.items():
        for place, sentence in enumerate(require_field(record, name, list, where)):
            here = f"{where}, {name} {place}"
            yield (
                require_field(sentence, "description", str, here),
                kind,
                require_field(sentence, "target_id", int, here),
            )


def _boxes(file: Path, target: int, numbers: tuple[int, ...], size: tuple[int, int]) -> Mapping[int, Box]:
    """Read the boxes of a target in the chosen frames from VidOR's file of the video."""
    trajectories = require_field(read_json(file), "trajectories", list, str(file))
    boxes: dict[int, Box] = {}
    for index, number in enumerate(numbers):
        if number >= len(trajectories):
            raise DataError(f"{file} has boxes in {len(trajectories)} frames, none in frame {number}.")
        where = f"{file}, frame {number}"
        if not isinstance(trajectories[number], list):
            raise DataError(f"{where} must be a list of boxes.")
        for entry in trajectories[number]:
            if require_field(entry, "tid", int, where) == target:
                box = require_field(entry, "bbox", dict, where)
                sides = [box.get(side) for side in ("xmin", "ymin", "xmax", "ymax")]
                left, top, right, bottom = require_numbers(sides, f"{where}: 'bbox'")
                inside = clipped_box(left, top, right, bottom, size)
                if inside is not None:
                    boxes[index] = inside
    if not boxes:
        raise DataError(f"{file} has no box of object {target} in the moment.")
    return boxes
