"""Grounded captions in a JSON file for each video: MeViS-GCG, VidSTG-GCG, HC-STVG-GCG and Refer-YouTube-VOS-GCG.

Layout (VideoGLaMM: ``utils/mevis_gcg.py``, ``utils/vidstg_hcstvg_gcg.py`` and ``utils/ytvos_gcg.py`` of
https://github.com/mbzuai-oryx/VideoGLaMM, commit 6b15b1e), below the folder that is called ``video_dataset`` there::

    mevis_gcg/<split>/<video>.json              mevis/<split>/...              as MeViS is published
    ytvos_gcg/train/<video>.json                refer_youtube_vos/train/...    as Refer-YouTube-VOS is published
    vidstg_gcg/<split>_captions/<video>.json    vidstg_gcg/<split>/<video>/frames/000013.png
    hcstvg_gcg/...    the same                  vidstg_gcg/<split>/<video>/masks/000/000013.png    0 and 255

Each file holds an object with a ``caption``, in which phrases are marked as ``[phrase](0)`` or ``[phrase](0, 2)``. In
MeViS-GCG and Refer-YouTube-VOS-GCG a phrase means the union of its objects; in VidSTG-GCG and HC-STVG-GCG the released
loader takes the first object alone, and so does this reader. Captions and, of the latter two, masks were made by models
(GPT-4o-mini; SAM 2.1 from annotated boxes).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from refervos.data.conversations import (
    GCG_QUESTION,
    LONGEST_ANSWER,
    Conversation,
    GroundedPhrase,
    MarkedPhrase,
    Turn,
    parse_marked,
    with_conversations,
)
from refervos.data.files import Problems, read_json
from refervos.data.frames import ImageFrames, image_files
from refervos.data.ground_truth import IndexedMasks, RunLengthTracks, StoredMasks
from refervos.data.layouts.mask_dict import MaskDictionary, require_track
from refervos.data.layouts.meta_expressions import ListedVideo, read_meta_expressions
from refervos.data.records import as_id, as_number, is_name, require_field, require_ids
from refervos.data.sample import Dataset, GroundTruth, Mask, Video
from refervos.errors import DataError

MEVIS, YTVOS, VIDSTG, HCSTVG = "mevis-gcg", "ytvos-gcg", "vidstg-gcg", "hcstvg-gcg"

Grounding = Callable[[tuple[str, ...]], GroundTruth]
"""Finds the masks of the objects that a phrase names, or raises DataError."""


def read_mevis_gcg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of MeViS-GCG.

    Args:
        folder: The folder that holds ``mevis_gcg`` and ``mevis``.
        split: ``train`` or ``valid_u``.
        problems: Collects problems with single captions and videos.

    Returns:
        A conversation of one turn for each caption.

    Raises:
        DataError: When a folder or a file that tells of all videos is missing or damaged.
    """
    root = folder / "mevis" / split
    listed = read_meta_expressions(root / "meta_expressions.json", problems)
    masks = MaskDictionary.read(root / "mask_dict.json")
    conversations = []
    for id, file in _caption_files(folder / "mevis_gcg" / split):
        with problems.collect():
            video = _listed(listed, id, file, root)
            frames = video.images(root / "JPEGImages", problems)
            if frames is not None:
                annotations = _annotations(video, problems)
                grounding = partial(_mevis_masks, masks, annotations, video, frames, file)
                conversations.append(_conversation(Video(id, frames), file, grounding))
    return with_conversations(MEVIS, split, conversations)


def _annotations(video: ListedVideo, problems: Problems) -> dict[str, str]:
    """Return the annotation of each object that an expression about a MeViS video means."""
    found: dict[str, str] = {}
    for expression in video.expressions:
        with problems.collect():
            objects = require_ids(expression.fields, "obj_id", expression.where)
            annotations = require_ids(expression.fields, "anno_id", expression.where)
            if len(objects) != len(annotations):
                raise DataError(f"{expression.where}: 'obj_id' and 'anno_id' must list as many ids each.")
            found |= zip(objects, annotations, strict=True)
    return found


def _mevis_masks(
    masks: MaskDictionary,
    annotations: dict[str, str],
    video: ListedVideo,
    frames: ImageFrames,
    file: Path,
    objects: tuple[str, ...],
) -> RunLengthTracks:
    tracks = {}
    for object_id in objects:
        id = annotations.get(object_id)
        if id is None or id not in masks.tracks:
            raise DataError(f"{file} names object {object_id}, of which {masks.file} has no annotation.")
        tracks[id] = require_track(masks.tracks[id], video, f"{masks.file}, annotation {id}")
    return RunLengthTracks(masks.file, tracks, frames)


