"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: sentences about images of COCO, each sentence a sample.

Two layouts are told apart by the files that are there: ``refs(unc).p`` with ``instances.json``, as they are distributed
(https://github.com/lichengunc/refer), and ``instances_refcoco_train.json``, the form into which ReferFormer and its
descendants convert them (https://github.com/wjn922/ReferFormer, docs/data.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from refervos.data.files import Problems, read_json
from refervos.data.frames import ImageFrames, fitting
from refervos.data.ground_truth import StoredMasks, decode_segmentations
from refervos.data.pickles import read_plain_pickle
from refervos.data.records import take, take_id, take_ids, take_size
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.errors import DataError

PARTITIONS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "grefcoco": "unc"}
"""Whose division into splits is meant where the split's name does not tell."""

IMAGE_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "train2014", "coco/train2014")
"""Where the images are looked for, beside the folder with the annotations or in it."""


def read_refcoco(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read RefCOCO.

    Args:
        folder: The folder that holds ``refcoco`` and the images, or ``refcoco`` itself.
        split: ``train``, ``val``, ``testA`` or ``testB`` of UNC's partition; that of another with its name in front,
            as ``google:val``.
        problems: Told what is wrong with single images and sentences.

    Returns:
        A sample for each sentence; each image is a video of one frame.

    Raises:
        DataError: When an annotation file is missing or damaged, or there is no such split.
    """
    return _read("refcoco", folder, split, problems)


def read_refcoco_plus(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read RefCOCO+, like ``read_refcoco``."""
    return _read("refcoco+", folder, split, problems)


def read_refcocog(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read RefCOCOg, like ``read_refcoco``: ``train``, ``val`` and ``test`` of UMD's partition, or ``google:val``."""
    return _read("refcocog", folder, split, problems)


def read_grefcoco(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read gRefCOCO, like ``read_refcoco``: a sentence means one object, several, or none."""
    return _read("grefcoco", folder, split, problems)


@dataclass(frozen=True)
class _Sentence:
    """What is asked about an image, by ids."""

    id: str
    text: str
    image: str
    objects: tuple[str, ...]


@dataclass(frozen=True)
class _Annotations:
    """What a split's sentences are about, by id.

    Attributes:
        file: Where it was read.
        sentences: Those of the split.
        images: File name and size of each image.
        segmentations: Of each object: polygons or run lengths.
    """

    file: Path
    sentences: list[_Sentence]
    images: Mapping[str, tuple[str, tuple[int, int]]]
    segmentations: Mapping[str, Any]


def _read(name: str, folder: Path, split: str, problems: Problems) -> Dataset:
    home = folder / name if (folder / name).is_dir() else folder
    annotations = _annotations(name, home, split, problems)
    return Dataset(name, split, tuple(_samples(name, annotations, _image_folder(home), problems)))


def _annotations(name: str, home: Path, split: str, problems: Problems) -> _Annotations:
    """Read whichever layout is there."""
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
    raise DataError(f"{home} holds neither {refs[0].name} nor {converted[0].name}, one of which tells split {split!r}.")


def _distributed(file: Path, split: str, problems: Problems) -> _Annotations:
    """Read ``refs(unc).p`` (or ``grefs(unc).json``) and ``instances.json``."""
    refs = read_json(file) if file.suffix == ".json" else read_plain_pickle(file)
    if not isinstance(refs, list):
        raise DataError(f"{file} must hold a list of references.")
    sentences: list[_Sentence] = []
    splits = set()
    for number, ref in enumerate(refs):
        with problems.collect():
            splits.add(take(ref, "split", str, f"{file}, reference {number}"))
            if ref["split"] == split:
                sentences.extend(_sentences_of(ref, f"{file}, reference {number}"))
    if split not in splits:
        raise DataError(f"{file} has no split {split!r}; its splits are {', '.join(sorted(splits)) or 'none'}.")

    instances = file.with_name("instances.json")
    content = read_json(instances)
    wanted_images = {sentence.image for sentence in sentences}
    wanted_objects = {id for sentence in sentences for id in sentence.objects}
    images = {}
    for number, image in enumerate(take(content, "images", list, str(instances))):
        where = f"{instances}, image {number}"
        with problems.collect():
            if (id := take_id(image, "id", where)) in wanted_images:
                if id in images:
                    raise DataError(f"{instances} has image {id} twice.")
                images[id] = take(image, "file_name", str, where), take_size(image, where)
    segmentations = {}
    for number, annotation in enumerate(take(content, "annotations", list, str(instances))):
        where = f"{instances}, annotation {number}"
        with problems.collect():
            if (id := take_id(annotation, "id", where)) in wanted_objects:
                if id in segmentations:
                    raise DataError(f"{instances} has annotation {id} twice.")
                segmentations[id] = _segmentation_of(annotation, where)
    return _Annotations(instances, sentences, images, segmentations)


def _sentences_of(ref: dict[str, Any], where: str) -> Iterator[_Sentence]:
    image = take_id(ref, "image_id", where)
    # gRefCOCO has a list, which is [-1] where nothing is meant.
    listed = isinstance(ref.get("ann_id"), list)
    ids = take_ids(ref, "ann_id", where) if listed else (take_id(ref, "ann_id", where),)
    objects = tuple(id for id in ids if id != "-1")
    if len(objects) < len(ids) and objects:
        raise DataError(f"{where}: 'ann_id' has -1 beside others; -1, which means nothing, stands alone.")
    if objects and ref.get("no_target") is True:
        raise DataError(f"{where} has 'no_target', but an 'ann_id'; where nothing is meant, that is [-1].")
    for sentence in take(ref, "sentences", list, where):
        yield _Sentence(take_id(sentence, "sent_id", where), take(sentence, "sent", str, where), image, objects)


def _converted(file: Path, problems: Problems) -> _Annotations:
    """Read ``instances_refcoco_train.json``, which lists an image once for each sentence, as its caption."""
    content = read_json(file)
    asked: dict[str, tuple[str, str]] = {}
    images: dict[str, tuple[str, tuple[int, int]]] = {}
    for number, entry in enumerate(take(content, "images", list, str(file))):
        where = f"{file}, image {number}"
        with problems.collect():
            id, image = take_id(entry, "id", where), take_id(entry, "original_id", where)
            if id in asked:
                raise DataError(f"{file} has image {id} twice.")
            told = take(entry, "file_name", str, where), take_size(entry, where)
            if images.setdefault(image, told) != told:
                raise DataError(f"{where} has another 'file_name' or size than an entry of the same 'original_id'.")
            asked[id] = image, take(entry, "caption", str, where)
    objects: dict[str, list[str]] = {}
    segmentations = {}
    for number, annotation in enumerate(take(content, "annotations", list, str(file))):
        where = f"{file}, annotation {number}"
        with problems.collect():
            object_id = take_id(annotation, "original_id", where)
            segmentations[object_id] = _segmentation_of(annotation, where)
            objects.setdefault(take_id(annotation, "image_id", where), []).append(object_id)
    sentences = [_Sentence(id, text, image, tuple(objects.get(id, ()))) for id, (image, text) in asked.items()]
    return _Annotations(file, sentences, images, segmentations)


def _segmentation_of(annotation: Any, where: str) -> Any:
    if not isinstance(annotation.get("segmentation"), list | dict):
        raise DataError(f"{where} has no 'segmentation'; a box is no mask.")
    return annotation["segmentation"]


def _samples(name: str, annotations: _Annotations, images: Path, problems: Problems) -> Iterator[Sample]:
    """Put the sentences about each image together."""
    file, there = annotations.file, set(os.listdir(images))
    together: dict[str, list[_Sentence]] = {}
    for sentence in annotations.sentences:
        together.setdefault(sentence.image, []).append(sentence)
    for image, sentences in together.items():
        if image not in annotations.images:
            problems.report(f"{file} has no image {image}, which sentence {sentences[0].id} is about.")
            continue
        image_file, size = annotations.images[image]
        if image_file not in there:
            problems.report(f"{images / image_file} is missing.")
            continue
        frames = ImageFrames(images, (image_file,))
        video = Video(image, frames, size)
        truths: dict[tuple[str, ...], StoredMasks] = {}
        seen = set()
        for sentence in sentences:
            objects = sentence.objects
            if sentence.id in seen:
                problems.report(f"Sentence {sentence.id} is twice about image {image} of {file}.")
                continue
            seen.add(sentence.id)
            unknown = [id for id in objects if id not in annotations.segmentations]
            if unknown:
                problems.report(f"{file} has no annotation {unknown[0]}, which sentence {sentence.id} is about.")
                continue
            if not objects and name != "grefcoco":
                problems.report(f"{file} has no annotation for sentence {sentence.id}, which must mean one object.")
                continue
            if objects not in truths:
                segmentations = [annotations.segmentations[id] for id in objects]
                where = f"{file}, annotation {', '.join(objects)}"
                truths[objects] = StoredMasks({0: partial(_decode, frames, segmentations, size, where)})
            yield Sample(
                video,
                sentence.id,
                sentence.text,
                truths[objects],
                has_target=bool(objects),
                kind=_target_kind(objects) if name == "grefcoco" else None,
                object_ids=objects,
            )


def _decode(frames: ImageFrames, segmentations: Sequence[Any], told: tuple[int, int], where: str) -> Mask:
    return decode_segmentations(segmentations, fitting(frames, 0, told, where), where)


def _target_kind(objects: tuple[str, ...]) -> str:
    return ("no target", "one target")[len(objects)] if len(objects) < 2 else "several targets"


def _image_folder(home: Path) -> Path:
    places = [base / place for base in (home.parent, home) for place in IMAGE_FOLDERS]
    for place in places:
        if place.is_dir():
            return place
    looked = ", ".join(str(place) for place in places)
    raise DataError(f"The images of COCO train2014 are in no place where they are looked for: {looked}.")
