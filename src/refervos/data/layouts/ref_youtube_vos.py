"""Ref-YouTube-VOS: two expressions per object of YouTube-VOS, with every fifth frame and mask of the videos.

Layout (``datasets/ytvos.py`` and ``inference_ytvos.py`` of https://github.com/wjn922/ReferFormer)::

    meta_expressions/{train,valid,test}/meta_expressions.json   exp; obj_id in train only
    train/  JPEGImages/<video>/<frame>.jpg
            Annotations/<video>/<frame>.png   a palette; the index is the object's id
            meta.json                         objects of each video with category and frames; optional
    valid/  JPEGImages
    test/   JPEGImages

The file of ``valid`` lists the 507 videos of both ``valid`` and ``test``; the server scores the 202 that the file of
``test`` does not list. When that file is missing, the videos with frames are taken. The masks of both are secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refervos.data.files import Problems, read_json, report_missing
from refervos.data.ground_truth import IndexedMasks
from refervos.data.layouts.meta_expressions import ListedExpression, ListedVideo, read_meta_expressions
from refervos.data.records import as_number, require_field, require_id
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import DataError

NAME = "ref-youtube-vos"


def read_ref_youtube_vos(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of Ref-YouTube-VOS.

    Args:
        folder: Folder of ``meta_expressions``.
        split: ``train``, ``valid`` or ``test``.
        problems: Collects problems with single videos, frames and expressions.

    Returns:
        A sample for each expression.

    Raises:
        DataError: When a JSON file is missing or damaged.
    """
    root = folder / split
    listed = _listed(folder, split, problems)
    meta = root / "meta.json"
    objects = require_field(read_json(meta), "videos", dict, str(meta)) if split == "train" and meta.exists() else None
    samples: list[Sample] = []
    for entry in listed.values():
        frames = entry.images(root / "JPEGImages", problems)
        if frames is None:
            continue
        video = Video(entry.id, frames)
        if split != "train":
            samples.extend(Sample(video, expression.id, expression.text) for expression in entry.expressions)
            continue
        masks = root / "Annotations" / video.id
        if not report_missing(masks, [f"{name}.png" for name in frames.names], problems):
            continue
        targets: dict[int, IndexedMasks] = {}
        for expression in entry.expressions:
            with problems.collect():
                number = _object_number(expression, entry, objects, meta)
                target = targets.setdefault(number, IndexedMasks(masks, frames, number))
                samples.append(Sample(video, expression.id, expression.text, target, True, object_ids=(str(number),)))
    return Dataset(NAME, split, tuple(samples))


def _listed(folder: Path, split: str, problems: Problems) -> dict[str, ListedVideo]:
    """Read the videos of a split; for ``valid`` those not listed for ``test``, or else those with frames."""
    files = {name: folder / "meta_expressions" / name / "meta_expressions.json" for name in ("valid", "test")}
    if split != "valid":
        return read_meta_expressions(folder / "meta_expressions" / split / "meta_expressions.json", problems)
    listed = read_meta_expressions(files["valid"], problems)
    if not files["test"].exists():
        images = folder / split / "JPEGImages"
        present = {id: video for id, video in listed.items() if (images / id).is_dir()}
        if len(present) < len(listed):
            problems.note(
                f"{files['test']} is missing, so only the videos of {files['valid']} in {images} were taken: "
                f"{len(present):,} of {len(listed):,}; the server scores 202."
            )
        return present or listed
    tested = require_field(read_json(files["test"]), "videos", dict, str(files["test"]))
    return {id: video for id, video in listed.items() if id not in tested}


def _object_number(
    expression: ListedExpression, video: ListedVideo, objects: Mapping[str, Any] | None, file: Path
) -> int:
    id = require_id(expression.fields, "obj_id", expression.where)
    number = as_number(id)
    if objects is None:
        if number is None or not 0 < number < 256:
            raise DataError(f"{expression.where}: 'obj_id' must be the object's number in the masks, from 1 to 255.")
        return number
    listed = require_field(objects, video.id, dict, str(file))
    known = require_field(listed, "objects", dict, f"{file}, video {video.id}")
    if id not in known or number is None or not 0 < number < 256:
        raise DataError(f"{expression.where}: {file} has no object {id!r} in this video, only {', '.join(known)}.")
    return number
