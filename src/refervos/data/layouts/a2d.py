"""A2D-Sentences: sentences about actors; three to five frames of each video have masks.

Layout (https://kgavrilyuk.github.io/publication/actor_action/ and
https://web.eecs.umich.edu/~jjcorso/r/a2d/, put together as https://github.com/mttr2021/MTTR does)::

    Release/videoset.csv                    no header; the first column is the video, the ninth 0 (train) or 1 (test)
    Release/clips320H/<video>.mp4           or Release/pngs320H/<video>/00001.png
    text_annotations/a2d_annotation.txt     a header, then video_id,instance_id,query
    text_annotations/a2d_missed_videos.txt  videos without sentences, one a line
    text_annotations/a2d_annotation_with_instances/<video>/00030.h5    named after the frame, counted from 1

An HDF5 file holds ``instance``, the ids of the objects in the frame, and ``reMask``, their masks with rows and columns
exchanged: (N, W, H), or (W, H) of a single object. A frame without the object that a sentence is about is not scored,
as in MTTR. The sentence about instance "1 (copy)" is a mistake in the data and left out, as there.
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
from refervos.data.frames import VideoDecoder, VideoFileFrames, counted_images
from refervos.data.records import as_id, as_number, require_size
from refervos.data.sample import Dataset, Frames, Mask, Sample, Video
from refervos.errors import DataError, MissingDependencyError

NAME = "a2d-sentences"

_SUBSETS = {"train": "0", "test": "1"}

MOST_INSTANCES = 10_000
"""How many instances a frame may have."""

_MISTAKE = "1 (copy)"


@dataclass(frozen=True, eq=False)
class InstanceMasks:
    """A truth stored as an HDF5 file for each annotated frame; all pixels count.

    Attributes:
        folder: Where the files of the video are.
        instance: The id of the object meant.
    """

    folder: Path
    instance: int

    @cached_property
    def _positions(self) -> dict[int, tuple[str, int]]:
        """The file of each frame that shows the object and where it is in there, by the frame's index."""
        positions: dict[int, tuple[str, int]] = {}
        frames: dict[int, str] = {}
        for name in sorted(name for name in os.listdir(self.folder) if name.endswith(".h5") and name[0] != "."):
            number = as_number(name.removesuffix(".h5"))
            if not number:
                raise DataError(f"{self.folder / name} is not named after a frame, such as 00030.h5.")
            other = frames.setdefault(number, name)
            if other != name:
                raise DataError(f"{self.folder} holds both {other} and {name}; each frame has one file.")
            with _opened(self.folder / name) as file:
                masks = _masks(file)
                count = 1 if len(masks.shape) == 2 else masks.shape[0]
                if file["instance"].size > MOST_INSTANCES:
                    raise DataError(f"{self.folder / name} lists more than {MOST_INSTANCES:,} instances.")
                # One published file lists an instance more than it has masks.
                ids = np.ravel(file["instance"][()]).astype(int).tolist()[:count]
            if self.instance in ids:
                positions[number - 1] = name, ids.index(self.instance)
        return dict(sorted(positions.items()))

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of the frames that are annotated and show the object; DataError where a file is damaged."""
        return tuple(self._positions)

    def mask(self, index: int) -> Mask:
        """Read the mask in one annotated frame, bool (H, W); DataError where it is damaged."""
        name, position = self._positions[index]
        with _opened(self.folder / name) as file:
            masks = _masks(file)
            mask = masks[()] if len(masks.shape) == 2 else masks[position]
            return np.asarray(mask).T != 0

    def void(self, index: int) -> None:
        """All pixels count."""
        return None


def read_a2d_sentences(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read a split of A2D-Sentences.

    Args:
        folder: The folder that holds ``Release`` and ``text_annotations``.
        split: ``train`` or ``test``.
        problems: Told what is wrong with single videos and sentences.

    Returns:
        A sample for each sentence.

    Raises:
        DataError: When a file that tells of all videos is missing or damaged.
        MissingDependencyError: Without h5py.
    """
    _hdf5()
    texts = folder / "text_annotations"
    missed = set(read_text(texts / "a2d_missed_videos.txt", PUBLISHED_ENCODINGS).split())
    rows = read_rows(folder / "Release" / "videoset.csv", 9, problems)
    of_split = {row[0] for row in rows if row[8] == _SUBSETS[split]} - missed
    file = texts / "a2d_annotation.txt"
    asked: dict[str, dict[int, str]] = {}
    for id, instance, query in read_rows(file, 3, problems, header=True):
        if id not in of_split or instance == _MISTAKE:
            continue
        with problems.collect():
            as_id(id, f"{file}: a video")
            number = as_number(instance)
            if number is None:
                raise DataError(f"{file}: the instance {instance[:40]!r} of video {id} is no number.")
            if number in asked.setdefault(id, {}):
                raise DataError(f"{file} has a sentence about instance {instance} of video {id} twice.")
            asked[id][number] = query
    decoder = VideoDecoder()
    samples: list[Sample] = []
    for id, sentences in asked.items():
        with problems.collect():
            masks = texts / "a2d_annotation_with_instances" / id
            if not masks.is_dir():
                raise DataError(f"{masks} is missing.")
            video = Video(id, _frames(folder / "Release", id, decoder, problems))
            for number, query in sentences.items():
                truth, name = InstanceMasks(masks, number), str(number)
                samples.append(Sample(video, name, query, truth, has_target=True, object_ids=(name,)))
    return Dataset(NAME, split, tuple(samples))


def _frames(release: Path, id: str, decoder: VideoDecoder, problems: Problems) -> Frames:
    images, clip = release / "pngs320H" / id, release / "clips320H" / f"{id}.mp4"
    if images.is_dir():
        return counted_images(images, problems)
    if not clip.is_file():
        raise DataError(f"{clip} is missing.")
    return VideoFileFrames(clip, decoder)


def _masks(file: Any) -> Any:
    """The masks in an open HDF5 file, which may tell any size without being large itself."""
    masks = file["reMask"]
    if len(masks.shape) not in (2, 3):
        raise DataError(f"{file.filename}: 'reMask' must have two or three dimensions, not {len(masks.shape)}.")
    width, height = masks.shape[-2:]
    require_size(height, width, f"{file.filename}, 'reMask'")
    return masks


def _hdf5() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("the masks of A2D-Sentences need h5py: pip install 'refervos[data]'.") from error
    return h5py


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open an HDF5 file; what is wrong with it becomes a DataError that names it."""
    try:
        with _hdf5().File(path, "r") as file:
            yield file
    except (DataError, MissingDependencyError):
        raise
    except FileNotFoundError:
        raise DataError(f"{path} is missing.") from None
    except Exception as error:  # damaged files fail in every way there is
        raise DataError(f"{path} has no masks that can be read: {error}.") from error
