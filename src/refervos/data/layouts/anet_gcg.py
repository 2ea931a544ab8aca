"""ActivityNet-Entities-GCG: grounded captions with a mask of each object in one frame.

Layout (VideoGLaMM: ``utils/video_gcg_anet.py`` of https://github.com/mbzuai-oryx/VideoGLaMM, commit 6b15b1e), below its
folder ``video_dataset``::

    activitynet_entities_gcg/anns/<video>____<segment>.json
    activitynet_entities_gcg/video_frames/<video>/<segment>/00.jpg
    activitynet_entities_gcg/masks/<video>____<segment>/<object>/mask.png    0 and 255; the object in two digits

Each JSON file has a ``refined_caption`` with phrases marked as ``<p> a man </p> [SEG:1]``, and ``seg_token_to_obj``,
which maps each token to a ``frame_id``: the number of the frame with the object's mask. The only split is for training.
"""

from __future__ import annotations

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
from refervos.data.files import Problems, binary_mask, list_folder, read_indices, read_json
from refervos.data.frames import ImageFrames, image_files, require_frame_size
from refervos.data.ground_truth import StoredMasks
from refervos.data.records import as_id, as_number, require_field
from refervos.data.sample import Dataset, Mask, Video
from refervos.errors import DataError

NAME = "anet-gcg"

SEPARATOR = "____"
"""Separator of video and segment in file names."""


def read_anet_gcg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read ActivityNet-Entities-GCG.

    Args:
        folder: Folder of ``activitynet_entities_gcg``.
        split: ``train``.
        problems: Collects problems with single captions and segments.

    Returns:
        A conversation of one turn for each segment of a video.

    Raises:
        DataError: When a folder is missing.
    """
    root = folder / "activitynet_entities_gcg"
    conversations = []
    for name in (name for name in list_folder(root / "anns") if name.endswith(".json")):
        with problems.collect():
            conversations.append(_conversation(root, name.removesuffix(".json")))
    return with_conversations(NAME, split, conversations)


def _conversation(root: Path, id: str) -> Conversation:
    file = root / "anns" / f"{id}.json"
    as_id(id, f"{file}: the name of the segment")
    video, separator, segment = id.partition(SEPARATOR)
    if not (video and separator and segment):
        raise DataError(f"{file} must be named by a video and its segment, such as v_abc{SEPARATOR}0.json.")
    images = root / "video_frames" / video / segment
    frames = ImageFrames(images, image_files(images))
    content = read_json(file)
    caption = require_field(content, "refined_caption", str, str(file))
    if len(caption) > LONGEST_ANSWER:
        raise DataError(f"{file} has a caption of {len(caption):,} characters; at most {LONGEST_ANSWER:,} are allowed.")
    answer, marked = parse_numbered_tags(caption)
    if not marked:
        raise DataError(f"{file} has no phrase with an object; mark phrases as <p> a man </p> [SEG:1].")
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
