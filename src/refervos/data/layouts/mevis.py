"""MeViS, versions 1 and 2: motion expressions, each with one or more target objects, in version 2 also with none.

Layout (https://github.com/henghuiding/MeViS, section File Structure, and ``lmpm/data/datasets/mevis.py`` there)::

    train/      JPEGImages/<video>/00000.jpg   meta_expressions.json   mask_dict.json
    valid_u/    the same, for local evaluation
    valid/      without mask_dict.json: its masks are secret
    test/       like valid, when released by the organisers

``meta_expressions.json`` has ``exp``, ``obj_id`` and ``anno_id`` of each expression; ``mask_dict.json`` has, for each
``anno_id``, a COCO run-length mask or null per frame. The target of an expression is the union of its annotations. That
version 2 stores an expression without target with empty lists is inferred from loaders that skip those
(``dataset/hybrid`` of UniPixel); its authors do not document it. The audio data of version 2 is not read.
"""

from __future__ import annotations

from pathlib import Path

from refervos.data.files import Problems
from refervos.data.layouts.mask_dict import MaskDictionary
from refervos.data.layouts.meta_expressions import read_meta_expressions
from refervos.data.sample import Dataset, Sample, Video

NAME = "mevis"

ANNOTATED = ("train", "valid_u")
"""Splits with public masks."""

MASKS = "mask_dict.json"


def read_mevis(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of MeViS.

    Args:
        folder: Folder of ``train``, ``valid_u`` and so on.
        split: One of these.
        problems: Collects problems with single videos, frames and expressions.

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
    for entry in listed.values():
        frames = entry.images(root / "JPEGImages", problems)
        if frames is None:
            continue
        video = Video(entry.id, frames)
        for expression in entry.expressions:
            if masks is None:
                samples.append(Sample(video, expression.id, expression.text))
                continue
            with problems.collect():
                target = masks.ground_truth(expression, entry, frames)
                ids = tuple(target.tracks)
                samples.append(Sample(video, expression.id, expression.text, target, bool(ids), object_ids=ids))
    return Dataset(NAME, split, tuple(samples))
