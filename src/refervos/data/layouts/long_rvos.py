"""Long-RVOS: one-minute videos with expressions about appearance, motion, or both.

Layout (https://huggingface.co/datasets/iSEE-Laboratory/Long-RVOS; https://github.com/iSEE-Laboratory/Long_RVOS, README,
``datasets/long_rvos/long_rvos_dataset.py`` and ``eval/eval_long_rvos``)::

    train/  JPEGImages/<video>/<frame>.jpg
            Annotations/<video>/<obj_id>/<frame>.png    0 and 255; no file for frames without the object
            meta_expressions.json                       exp, obj_id (one), type (static, dynamic, static+dynamic)
    valid/  the same
    test/   without Annotations: its masks are secret

Versions of the README differ about ``test``; its Annotations are read if present.
"""

from __future__ import annotations

import os
from pathlib import Path

from refervos.data.files import Problems
from refervos.data.frames import ImageFrames
from refervos.data.ground_truth import IndexedMasks
from refervos.data.layouts.meta_expressions import ListedExpression, read_meta_expressions
from refervos.data.records import as_number, require_field, require_id
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import DataError

NAME = "long-rvos"

KINDS = {"static": "static", "dynamic": "dynamic", "static+dynamic": "hybrid"}
"""The paper's name of each ``type``."""


def read_long_rvos(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of Long-RVOS.

    Args:
        folder: Folder of ``train``, ``valid`` and ``test``.
        split: One of these.
        problems: Collects problems with single videos, frames and expressions.

    Returns:
        A sample for each expression.

    Raises:
        DataError: When ``meta_expressions.json`` is missing or damaged.
    """
    root = folder / split
    listed = read_meta_expressions(root / "meta_expressions.json", problems)
    annotations = root / "Annotations"
    secret = split == "test" and not annotations.exists()
    samples = []
    for entry in listed.values():
        frames = entry.images(root / "JPEGImages", problems)
        if frames is None:
            continue
        video = Video(entry.id, frames)
        objects: dict[str, IndexedMasks] = {}
        for expression in entry.expressions:
            with problems.collect():
                kind = _kind(expression)
                if secret:
                    samples.append(Sample(video, expression.id, expression.text, kind=kind))
                    continue
                id = require_id(expression.fields, "obj_id", expression.where)
                if id not in objects:
                    objects[id] = _ground_truth(annotations / video.id / id, frames, problems)
                samples.append(Sample(video, expression.id, expression.text, objects[id], True, kind, (id,)))
    return Dataset(NAME, split, tuple(samples))


def _ground_truth(folder: Path, frames: ImageFrames, problems: Problems) -> IndexedMasks:
    try:
        masks = {name.removesuffix(".png") for name in os.listdir(folder) if name.endswith(".png")}
    except OSError:
        raise DataError(f"{folder} is missing.") from None
    unseen = frozenset(frames.names) - masks
    if len(unseen) == len(frames.names):
        raise DataError(f"{folder} has no mask for any frame of {frames.folder}.")
    unmatched = sorted(masks - frozenset(frames.names))
    if unmatched:
        # A frame without a mask does not show the object, unless its mask is misnamed.
        numbers = {as_number(name) for name in unseen} - {None}
        misnamed = [name for name in unmatched if as_number(name) in numbers]
        if misnamed:
            raise DataError(f"{folder / misnamed[0]}.png matches no frame; it must have the full name of its frame.")
        problems.note(f"{folder} has {len(unmatched)} masks for unlisted frames, such as {unmatched[0]}.png.")
    return IndexedMasks(folder, frames, unseen=unseen)


def _kind(expression: ListedExpression) -> str:
    type = require_field(expression.fields, "type", str, expression.where)
    if type not in KINDS:
        raise DataError(f"{expression.where}: 'type' is {type!r}; it must be one of {', '.join(KINDS)}.")
    return KINDS[type]
