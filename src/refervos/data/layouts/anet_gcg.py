"""ActivityNet-Entities-GCG: grounded captions whose objects have a mask in one frame each.

Layout (VideoGLaMM: ``utils/video_gcg_anet.py`` of https://github.com/mbzuai-oryx/VideoGLaMM, commit 6b15b1e), below the
folder that is called ``video_dataset`` there::

    activitynet_entities_gcg/anns/<video>____<segment>.json
    activitynet_entities_gcg/video_frames/<video>/<segment>/00.jpg
    activitynet_entities_gcg/masks/<video>____<segment>/<object>/mask.png    0 and 255; the object in two digits

Each JSON file holds a ``refined_caption``, in which phrases are marked as ``<p> a man </p> [SEG:1]``, and in
``seg_token_to_obj`` the ``frame_id`` of each object by its token: the number of the frame in which it has its mask.
There is one split, for training.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from refervos.data.conversations import (
    GCG_QUESTION,
    LONGEST_ANSWER,
    Conversation,
    GroundedPhrase,
    Turn,
    parse_numbered_tags,
    with_conversations,
)
from refervos.data.files import Problems, binary_mask, read_indices, read_json
from refervos.data.frames import ImageFrames, image_files, require_frame_size
from refervos.data.ground_truth import StoredMasks
from refervos.data.records import as_id, as_number, require_field
from refervos.data.sample import Dataset, Mask, Video
from refervos.errors import DataError

NAME = "anet-gcg"

BETWEEN = "____"
"""What stands between a video and its segment in the names of files."""


def read_anet_gcg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read ActivityNet-Entities-GCG.

    Args:
        folder: The folder that holds ``activitynet_entities_gcg``.
        split: ``train``.
        problems: Collects problems with single captions and segments.

    Returns:
        A conversation of one turn for each segment of a video.

    Raises:
        DataError: When a folder is missing.
    """
    root = folder / "activitynet_entities_gcg"
    try:
        names = sorted(name for name in os.listdir(root / "anns") if name.endswith(".json"))
    except OSError as error:
        raise DataError(f"{root / 'anns'} is no folder that can be read ({error.strerror}).") from error
    conversations = []
    for name in names:
        with problems.collect():
            conversations.append(_conversation(root, name.removesuffix(".json")))
    return with_conversations(NAME, split, conversations)


def _conversation(root: Path, id: str) -> Conversation:
    file = root / "anns" / f"{id}.json"
    as_id(id, f"{file}: the name of the segment")
    video, between, segment = id.partition(BETWEEN)
    if not (video and between and segment):
        raise DataError(f"{file} must be named after a video and its segment, as in v_abc{BETWEEN}0.json.")
    place = root / "video_frames" / video / segment
    frames = ImageFrames(place, image_files(place))
    content = read_json(file)
    caption = require_field(content, "refined_caption", str, str(file))
    if len(caption) > LONGEST_ANSWER:
        raise DataError(f"{file} has a caption of {len(caption):,} characters; at most {LONGEST_ANSWER:,} are read.")
    answer, marked = parse_numbered_tags(caption)
    if not marked:
        raise DataError(f"{file} has no phrase with an object; they are marked as <p> a man </p> [SEG:1].")
    objects = require_field(content, "seg_token_to_obj", dict, str(file))
    masks = {
        number: _masks(root / "masks" / id, frames, number, objects, file)
        for number in dict.fromkeys(phrase.ids[0] for phrase in marked)
    }
    phrases = tuple(GroundedPhrase(phrase.start, phrase.end, phrase.ids, masks[phrase.ids[0]]) for phrase in marked)
    return Conversation(Video(id, frames), "0", (Turn(GCG_QUESTION, answer, phrases),))


def _masks(folder: Path, frames: ImageFrames, number: str, objects: Any, file: Path) -> StoredMasks:
    token = f"[SEG:{number}]"
    record = require_field(objects, token, dict, f"{file}, 'seg_token_to_obj'")
    frame = require_field(record, "frame_id", int, f"{file}, object {token}")
    numbers = [as_number(name) for name in frames.names]
    if frame not in numbers:
        raise DataError(f"{file}: object {token} is annotated in frame {frame}, which {frames.folder} does not have.")
    index = numbers.index(frame)
    return StoredMasks({index: partial(_decode, folder / number.zfill(2) / "mask.png", frames, index)})


def _decode(path: Path, frames: ImageFrames, index: int) -> Mask:
    mask = binary_mask(read_indices(path), path)
    require_frame_size(frames, index, (mask.shape[0], mask.shape[1]), str(path))
    return mask
