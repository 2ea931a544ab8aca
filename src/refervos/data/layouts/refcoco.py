"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: expressions about COCO images, each expression a sample.

Two layouts are distinguished by their files: ``refs(unc).p`` with ``instances.json``, the original distribution
(https://github.com/lichengunc/refer), and ``instances_refcoco_train.json``, the conversion of ReferFormer and its
successors (https://github.com/wjn922/ReferFormer, docs/data.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from refervos.data.files import Problems, read_json
from refervos.data.frames import ImageFrames, require_frame_size
from refervos.data.ground_truth import StoredMasks, decode_segmentations
from refervos.data.pickles import read_plain_pickle
from refervos.data.records import records_of, require_field, require_id, require_ids, require_new_id, require_size
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.errors import DataError

PARTITIONS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "grefcoco": "unc"}
"""Default partition into splits of each benchmark."""

IMAGE_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014", "coco/train2014")
"""Possible folders of the images, beside the folder of the annotations or in it."""


def read_refcoco(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read RefCOCO.

    Args:
        folder: Folder of ``refcoco`` and the images, or ``refcoco`` itself.
        split: ``train``, ``val``, ``testA`` or ``testB`` of UNC's partition; other partitions are given as a prefix,
            such as ``google:val``.
        problems: Collects problems with single images and expressions.

    Returns:
        A sample for each expression; each image is a video of one frame.

    Raises:
        DataError: When an annotation file is missing or damaged, or the split is unknown.
    """
    return _read("refcoco", folder, split, problems)


def read_refcoco_plus(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read RefCOCO+, like ``read_refcoco``."""
    return _read("refcoco+", folder, split, problems)


def read_refcocog(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read RefCOCOg, like ``read_refcoco``: ``train``, ``val`` and ``test`` of UMD's partition, or ``google:val``."""
    return _read("refcocog", folder, split, problems)


def read_grefcoco(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read gRefCOCO, like ``read_refcoco``: an expression has one target, several, or none."""
    return _read("grefcoco", folder, split, problems)


@dataclass(frozen=True)
class _Expression:
    """Expression about an image, with the ids of its target objects."""

    id: str
    text: str
    image: str
    objects: tuple[str, ...]


@dataclass(frozen=True)
class _Annotations:
    """Expressions of a split, with the images and segmentations that they refer to.

    Attributes:
        file: The file that was read.
        expressions: Expressions of the split.
        images: File name and size of each image, by id.
        segmentations: Polygons or run lengths of each object, by id.
    """

    file: Path
    expressions: list[_Expression]
    images: Mapping[str, tuple[str, tuple[int, int]]]
    segmentations: Mapping[str, Any]


def _read(name: str, folder: Path, split: str, problems: Problems) -> Dataset:
    home = folder / name if (folder / name).is_dir() else folder
    annotations = _annotations(name, home, split, problems)
    return Dataset(name, split, tuple(_samples(name, annotations, _image_folder(home), problems)))


def _annotations(name: str, home: Path, split: str, problems: Problems) -> _Annotations:
    """Read the layout that is present."""
    partition, _, part = split.rpartition(":")
    general = "g" if name == "grefcoco" else ""
    refs = [home / f"{general}refs({partition or PARTITIONS[name]}){suffix}" for suffix in (".p", ".json")]
    converted = [home / f"{kind}_{name}_{part}.json" for kind in ("instances", "finetune")]
    for file in refs:
        if file.is_file():
            return _distributed(file, part, problems)
    for file in converted:
        if file.is_file() and partition in ("", PARTITIONS[name]) and name != "grefcoco":
            return _converted(file, problems)
    raise DataError(f"{home} contains neither {refs[0].name} nor {converted[0].name}, needed for split {split!r}.")


def _distributed(file: Path, split: str, problems: Problems) -> _Annotations:
    """Read ``refs(unc).p`` (or ``grefs(unc).json``) and ``instances.json``."""
    refs = read_json(file) if file.suffix == ".json" else read_plain_pickle(file)
    if not isinstance(refs, list):
        raise DataError(f"{file} must be a list of references.")
    expressions: list[_Expression] = []
    splits = set()
    for number, ref in enumerate(refs):
        with problems.collect():
            splits.add(require_field(ref, "split", str, f"{file}, reference {number}"))
            if ref["split"] == split:
                expressions.extend(_expressions_of(ref, f"{file}, reference {number}"))
    if split not in splits:
        raise DataError(f"{file} has no split {split!r}; its splits are {', '.join(sorted(splits)) or 'none'}.")

    instances = file.with_name("instances.json")
    content = read_json(instances)
    wanted_images = {expression.image for expression in expressions}
    wanted_objects = {id for expression in expressions for id in expression.objects}
    images: dict[str, tuple[str, tuple[int, int]]] = {}
    for where, image in records_of(content, "images", instances):
        with problems.collect():
            if (id := require_new_id(image, images, "image", instances, where)) in wanted_images:
                images[id] = require_field(image, "file_name", str, where), require_size(image, where)
    segmentations: dict[str, Any] = {}
    for where, annotation in records_of(content, "annotations", instances):
        with problems.collect():
            if (id := require_new_id(annotation, segmentations, "annotation", instances, where)) in wanted_objects:
                segmentations[id] = _segmentation_of(annotation, where)
    return _Annotations(instances, expressions, images, segmentations)


def _expressions_of(ref: dict[str, Any], where: str) -> Iterator[_Expression]:
    image = require_id(ref, "image_id", where)
    # gRefCOCO has a list, which is [-1] for an expression without target.
    listed = isinstance(ref.get("ann_id"), list)
    ids = require_ids(ref, "ann_id", where) if listed else (require_id(ref, "ann_id", where),)
    objects = tuple(id for id in ids if id != "-1")
    if len(objects) < len(ids) and objects:
        raise DataError(f"{where}: 'ann_id' has -1 beside other ids; -1, for no target, must be the only entry.")
    if objects and ref.get("no_target") is True:
        raise DataError(f"{where} has 'no_target' and an 'ann_id'; without a target, 'ann_id' must be [-1].")
    for sentence in require_field(ref, "sentences", list, where):
        id, text = require_id(sentence, "sent_id", where), require_field(sentence, "sent", str, where)
        yield _Expression(id, text, image, objects)


def _converted(file: Path, problems: Problems) -> _Annotations:
    """Read ``instances_refcoco_train.json``, which lists an image once per expression, its caption."""
    content = read_json(file)
    captions: dict[str, tuple[str, str]] = {}
    images: dict[str, tuple[str, tuple[int, int]]] = {}
    for where, entry in records_of(content, "images", file):
        with problems.collect():
            id = require_new_id(entry, captions, "image", file, where)
            image = require_id(entry, "original_id", where)
            properties = require_field(entry, "file_name", str, where), require_size(entry, where)
            if images.setdefault(image, properties) != properties:
                raise DataError(f"{where} differs in 'file_name' or size from an entry with the same 'original_id'.")
            captions[id] = image, require_field(entry, "caption", str, where)
    objects: dict[str, list[str]] = {}
    segmentations = {}
    for number, annotation in enumerate(require_field(content, "annotations", list, str(file))):
        where = f"{file}, annotation {number}"
        with problems.collect():
            object_id = require_id(annotation, "original_id", where)
            segmentations[object_id] = _segmentation_of(annotation, where)
            objects.setdefault(require_id(annotation, "image_id", where), []).append(object_id)
    expressions = [_Expression(id, text, image, tuple(objects.get(id, ()))) for id, (image, text) in captions.items()]
    return _Annotations(file, expressions, images, segmentations)


def _segmentation_of(annotation: Any, where: str) -> Any:
    if not isinstance(annotation.get("segmentation"), list | dict):
        raise DataError(f"{where} has no 'segmentation'; a box is not a mask.")
    return annotation["segmentation"]


def _samples(name: str, annotations: _Annotations, images: Path, problems: Problems) -> Iterator[Sample]:
    """Yield the samples grouped by image."""
    file, present = annotations.file, set(os.listdir(images))
    by_image: dict[str, list[_Expression]] = {}
    for expression in annotations.expressions:
        by_image.setdefault(expression.image, []).append(expression)
    for image, expressions in by_image.items():
        if image not in annotations.images:
            problems.report(f"{file} has no image {image}, which expression {expressions[0].id} is about.")
            continue
        image_file, size = annotations.images[image]
        if image_file not in present:
            problems.report(f"{images / image_file} is missing.")
            continue
        frames = ImageFrames(images, (image_file,))
        video = Video(image, frames, size)
        targets: dict[tuple[str, ...], StoredMasks] = {}
        seen = set()
        for expression in expressions:
            objects = expression.objects
            if expression.id in seen:
                problems.report(f"{file} has expression {expression.id} twice about image {image}.")
                continue
            seen.add(expression.id)
            unknown = [id for id in objects if id not in annotations.segmentations]
            if unknown:
                problems.report(f"{file} has no annotation {unknown[0]}, which expression {expression.id} refers to.")
                continue
            if not objects and name != "grefcoco":
                problems.report(f"{file} has no annotation for expression {expression.id}, which must have one target.")
                continue
            if objects not in targets:
                segmentations = [annotations.segmentations[id] for id in objects]
                where = f"{file}, annotation {', '.join(objects)}"
                targets[objects] = StoredMasks({0: partial(_decode, frames, segmentations, size, where)})
            yield Sample(
                video,
                expression.id,
                expression.text,
                targets[objects],
                has_target=bool(objects),
                kind=_target_kind(objects) if name == "grefcoco" else None,
                object_ids=objects,
            )


def _decode(frames: ImageFrames, segmentations: Sequence[Any], stated: tuple[int, int], where: str) -> Mask:
    return decode_segmentations(segmentations, require_frame_size(frames, 0, stated, where), where)


def _target_kind(objects: tuple[str, ...]) -> str:
    return ("no target", "one target")[len(objects)] if len(objects) < 2 else "several targets"


def _image_folder(home: Path) -> Path:
    folders = [base / folder for base in (home.parent, home) for folder in IMAGE_FOLDERS]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise DataError(f"The images of COCO train2014 are missing; expected one of {', '.join(map(str, folders))}.")
