"""Long-RVOS: videos of a minute, with expressions about looks, about motion, and about both.

Layout (https://huggingface.co/datasets/iSEE-Laboratory/Long-RVOS; https://github.com/iSEE-Laboratory/Long_RVOS, README,
``datasets/long_rvos/long_rvos_dataset.py`` and ``eval/eval_long_rvos``)::

    train/  JPEGImages/<video>/<frame>.jpg
            Annotations/<video>/<obj_id>/<frame>.png    0 and 255; no file where the object is not seen
            meta_expressions.json                       exp, obj_id (one), type (static, dynamic, static+dynamic)
    valid/  the same
    test/   without Annotations: its masks are kept secret

Versions of the README differ about ``test``; where it comes with Annotations, they are read.
"""

from __future__ import annotations

import os
from pathlib import Path

from refervos.data.files import Problems
from refervos.data.frames import ImageFrames
from refervos.data.ground_truth import NumberedPixels
from refervos.data.layouts.meta_expressions import ListedExpression, read_meta_expressions
from refervos.data.records import as_number, take, take_id
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import DataError

NAME = "long-rvos"

KINDS = {"static": "static", "dynamic": "dynamic", "static+dynamic": "hybrid"}
"""What the paper calls each ``type``."""


def read_long_rvos(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of Long-RVOS.

    Args:
        folder: The folder that holds ``train``, ``valid`` and ``test``.
        split: One of these.
        problems: Told what is wrong with single videos, frames and expressions.

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
    for video in listed.values():
        frames = video.images(root / "JPEGImages", problems)
        if frames is None:
            continue
        read = Video(video.id, frames)
        truths: dict[str, NumberedPixels] = {}
        for expression in video.expressions:
            with problems.collect():
                kind = _kind(expression)
                if secret:
                    samples.append(Sample(read, expression.id, expression.text, kind=kind))
                    continue
                id = take_id(expression.fields, "obj_id", expression.where)
                if id not in truths:
                    truths[id] = _truth(annotations / video.id / id, frames, problems)
                samples.append(Sample(read, expression.id, expression.text, truths[id], True, kind, (id,)))
    return Dataset(NAME, split, tuple(samples))


def _truth(folder: Path, frames: ImageFrames, problems: Problems) -> NumberedPixels:
    try:
        there = {name.removesuffix(".png") for name in os.listdir(folder) if name.endswith(".png")}
    except OSError:
        raise DataError(f"{folder} is missing.") from None
    unseen = frozenset(frames.names) - there
    if len(unseen) == len(frames.names):
        raise DataError(f"{folder} has no mask of any frame of {frames.folder}.")
    strange = sorted(there - frozenset(frames.names))
    if strange:
        # A frame without a mask is one in which the object is not seen, unless its mask has another name.
        numbers = {as_number(name) for name in unseen} - {None}
        misnamed = [name for name in strange if as_number(name) in numbers]
        if misnamed:
            raise DataError(f"{folder / misnamed[0]}.png is a mask of no frame; it must have the frame's whole name.")
        problems.note(f"{folder} has {len(strange)} masks of frames that are not listed, such as {strange[0]}.png.")
    return NumberedPixels(folder, frames, unseen=unseen)


def _kind(expression: ListedExpression) -> str:
    type = take(expression.fields, "type", str, expression.where)
    if type not in KINDS:
        raise DataError(f"{expression.where}: 'type' is {type!r}; it must be one of {', '.join(KINDS)}.")
    return KINDS[type]
