"""``video_gcg``: grounded captions of BURST and YouTube-VIS 2019 videos.

Layout (VideoGLaMM: ``utils/video_gcg_dataset.py`` and ``gcg_data_gen/burst_ytvis_gcg`` of
https://github.com/mbzuai-oryx/VideoGLaMM, commit 6b15b1e), below its folder ``video_dataset``::

    video_gcg/instruction_data/train.json    val.json    test.json
    ytvis/vos/train/JPEGImages/<file>        frames of YouTube-VIS videos of all splits
    burst/frames/train/<file>                frames of BURST videos of train; burst/frames/val of val and test

A file has YouTube-VIS's layout (``videos``, ``annotations`` with a segmentation per frame) and, for each video, a
``dense_cap``: the ``caption``, and in ``token_pos`` and ``mask_id`` pairs of a word's index (the caption split at
spaces) and its annotation. The target of a word with several annotations is their union. The grounded phrase is the
word including punctuation. ``dataset_split``, or ``metadata.dataset``, is ``yt19`` for YouTube-VIS.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from refervos.data.conversations import (
    GCG_QUESTION,
    LONGEST_ANSWER,
    Conversation,
    GroundedPhrase,
    Turn,
    with_conversations,
)
from refervos.data.files import Problems, read_json, require_inside
from refervos.data.frames import ImageFrames, require_frame_size
from refervos.data.ground_truth import StoredMasks, decode_segmentations
from refervos.data.layouts.coco_objects import file_names_of
from refervos.data.records import records_of, require_field, require_ids, require_new_id, require_size
from refervos.data.sample import Dataset, Mask, Video
from refervos.errors import DataError

NAME = "video-gcg"

YOUTUBE_VIS = "yt19"


def read_video_gcg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of the grounded captions of BURST and YouTube-VIS.

    Args:
        folder: Folder of ``video_gcg``, ``burst`` and ``ytvis``.
        split: ``train``, ``val`` or ``test``.
        problems: Collects problems with single videos, annotations and captions.

    Returns:
        A conversation of one turn for each video with a caption.

    Raises:
        DataError: When the file of the split is missing or damaged.
    """
    file = folder / "video_gcg" / "instruction_data" / f"{split}.json"
    content = read_json(file)
    tracks: dict[str, list[Any]] = {}
    for where, record in records_of(content, "annotations", file):
        with problems.collect():
            id = require_new_id(record, tracks, "annotation", file, where)
            tracks[id] = require_field(record, "segmentations", list, where)
    conversations: dict[str, Conversation] = {}
    without_caption = 0
    for where, record in records_of(content, "videos", file):
        with problems.collect():
            id = require_new_id(record, conversations, "video", file, where)
            caption = require_field(record, "dense_cap", dict, where)
            if caption.get("caption") is None:
                without_caption += 1
                continue
            frames, size = _frames(folder, record, split, where, problems)
            turn = _turn(caption, tracks, frames, size, f"{where}, 'dense_cap'", problems)
            conversations[id] = Conversation(Video(id, frames, size), "0", (turn,))
    if without_caption:
        problems.note(f"{file} has {without_caption:,} videos without a caption, which are left out.")
    return with_conversations(NAME, split, tuple(conversations.values()))


def _frames(
    folder: Path, record: Any, split: str, where: str, problems: Problems
) -> tuple[ImageFrames, tuple[int, int]]:
    """Find the frames of a video and their size."""
    size, names = require_size(record, where), file_names_of(record, where)
    metadata = record.get("metadata")
    source = metadata.get("dataset") if isinstance(metadata, dict) else record.get("dataset_split")
    root = folder / "burst" / "frames" / ("train" if split == "train" else "val")
    if source == YOUTUBE_VIS:
        root = folder / "ytvis" / "vos" / "train" / "JPEGImages"
    for name in names:
        if not require_inside(root, name, where, problems).is_file():
            raise DataError(f"{root / name} is missing.")
    frames = ImageFrames(root, tuple(names))
    return frames, require_frame_size(frames, 0, size, where)


def _turn(
    caption: Any,
    tracks: dict[str, list[Any]],
    frames: ImageFrames,
    size: tuple[int, int],
    where: str,
    problems: Problems,
) -> Turn:
    text = require_field(caption, "caption", str, where)
    if len(text) > LONGEST_ANSWER:
        raise DataError(f"{where} has {len(text):,} characters; at most {LONGEST_ANSWER:,} are allowed.")
    words = text.split(" ")
    positions, ids = require_field(caption, "token_pos", list, where), require_ids(caption, "mask_id", where)
    if len(positions) != len(ids):
        # The script that wrote the files lists a word even if its object is unknown; loaders pair up the rest.
        problems.note(f"{where} has {len(positions)} words with objects and {len(ids)} objects; the rest is left out.")
    targets: dict[int, list[str]] = {}
    for position, id in zip(positions, ids, strict=False):
        if not isinstance(position, int) or isinstance(position, bool) or not 0 <= position < len(words):
            raise DataError(f"{where}: 'token_pos' must be indices of the {len(words)} words of the caption.")
        if id not in tracks:
            raise DataError(f"{where} refers to annotation {id}, which is missing.")
        if len(tracks[id]) != len(frames.files):
            raise DataError(
                f"{where} refers to annotation {id}, which has {len(tracks[id])} segmentations; the video has "
                f"{len(frames.files)} frames."
            )
        targets.setdefault(position, []).append(id)
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    phrases = []
    for position, objects in sorted(targets.items()):
        word = f"{where}, word {position}"
        readers = {
            index: partial(_decode, [tracks[id][index] for id in objects], size, f"{word}, frame {name}")
            for index, name in enumerate(frames.names)
        }
        end = starts[position] + len(words[position])
        phrases.append(GroundedPhrase(starts[position], end, tuple(dict.fromkeys(objects)), StoredMasks(readers)))
    return Turn(GCG_QUESTION, text, tuple(phrases))


def _decode(segmentations: Sequence[Any], size: tuple[int, int], where: str) -> Mask:
    return decode_segmentations([stored for stored in segmentations if stored is not None], size, where)
