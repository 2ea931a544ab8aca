"""JHMDB-Sentences: one expression per J-HMDB video about its person; a test set for models trained on A2D-Sentences.

Layout (https://kgavrilyuk.github.io/publication/actor_action/ and http://jhmdb.is.tue.mpg.de, combined as in
https://github.com/mttr2021/MTTR)::

    Rename_Images/<action>/<video>/00001.png
    puppet_mask/<action>/<video>/puppet_mask.mat    part_mask (H, W, T); the last frames may have none
    jhmdb_annotation.txt                            a header, then video_id,query
    jhmdb_sentences_samples_metadata.json           optional, from MTTR: three frames of each video

Published results score three frames of each video, which MTTR sampled once and published in the last file; add it to
score the same frames. Without it, all frames with a mask count as annotated.
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
from refervos.data.frames import ImageFrames, numbered_images
from refervos.data.records import as_id
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.errors import DataError, MissingDependencyError

NAME = "jhmdb-sentences"

MOST_BYTES = 2**28
"""Maximum size of the masks of a video; those of J-HMDB take a hundredth."""

SCORED = "jhmdb_sentences_samples_metadata.json"


@dataclass(frozen=True, eq=False)
class PuppetMasks:
    """Ground truth stored as a MATLAB file with the masks of all frames; no void pixels.

    Attributes:
        file: ``puppet_mask.mat``.
        frames: The video's frames.
        scored: Indices of the scored frames; None for all frames with a mask.
    """

    file: Path
    frames: ImageFrames
    scored: tuple[int, ...] | None = None

    @cached_property
    def annotated(self) -> Sequence[int]:
        """Indices of the scored frames; DataError when the file is damaged."""
        if self.scored is not None:
            return self.scored
        masked = _masks_in(self.file).shape[2]
        if masked > len(self.frames.files):
            raise DataError(
                f"{self.file} has masks for {masked} frames, {self.frames.folder} has {len(self.frames.files)} frames."
            )
        return range(masked)

    def mask(self, index: int) -> Mask:
        """Read the mask of one annotated frame, bool (H, W); DataError when it is damaged."""
        masks = _masks_in(self.file)
        if index >= masks.shape[2]:
            raise DataError(f"{self.file} has masks for {masks.shape[2]} frames, none for frame {index + 1}.")
        return masks[:, :, index] != 0

    def void(self, index: int) -> None:
        """Return None: there are no void pixels."""
        return None


def read_jhmdb_sentences(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read JHMDB-Sentences.

    Args:
        folder: Folder of ``Rename_Images`` and ``puppet_mask``.
        split: ``test``, the only split.
        problems: Collects problems with single videos and expressions.

    Returns:
        A sample for each expression; its id is ``0``, as each video has one.

    Raises:
        DataError: When a file that lists all videos is missing or damaged.
        MissingDependencyError: When SciPy is not installed.
    """
    _matlab()
    file = folder / "jhmdb_annotation.txt"
    images, masks = _by_video(folder / "Rename_Images"), _by_video(folder / "puppet_mask")
    scored = _read_scored(folder / SCORED) if (folder / SCORED).exists() else None
    samples: dict[str, Sample] = {}
    for id, query in read_rows(file, 2, problems, header=True):
        with problems.collect():
            as_id(id, f"{file}: a video")
            if id in samples:
                raise DataError(f"{file} has two expressions about video {id}.")
            if id not in images:
                raise DataError(f"{folder / 'Rename_Images' / '*' / id}, listed in {file}, is missing.")
            stored = masks.get(id, folder / "puppet_mask" / images[id].parent.name / id) / "puppet_mask.mat"
            if not stored.is_file():
                raise DataError(f"{stored} is missing.")
            frames = numbered_images(images[id], problems)
            indices = None if scored is None else _indices(scored, id, frames, folder / SCORED)
            samples[id] = Sample(Video(id, frames), "0", query, PuppetMasks(stored, frames, indices), has_target=True)
    return Dataset(NAME, split, tuple(samples.values()))


def _by_video(folder: Path) -> dict[str, Path]:
    """Find the folders of the videos, which are grouped by action."""
    try:
        entries = [entry for action in sorted(folder.iterdir()) if action.is_dir() for entry in action.iterdir()]
    except OSError:
        raise DataError(f"{folder} is missing.") from None
    videos: dict[str, Path] = {}
    for entry in entries:
        other = videos.setdefault(entry.name, entry)
        if other != entry and entry.is_dir():
            raise DataError(f"{folder} contains both {other} and {entry}; a video belongs to one action.")
    return videos


def _read_scored(file: Path) -> dict[str, set[str]]:
    """Read the names of the scored frames, by video."""
    scored: dict[str, set[str]] = {}
    for entry in content if isinstance(content := read_json(file), list) else [None]:
        if not isinstance(entry, list) or len(entry) != 5 or not all(isinstance(text, str) for text in entry[:2]):
            raise DataError(f"{file} must be a list of [video, frame, masks, count, sentence].")
        scored.setdefault(entry[0], set()).add(PurePosixPath(entry[1]).stem)
    return scored


def _indices(scored: dict[str, set[str]], id: str, frames: ImageFrames, file: Path) -> tuple[int, ...]:
    wanted = scored.get(id, set())
    indices = tuple(index for index, name in enumerate(frames.names) if name in wanted)
    if not wanted or len(indices) < len(wanted):
        raise DataError(f"{file} lists {len(wanted)} frames of video {id}, of which {len(indices)} exist.")
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
    """Read all masks of a video, (H, W, T)."""
    try:
        variables = {name: (shape, kind) for name, shape, kind in _matlab().whosmat(file)}
        shape, kind = variables.get("part_mask", ((), ""))
        size = math.prod(shape) * (1 if kind in ("uint8", "int8", "logical") else 8)
        if size > MOST_BYTES:
            raise DataError(f"{file}: 'part_mask' takes {size:,} bytes; at most {MOST_BYTES:,} are read.")
        masks = np.asarray(_matlab().loadmat(file, variable_names=["part_mask"])["part_mask"])
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{file} is missing.") from None
    except Exception as error:  # damaged files raise exceptions of many types
        raise DataError(f"{file} has no readable masks: {error}.") from error
    if masks.ndim != 3:
        raise DataError(f"{file}: 'part_mask' must have three dimensions: height, width, frames.")
    return masks