def read_ytvos_gcg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read Refer-YouTube-VOS-GCG.

    Args:
        folder: The folder that holds ``ytvos_gcg`` and ``refer_youtube_vos``.
        split: ``train``.
        problems: Collects problems with single captions and videos.

    Returns:
        A conversation of one turn for each caption.

    Raises:
        DataError: When a folder or a file that tells of all videos is missing or damaged.
    """
    root = folder / "refer_youtube_vos"
    file_of_all = root / "meta_expressions" / split / "meta_expressions.json"
    listed = read_meta_expressions(file_of_all, problems)
    conversations = []
    for id, file in _caption_files(folder / "ytvos_gcg" / split):
        with problems.collect():
            video = _listed(listed, id, file, file_of_all)
            frames = video.images(root / split / "JPEGImages", problems)
            if frames is not None:
                grounding = partial(_numbered_masks, root / split / "Annotations" / id, frames, file)
                conversations.append(_conversation(Video(id, frames), file, grounding))
    return with_conversations(YTVOS, split, conversations)


def _numbered_masks(folder: Path, frames: ImageFrames, file: Path, objects: tuple[str, ...]) -> StoredMasks:
    numbers = []
    for id in objects:
        number = as_number(id)
        if number is None or not 0 < number < 255:
            raise DataError(f"{file} names object {id!r}; objects are numbers from 1 to 254.")
        numbers.append(number)
    pixels = IndexedMasks(folder, frames)
    return StoredMasks({index: partial(_any_number, pixels, index, numbers) for index in pixels.annotated})


def _any_number(pixels: IndexedMasks, index: int, numbers: list[int]) -> Mask:
    return np.isin(pixels.numbers(index), numbers)


def read_vidstg_gcg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of VidSTG-GCG.

    Args:
        folder: The folder that holds ``vidstg_gcg``.
        split: ``train``, ``val`` or ``test``.
        problems: Collects problems with single captions and videos.

    Returns:
        A conversation of one turn for each caption.

    Raises:
        DataError: When a folder is missing.
    """
    return _read_segmented(VIDSTG, folder / "vidstg_gcg", split, problems)


def read_hcstvg_gcg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of HC-STVG-GCG.

    Args:
        folder: The folder that holds ``hcstvg_gcg``.
        split: ``train`` or ``val``.
        problems: Collects problems with single captions and videos.

    Returns:
        A conversation of one turn for each caption.

    Raises:
        DataError: When a folder is missing.
    """
    return _read_segmented(HCSTVG, folder / "hcstvg_gcg", split, problems)


def _read_segmented(name: str, root: Path, split: str, problems: Problems) -> Dataset:
    conversations = []
    for id, file in _caption_files(root / f"{split}_captions"):
        with problems.collect():
            place = root / split / id
            frames = ImageFrames(place / "frames", image_files(place / "frames"))
            grounding = partial(_first_masks, place / "masks", frames, file)
            conversations.append(_conversation(Video(id, frames), file, grounding))
    return with_conversations(name, split, conversations)


def _first_masks(folder: Path, frames: ImageFrames, file: Path, objects: tuple[str, ...]) -> IndexedMasks:
    number = as_number(objects[0])
    if number is None:
        raise DataError(f"{file} names object {objects[0]!r}; objects are numbers.")
    place = folder / f"{number:03d}"
    if not place.is_dir():
        raise DataError(f"{place} is missing, whose masks {file} names.")
    return IndexedMasks(place, frames)


def _caption_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the video and the file of each caption in a folder, in order."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json") and not name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} is no folder that can be read ({error.strerror}).") from error
    if not names:
        raise DataError(f"{folder} holds no captions; there is a JSON file for each video.")
    for name in names:
        yield name.removesuffix(".json"), folder / name


def _listed(listed: dict[str, ListedVideo], id: str, file: Path, place: Path) -> ListedVideo:
    if id not in listed:
        raise DataError(f"{file} is about a video that {place} does not list.")
    return listed[id]


def _conversation(video: Video, file: Path, grounding: Grounding) -> Conversation:
    """Make a conversation of a video's caption."""
    as_id(video.id, f"{file}: the name of the video")
    caption = require_field(read_json(file), "caption", str, str(file))
    return Conversation(video, "0", (_turn(file, caption, grounding),))


def _turn(file: Path, caption: str, grounding: Grounding) -> Turn:
    if len(caption) > LONGEST_ANSWER:
        raise DataError(f"{file} has a caption of {len(caption):,} characters; at most {LONGEST_ANSWER:,} are read.")
    answer, marked = parse_marked(caption)
    if not marked:
        raise DataError(f"{file} has no phrase with objects; they are marked as [a dog](0) or [two dogs](0, 1).")
    return Turn(GCG_QUESTION, answer, tuple(_phrase(phrase, file, grounding) for phrase in marked))


def _phrase(phrase: MarkedPhrase, file: Path, grounding: Grounding) -> GroundedPhrase:
    for id in phrase.ids:
        if not is_name(id):
            raise DataError(f"{file} names objects {', '.join(phrase.ids)[:80]!r}; ids are separated by commas.")
    return GroundedPhrase(phrase.start, phrase.end, phrase.ids, grounding(phrase.ids))
