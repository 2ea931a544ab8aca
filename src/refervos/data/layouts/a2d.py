"""A2D-Sentences: expressions about actors; three to five frames of each video have masks.

Layout (https://kgavrilyuk.github.io/publication/actor_action/ and
https://web.eecs.umich.edu/~jjcorso/r/a2d/, combined as in https://github.com/mttr2021/MTTR)::

    Release/videoset.csv                    no header; the first column is the video, the ninth 0 (train) or 1 (test)
    Release/clips320H/<video>.mp4           or Release/pngs320H/<video>/00001.png
    text_annotations/a2d_annotation.txt     a header, then video_id,instance_id,query
    text_annotations/a2d_missed_videos.txt  videos without expressions, one per line
    text_annotations/a2d_annotation_with_instances/<video>/00030.h5    named by the frame number, from 1

An HDF5 file has ``instance``, the object ids of the frame, and ``reMask``, their transposed masks: (N, W, H), or (W, H)
for a single object. As in MTTR, a frame without the target object is not scored, and the expression about instance
"1 (copy)", a mistake in the data, is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from refervos.data.files import PUBLISHED_ENCODINGS, Problems, read_rows, read_text
from refervos.data.frames import VideoDecoder, VideoFileFrames, numbered_images
from refervos.data.records import as_id, as_number, check_image_size
from refervos.data.sample import Dataset, Frames, Mask, Sample, Video
from refervos.errors import DataError, MissingDependencyError

NAME = "a2d-sentences"

_SUBSETS = {"train": "0", "test": "1"}

MOST_INSTANCES = 10_000
"""Maximum number of instances in a frame."""

_MISTAKE = "1 (copy)"


@dataclass(frozen=True, eq=False)
class InstanceMasks:
    """Ground truth stored as an HDF5 file per annotated frame; no void pixels.

    Attributes:
        folder: Folder of the video's files.
        instance: Id of the target object.
    """

    folder: Path
    instance: int

    @cached_property
    def _positions(self) -> dict[int, tuple[str, int]]:
        """File of each frame that shows the object and the object's position in it, by frame index."""
        positions: dict[int, tuple[str, int]] = {}
        frames: dict[int, str] = {}
        for name in sorted(name for name in os.listdir(self.folder) if name.endswith(".h5") and name[0] != "."):
            number = as_number(name.removesuffix(".h5"))
            if not number:
                raise DataError(f"{self.folder / name} is not named by a frame number, such as 00030.h5.")
            other = frames.setdefault(number, name)
            if other != name:
                raise DataError(f"{self.folder} contains both {other} and {name}; each frame must have one file.")
            with _opened(self.folder / name) as file:
                masks = _masks(file)
                count = 1 if len(masks.shape) == 2 else masks.shape[0]
                if file["instance"].size > MOST_INSTANCES:
                    raise DataError(f"{self.folder / name} lists more than {MOST_INSTANCES:,} instances.")
                # One published file lists one instance more than it has masks.
                ids = np.ravel(file["instance"][()]).astype(int).tolist()[:count]
            if self.instance in ids:
                positions[number - 1] = name, ids.index(self.instance)
        return dict(sorted(positions.items()))

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of the annotated frames that show the object; DataError when a file is damaged."""
        return tuple(self._positions)

    def mask(self, index: int) -> Mask:
        """Read the mask of one annotated frame, bool (H, W); DataError when it is damaged."""
        name, position = self._positions[index]
        with _opened(self.folder / name) as file:
            masks = _masks(file)
            mask = masks[()] if len(masks.shape) == 2 else masks[position]
            return np.asarray(mask).T != 0

    def void(self, index: int) -> None:
        """Return None: there are no void pixels."""
        return None


def read_a2d_sentences(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of A2D-Sentences.

    Args:
        folder: Folder of ``Release`` and ``text_annotations``.
        split: ``train`` or ``test``.
        problems: Collects problems with single videos and expressions.

    Returns:
        A sample for each expression.

    Raises:
        DataError: When a file that lists all videos is missing or damaged.
        MissingDependencyError: When h5py is not installed.
    """
    _hdf5()
    texts = folder / "text_annotations"
    missed = set(read_text(texts / "a2d_missed_videos.txt", PUBLISHED_ENCODINGS).split())
    rows = read_rows(folder / "Release" / "videoset.csv", 9, problems)
    videos = {row[0] for row in rows if row[8] == _SUBSETS[split]} - missed
    file = texts / "a2d_annotation.txt"
    queries: dict[str, dict[int, str]] = {}
    for id, instance, query in read_rows(file, 3, problems, header=True):
        if id not in videos or instance == _MISTAKE:
            continue
        with problems.collect():
            as_id(id, f"{file}: a video")
            number = as_number(instance)
            if number is None:
                raise DataError(f"{file}: the instance {instance[:40]!r} of video {id} is not a number.")
            if number in queries.setdefault(id, {}):
                raise DataError(f"{file} has two expressions about instance {instance} of video {id}.")
            queries[id][number] = query
    decoder = VideoDecoder()
    samples: list[Sample] = []
    for id, expressions in queries.items():
        with problems.collect():
            masks = texts / "a2d_annotation_with_instances" / id
            if not masks.is_dir():
                raise DataError(f"{masks} is missing.")
            video = Video(id, _frames(folder / "Release", id, decoder, problems))
            for number, query in expressions.items():
                ground_truth, name = InstanceMasks(masks, number), str(number)
                samples.append(Sample(video, name, query, ground_truth, has_target=True, object_ids=(name,)))
    return Dataset(NAME, split, tuple(samples))


def _frames(release: Path, id: str, decoder: VideoDecoder, problems: Problems) -> Frames:
    images, clip = release / "pngs320H" / id, release / "clips320H" / f"{id}.mp4"
    if images.is_dir():
        return numbered_images(images, problems)
    if not clip.is_file():
        raise DataError(f"{clip} is missing.")
    return VideoFileFrames(clip, decoder)


def _masks(file: Any) -> Any:
    """Return the masks of an open HDF5 file after checking their size, which even a small file may overstate."""
    masks = file["reMask"]
    if len(masks.shape) not in (2, 3):
        raise DataError(f"{file.filename}: 'reMask' must have two or three dimensions, not {len(masks.shape)}.")
    width, height = masks.shape[-2:]
    check_image_size(height, width, f"{file.filename}, 'reMask'")
    return masks


def _hdf5() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("the masks of A2D-Sentences need h5py: pip install 'refervos[data]'.") from error
    return h5py


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an HDF5 file; any error becomes a DataError that names it."""
    try:
        with _hdf5().File(path, "r") as file:
            yield file
    except (DataError, MissingDependencyError):
        raise
    except FileNotFoundError:
        raise DataError(f"{path} is missing.") from None
    except Exception as error:  # damaged files raise exceptions of many types
        raise DataError(f"{path} has no readable masks: {error}.") from error
