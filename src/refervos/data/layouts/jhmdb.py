"""JHMDB-Sentences: a sentence about the person in each video of J-HMDB; a test set for models trained on A2D-Sentences.

Layout (https://kgavrilyuk.github.io/publication/actor_action/ and http://jhmdb.is.tue.mpg.de, put together as
https://github.com/mttr2021/MTTR does)::

    Rename_Images/<action>/<video>/00001.png
    puppet_mask/<action>/<video>/puppet_mask.mat    part_mask (H, W, T); the last frames may have none
    jhmdb_annotation.txt                            a header, then video_id,query
    jhmdb_sentences_samples_metadata.json           optional, of MTTR: three frames of each video

The field scores three frames of each video, which MTTR has drawn once and published in the last file; put it there to
score the same. Without it, all frames with a mask are annotated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import numpy as np

from refervos.data.files import Problems, read_json, read_rows
from refervos.data.frames import ImageFrames, counted_images
from refervos.data.records import as_id
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.errors import DataError, MissingDependencyError

NAME = "jhmdb-sentences"

MOST_BYTES = 2**28
"""How much memory the masks of a video may take; those of J-HMDB take a hundredth."""

CHOSEN = "jhmdb_sentences_samples_metadata.json"


@dataclass(frozen=True, eq=False)
class PuppetMasks:
    """A truth stored as a MATLAB file with the masks of all frames; all pixels count.

    Attributes:
        file: ``puppet_mask.mat``.
        frames: The video's frames.
        chosen: Indices of the frames that are scored; None for all that have a mask.
    """

    file: Path
    frames: ImageFrames
    chosen: tuple[int, ...] | None = None

    @cached_property
    def annotated(self) -> Sequence[int]:
        """Indices of the frames that are scored; DataError where the file is damaged."""
        if self.chosen is not None:
            return self.chosen
        masked = _masks_in(self.file).shape[2]
        if masked > len(self.frames.files):
            raise DataError(
                f"{self.file} has masks of {masked} frames, {self.frames.folder} has {len(self.frames.files)} frames."
            )
        return range(masked)

    def mask(self, index: int) -> Mask:
        """Read the mask in one annotated frame, bool (H, W); DataError where it is damaged."""
        masks = _masks_in(self.file)
        if index >= masks.shape[2]:
            raise DataError(f"{self.file} has masks of {masks.shape[2]} frames, none of frame {index + 1}.")
        return masks[:, :, index] != 0

    def void(self, index: int) -> None:
        """All pixels count."""
        return None


def read_jhmdb_sentences(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read JHMDB-Sentences.

    Args:
        folder: The folder that holds ``Rename_Images`` and ``puppet_mask``.
        split: ``test``; there is no other.
        problems: Told what is wrong with single videos and sentences.

    Returns:
        A sample for each sentence; its id is ``0``, because each video has one.

    Raises:
        DataError: When a file that tells of all videos is missing or damaged.
        MissingDependencyError: Without SciPy.
    """
    _matlab()
    file = folder / "jhmdb_annotation.txt"
    images, masks = _by_video(folder / "Rename_Images"), _by_video(folder / "puppet_mask")
    chosen = _read_chosen(folder / CHOSEN) if (folder / CHOSEN).exists() else None
    samples: dict[str, Sample] = {}
    for id, query in read_rows(file, 2, problems, header=True):
        with problems.collect():
            as_id(id, f"{file}: a video")
            if id in samples:
                raise DataError(f"{file} has a sentence about video {id} twice.")
            if id not in images:
                raise DataError(f"{folder / 'Rename_Images' / '*' / id} is missing, the frames that {file} asks about.")
            stored = masks.get(id, folder / "puppet_mask" / images[id].parent.name / id) / "puppet_mask.mat"
            if not stored.is_file():
                raise DataError(f"{stored} is missing.")
            frames = counted_images(images[id], problems)
            indices = None if chosen is None else _indices(chosen, id, frames, folder / CHOSEN)
            samples[id] = Sample(Video(id, frames), "0", query, PuppetMasks(stored, frames, indices), has_target=True)
    return Dataset(NAME, split, tuple(samples.values()))


def _by_video(folder: Path) -> dict[str, Path]:
    """The folders of the videos, which are in folders of their actions."""
    try:
        entries = [entry for action in sorted(folder.iterdir()) if action.is_dir() for entry in action.iterdir()]
    except OSError:
        raise DataError(f"{folder} is missing.") from None
    videos: dict[str, Path] = {}
    for entry in entries:
        other = videos.setdefault(entry.name, entry)
        if other != entry and entry.is_dir():
            raise DataError(f"{folder} holds both {other} and {entry}; a video belongs to one action.")
    return videos


def _read_chosen(file: Path) -> dict[str, set[str]]:
    """Names of the frames that are scored, by video."""
    chosen: dict[str, set[str]] = {}
    for entry in content if isinstance(content := read_json(file), list) else [None]:
        if not isinstance(entry, list) or len(entry) != 5 or not all(isinstance(text, str) for text in entry[:2]):
            raise DataError(f"{file} must be a list of [video, frame, masks, count, sentence].")
        chosen.setdefault(entry[0], set()).add(PurePosixPath(entry[1]).stem)
    return chosen


def _indices(chosen: dict[str, set[str]], id: str, frames: ImageFrames, file: Path) -> tuple[int, ...]:
    wanted = chosen.get(id, set())
    indices = tuple(index for index, name in enumerate(frames.names) if name in wanted)
    if not wanted or len(indices) < len(wanted):
        raise DataError(f"{file} names {len(wanted)} frames of video {id}, of which {len(indices)} are there.")
    return indices


def _matlab() -> ModuleType:
    try:
        import scipy.io
    except ImportError as error:
        raise MissingDependencyError(
            "the masks of JHMDB-Sentences need SciPy: pip install 'refervos[data]'."
        ) from error
    return scipy.io


def _masks_in(file: Path) -> Any:
    """All masks of a video (H, W, T)."""
    try:
        told = {name: (shape, kind) for name, shape, kind in _matlab().whosmat(file)}
        shape, kind = told.get("part_mask", ((), ""))
        size = math.prod(shape) * (1 if kind in ("uint8", "int8", "logical") else 8)
        if size > MOST_BYTES:
            raise DataError(f"{file}: 'part_mask' takes {size:,} bytes; at most {MOST_BYTES:,} are read.")
        masks = np.asarray(_matlab().loadmat(file, variable_names=["part_mask"])["part_mask"])
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{file} is missing.") from None
    except Exception as error:  # damaged files fail in every way there is
        raise DataError(f"{file} has no masks that can be read: {error}.") from error
    if masks.ndim != 3:
        raise DataError(f"{file}: 'part_mask' must have a height, a width and a number of frames.")
    return masks
