"""ReVOS: referring expressions, expressions that need reasoning, and expressions without a target in the video.

Layout (https://github.com/cilinyan/ReVOS-api; ``tools/eval_revos.py`` and ``tools/generate_foreground_mask.py`` of
https://github.com/cilinyan/VISA)::

    JPEGImages/<video>/<frame>.jpg      of both splits; video names have slashes: UVO/all/-CiPki3XuVI
    meta_expressions_train_.json        exp, obj_id, anno_id, type_id (0 referring, 1 reasoning, 2 hallucination)
    meta_expressions_valid_.json
    mask_dict.json                      of both splits, by anno_id: a COCO run-length mask or null per frame
    mask_dict_foreground.json           by video: masks_rle, the union of all annotated objects per frame

The foreground is the denominator of the robustness score R. Users report that the masks of some videos have drifted
from the frames (issues 9 and 18 of VISA); this error in the data is not corrected here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refervos.data.files import Problems, read_json
from refervos.data.frames import ImageFrames
from refervos.data.ground_truth import RunLengthTracks
from refervos.data.layouts.mask_dict import MaskDictionary, require_track
from refervos.data.layouts.meta_expressions import ListedExpression, ListedVideo, read_meta_expressions
from refervos.data.records import require_field, require_size
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.errors import DataError

NAME = "revos"

REFERRING, REASONING, HALLUCINATION = "referring", "reasoning", "hallucination"
"""Kinds of expressions; the last have no target in their video."""

KINDS = {0: REFERRING, 1: REASONING, 2: HALLUCINATION}
"""Kind for each ``type_id``."""

FOREGROUND = "mask_dict_foreground.json"


@dataclass(frozen=True, eq=False)
class RevosGroundTruth(RunLengthTracks):
    """Ground truth of an expression, with the foreground: all annotated objects of the video.

    Attributes:
        all_objects: The foreground; None when its file is missing.
    """

    all_objects: RunLengthTracks | None = None

    def foreground(self, index: int) -> Mask:
        """Read the union of all annotated objects of the video in one frame.

        Args:
            index: One of ``annotated``.

        Returns:
            bool (H, W).

        Raises:
            DataError: When it is missing, damaged, or not of the video's size.
        """
        if self.all_objects is None:
            raise DataError(f"{self.file.with_name(FOREGROUND)} is missing; the robustness score R needs it.")
        return self.all_objects.mask(index)


def read_revos(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of ReVOS.

    Args:
        folder: Folder of ``JPEGImages``.
        split: ``train`` or ``valid``.
        problems: Collects problems with single videos, frames and expressions.

    Returns:
        A sample for each expression; its ground truth is ``RevosGroundTruth``.

    Raises:
        DataError: When a JSON file is missing or damaged; only the foreground's file is optional.
    """
    listed = read_meta_expressions(folder / f"meta_expressions_{split}_.json", problems)
    masks = MaskDictionary.read(folder / "mask_dict.json")
    file = folder / FOREGROUND
    foregrounds: Any = read_json(file) if file.exists() else None
    samples: list[Sample] = []
    for entry in listed.values():
        frames = entry.images(folder / "JPEGImages", problems)
        if frames is None:
            continue
        with problems.collect():
            size = require_size(entry.fields, entry.where) if "height" in entry.fields else None
            all_objects = _foreground(file, foregrounds, entry, frames)
            video = Video(entry.id, frames, size)
            for expression in entry.expressions:
                with problems.collect():
                    found = masks.ground_truth(expression, entry, frames)
                    target = RevosGroundTruth(found.file, found.tracks, frames, all_objects)
                    ids, kind = tuple(target.tracks), _kind(expression)
                    samples.append(Sample(video, expression.id, expression.text, target, bool(ids), kind, ids))
    return Dataset(NAME, split, tuple(samples))


def _foreground(file: Path, content: Any, video: ListedVideo, frames: ImageFrames) -> RunLengthTracks | None:
    if content is None:
        return None
    where = f"{file}, video {video.id}"
    track = require_field(require_field(content, video.id, dict, str(file)), "masks_rle", list, where)
    return RunLengthTracks(file, {"foreground": require_track(track, video, where)}, frames)


def _kind(expression: ListedExpression) -> str:
    number = require_field(expression.fields, "type_id", int, expression.where)
    if number not in KINDS:
        raise DataError(f"{expression.where}: 'type_id' is {number}; it must be 0, 1 or 2.")
    return KINDS[number]
