"""MeViS, versions 1 and 2: motion expressions, of which each may mean several objects, and in version 2 none.

Layout (https://github.com/henghuiding/MeViS, section File Structure, and ``lmpm/data/datasets/mevis.py`` there)::

    train/      JPEGImages/<video>/00000.jpg   meta_expressions.json   mask_dict.json
    valid_u/    the same, for evaluation at home
    valid/      without mask_dict.json: its masks are kept secret
    test/       as valid, where the organisers hand it out

``meta_expressions.json`` tells of each expression ``exp``, ``obj_id`` and ``anno_id``; ``mask_dict.json`` holds, for
each ``anno_id``, a COCO run-length mask or null for each frame. An expression means the union of its annotations. That
version 2 writes an expression without target as one with empty lists follows from loaders that skip those
(``dataset/hybrid`` of UniPixel); its authors describe it nowhere. What version 2 tells of sound is not read.
"""

from __future__ import annotations

from pathlib import Path

from refervos.data.files import Problems
from refervos.data.layouts.mask_dict import MaskDictionary
from refervos.data.layouts.meta_expressions import read_meta_expressions
from refervos.data.sample import Dataset, Sample, Video

NAME = "mevis"

ANNOTATED = ("train", "valid_u")
"""The splits whose masks are public."""

MASKS = "mask_dict.json"


def read_mevis(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of MeViS.

    Args:
        folder: The folder that holds ``train``, ``valid_u`` and so on.
        split: One of these.
        problems: Told what is wrong with single videos, frames and expressions.

    Returns:
        A sample for each expression.

    Raises:
        DataError: When a JSON file is missing or damaged.
    """
    root = folder / split
    listed = read_meta_expressions(root / "meta_expressions.json", problems)
    public = split in ANNOTATED or (root / MASKS).exists()
    masks = MaskDictionary.read(root / MASKS) if public else None
    samples = []
    for video in listed.values():
        frames = video.images(root / "JPEGImages", problems)
        if frames is None:
            continue
        read = Video(video.id, frames)
        for expression in video.expressions:
            if masks is None:
                samples.append(Sample(read, expression.id, expression.text))
                continue
            with problems.collect():
                truth = masks.ground_truth(expression, video, frames)
                ids = tuple(truth.tracks)
                samples.append(Sample(read, expression.id, expression.text, truth, bool(ids), object_ids=ids))
    return Dataset(NAME, split, tuple(samples))
