"""Ref-YouTube-VOS: two expressions about each object of YouTube-VOS; frames and masks are every fifth of the video.

Layout (``datasets/ytvos.py`` and ``inference_ytvos.py`` of https://github.com/wjn922/ReferFormer)::

    meta_expressions/{train,valid,test}/meta_expressions.json   exp; obj_id in train only
    train/  JPEGImages/<video>/<frame>.jpg
            Annotations/<video>/<frame>.png   a palette; the index is the object's id
            meta.json                         the objects of each video with category and frames; may be missing
    valid/  JPEGImages
    test/   JPEGImages

The file of ``valid`` lists the 507 videos of both ``valid`` and ``test``; the 202 that the server scores are those that
the file of ``test`` does not list. Where that file is missing, the videos are taken whose frames are there. The masks
of both are secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refervos.data.files import Problems, read_json, report_missing
from refervos.data.ground_truth import NumberedPixels
from refervos.data.layouts.meta_expressions import ListedExpression, ListedVideo, read_meta_expressions
from refervos.data.records import as_number, take, take_id
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import DataError

NAME = "ref-youtube-vos"


def read_ref_youtube_vos(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of Ref-YouTube-VOS.

    Args:
        folder: The folder that holds ``meta_expressions``.
        split: ``train``, ``valid`` or ``test``.
        problems: Told what is wrong with single videos, frames and expressions.

    Returns:
        A sample for each expression.

    Raises:
        DataError: When a JSON file is missing or damaged.
    """
    root = folder / split
    listed = _listed(folder, split, problems)
    meta = root / "meta.json"
    objects = take(read_json(meta), "videos", dict, str(meta)) if split == "train" and meta.exists() else None
    samples: list[Sample] = []
    for video in listed.values():
        frames = video.images(root / "JPEGImages", problems)
        if frames is None:
            continue
        read = Video(video.id, frames)
        if split != "train":
            samples.extend(Sample(read, asked.id, asked.text) for asked in video.expressions)
            continue
        masks = root / "Annotations" / video.id
        if not report_missing(masks, [f"{name}.png" for name in frames.names], problems):
            continue
        truths: dict[int, NumberedPixels] = {}
        for expression in video.expressions:
            with problems.collect():
                number = _object_number(expression, video, objects, meta)
                truth = truths.setdefault(number, NumberedPixels(masks, frames, number))
                samples.append(Sample(read, expression.id, expression.text, truth, True, object_ids=(str(number),)))
    return Dataset(NAME, split, tuple(samples))


def _listed(folder: Path, split: str, problems: Problems) -> dict[str, ListedVideo]:
    """What a split's file lists; of ``valid`` only what that of ``test`` does not, or else what has frames."""
    files = {name: folder / "meta_expressions" / name / "meta_expressions.json" for name in ("valid", "test")}
    if split != "valid":
        return read_meta_expressions(folder / "meta_expressions" / split / "meta_expressions.json", problems)
    listed = read_meta_expressions(files["valid"], problems)
    if not files["test"].exists():
        images = folder / split / "JPEGImages"
        there = {id: video for id, video in listed.items() if (images / id).is_dir()}
        if len(there) < len(listed):
            problems.note(
                f"{files['test']} is missing, so the videos of {files['valid']} were taken that {images} has: "
                f"{len(there):,} of {len(listed):,}; the server scores 202."
            )
        return there or listed
    tested = take(read_json(files["test"]), "videos", dict, str(files["test"]))
    return {id: video for id, video in listed.items() if id not in tested}


def _object_number(
    expression: ListedExpression, video: ListedVideo, objects: Mapping[str, Any] | None, file: Path
) -> int:
    id = take_id(expression.fields, "obj_id", expression.where)
    number = as_number(id)
    if objects is None:
        if number is None or not 0 < number < 256:
            raise DataError(f"{expression.where}: 'obj_id' must be the number of the object in the masks, from 1 on.")
        return number
    known = take(take(objects, video.id, dict, str(file)), "objects", dict, f"{file}, video {video.id}")
    if id not in known or number is None or not 0 < number < 256:
        raise DataError(f"{expression.where}: {file} has no object {id!r} in this video, only {', '.join(known)}.")
    return number
