"""The published test set of grounded conversation generation, the union of splits of three sets.

``ValGCGDataset`` of VideoGLaMM (``utils/dataset.py`` of https://github.com/mbzuai-oryx/VideoGLaMM, commit 6b15b1e)
concatenates video_gcg test, MeViS-GCG valid_u and VidSTG-GCG val.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from refervos.data.conversations import with_conversations
from refervos.data.files import Problems
from refervos.data.layouts.gcg_captions import read_mevis_gcg, read_vidstg_gcg
from refervos.data.layouts.video_gcg import read_video_gcg
from refervos.data.sample import Dataset

NAME = "gcg"

SETS = ((read_video_gcg, "test"), (read_mevis_gcg, "valid_u"), (read_vidstg_gcg, "val"))
"""Reader and split of each set."""


def read_gcg(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read the published test set.

    Args:
        folder: Folder of all three sets (``video_dataset``).
        split: ``test``.
        problems: Collects problems with single captions and videos.

    Returns:
        The conversations of all sets; the id of a video starts with the name of its set.

    Raises:
        DataError: When a folder or a file that describes all videos is missing or damaged.
    """
    conversations = []
    for read, of_set in SETS:
        dataset = read(folder, of_set, problems)
        for conversation in dataset.conversations:
            video = replace(conversation.video, id=f"{dataset.name}_{conversation.video.id}")
            conversations.append(replace(conversation, video=video))
    return with_conversations(NAME, split, conversations)
