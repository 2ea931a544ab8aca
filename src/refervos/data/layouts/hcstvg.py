"""HC-STVG, versions 1 and 2: expressions about a person in a moment of a 20-second clip, with the person's boxes.

Layout (https://github.com/tzhhhh123/HC-STVG; folder names of VideoGLaMM's and TubeDETR's loaders)::

    anno_v2/train_v2.json    val_v2.json     version 2; also beside the video folder
    train.json    test.json                  version 1; also in anno/
    Video/<part>/<clip>.mp4                  also video/, v2_video/ and v1_video/; clips may be .mkv
    qa/0.json                                optional questions about the clips of val_v2.json, in its order

A file has, for each clip, ``bbox`` (left, top, width, height of each frame of the moment), ``st_frame``, the number of
the moment's first frame counted from 1, ``img_num``, the number of frames in the 20 seconds, and the expression and the
size: ``caption``, ``width`` and ``height`` in version 1, ``English`` and ``img_size`` (height, width) in version 2. The
authors state that ``st_frame`` counts from 1, which agrees with ``st_time``; the loaders above count it from 0, and so
pair each box with the next frame.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from refervos.data.boxes import Box, BoxGroundTruth, SampledFrames, clip_box, require_numbers, sample_moment
from refervos.data.files import Problems, read_json
from refervos.data.frames import VideoDecoder
from refervos.data.layouts.vidstg import DECLARATIVE, INTERROGATIVE, first_existing_folder
from refervos.data.records import as_id, check_image_size, require_field
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import DataError

NAME, NAME_1 = "hc-stvg", "hc-stvg1"

SECONDS = 20
"""Length of every clip."""

ANNOTATION_FOLDERS = ("anno_v2", "anno", ".")
VIDEO_FOLDERS = ("Video", "video", "v2_video", "v1_video")
"""Possible folders of annotations and videos; the first that exists is used."""

VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".webm")


def read_hcstvg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of version 2 of HC-STVG.

    Args:
        folder: Folder of the annotations and the videos.
        split: ``train`` or ``val``.
        problems: Collects problems with single clips.

    Returns:
        A sample for each expression about its moment, at one frame per second and at most 40 frames. Questions in
        ``qa`` are samples of the kind ``interrogative``.

    Raises:
        DataError: When a folder or the file of the split is missing or damaged.
    """
    return _read(NAME, folder, split, f"{split}_v2.json", problems)


def read_hcstvg1(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of version 1 of HC-STVG.

    Args:
        folder: Folder of the annotations and the videos.
        split: ``train`` or ``test``.
        problems: Collects problems with single clips.

    Returns:
        See ``read_hcstvg``.

    Raises:
        DataError: When a folder or the file of the split is missing or damaged.
    """
    return _read(NAME_1, folder, split, f"{split}.json", problems)


def _read(name: str, folder: Path, split: str, file_name: str, problems: Problems) -> Dataset:
    files = [folder / subfolder / file_name for subfolder in ANNOTATION_FOLDERS]
    file = next((file for file in files if file.is_file()), files[0])
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file} must be an object with an annotation for each clip.")
    clips, decoder = _clips(first_existing_folder(folder, VIDEO_FOLDERS)), VideoDecoder()
    samples = []
    for number, (key, record) in enumerate(content.items()):
        where = f"{file}, {key}"
        with problems.collect():
            id = as_id(Path(key).stem, f"{file}: the name of clip {number}")
            if id not in clips:
                raise DataError(f"{where[:200]}: clip {id} is missing.")
            size = _size(record, where)
            numbers, boxes = _moment(record, size, where)
            video = Video(id, SampledFrames(clips[id], decoder, numbers), size)
            ground_truth = BoxGroundTruth(partial(dict, boxes), size)
            for kind, sentence in _sentences(record, folder / "qa" / f"{number}.json", split, where):
                samples.append(Sample(video, kind[0], sentence, ground_truth, True, kind, ("0",)))
    return Dataset(name, split, tuple(samples))


def _clips(folder: Path) -> dict[str, Path]:
    """Return the file of each clip, at any depth below the video folder."""
    found = {}
    for parent, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            if name.lower().endswith(VIDEO_SUFFIXES):
                found[Path(name).stem] = Path(parent) / name
    return found


def _size(record: Any, where: str) -> tuple[int, int]:
    """Return height and width, which the versions store differently."""
    if isinstance(record, dict) and "img_size" in record:
        sides = require_field(record, "img_size", list, where)
        if len(sides) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) for side in sides):
            raise DataError(f"{where}: 'img_size' must be height and width.")
        height, width = sides
    else:
        height, width = require_field(record, "height", int, where), require_field(record, "width", int, where)
    check_image_size(height, width, where)
    return height, width


def _moment(record: Any, size: tuple[int, int], where: str) -> tuple[tuple[int, ...], dict[int, Box]]:
    """Return the numbers of the selected frames, from 0, and the box of each by frame index."""
    stored = require_field(record, "bbox", list, where)
    begin, count = require_field(record, "st_frame", int, where) - 1, require_field(record, "img_num", int, where)
    if begin + len(stored) > count:
        raise DataError(
            f"{where}: a moment of {len(stored)} frames from frame {begin + 1} ends after the last frame, {count}."
        )
    numbers = sample_moment(begin, begin + len(stored), count / SECONDS, f"{where}: the moment")
    boxes = {}
    for index, number in enumerate(numbers):
        box = stored[number - begin]
        if not isinstance(box, list) or len(box) != 4:
            raise DataError(f"{where}: a box must be [left, top, width, height].")
        left, top, width, height = require_numbers(box, f"{where}: the sides of a box")
        inside = clip_box(left, top, left + width, top + height, size)
        if inside is not None:
            boxes[index] = inside
    if not boxes:
        raise DataError(f"{where}: none of the boxes overlaps the frame.")
    return numbers, boxes


def _sentences(record: Any, question: Path, split: str, where: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each expression about a clip."""
    yield DECLARATIVE, require_field(record, "English" if "English" in record else "caption", str, where)
    if split == "val" and question.is_file():
        text = require_field(read_json(question), "Q", str, str(question))
        if text.strip():
            yield INTERROGATIVE, text
