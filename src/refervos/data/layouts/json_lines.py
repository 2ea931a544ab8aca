"""Your own data as JSON lines: a line for each expression, as ``docs/data/own-data.md`` describes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from refervos.data.files import (
    IMAGE_SUFFIXES,
    Problems,
    binary_mask,
    decode_rle,
    inside,
    read_indices,
    read_lines,
)
from refervos.data.frames import (
    FileFrames,
    ImageFrames,
    VideoDecoder,
    VideoFileFrames,
    holds_several,
    image_files,
)
from refervos.data.records import as_number, take, take_id
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.errors import DataError
from refervos.files.plain_text import parse_json

NAME = "json-lines"

FILE = "expressions.jsonl"
"""The file that is read from a folder."""

FIELDS = ("video", "expression", "masks", "value", "void", "no_target", "video_id", "expression_id", "split", "kind")

ALL = "all"
"""The split that every line belongs to."""


def read_json_lines(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read your own data.

    Args:
        folder: A ``.jsonl`` file, or the folder that holds ``expressions.jsonl``.
        split: ``all``, or what ``split`` says in the lines wanted.
        problems: Told what is wrong with single lines.

    Returns:
        A sample for each line.

    Raises:
        DataError: When the file is missing or no line is of this split.
    """
    file = folder / FILE if folder.is_dir() else folder
    videos = _Videos(file.parent)
    samples: dict[str, dict[str, Sample]] = {}
    splits = {ALL}
    told: Counter[str] = Counter()
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        with problems.collect():
            record = _record(line, where)
            splits.add(take(record, "split", str, where) if "split" in record else ALL)
            video_id = _video_id(record, file.parent, where, problems)
            id = take_id(record, "expression_id", where) if "expression_id" in record else str(told[video_id])
            told[video_id] += 1
            if split not in (ALL, record.get("split")):
                continue
            about = samples.setdefault(video_id, {})
            if id in about:
                raise DataError(f"{where}: expression {id!r} is there twice about video {video_id!r}.")
            about[id] = _sample(record, id, videos.open(video_id, record["video"], where), file.parent, where, problems)
    if split not in splits:
        raise DataError(f"{file} has no line with split {split!r}; its splits are {', '.join(sorted(splits))}.")
    return Dataset(NAME, split, tuple(sample for about in samples.values() for sample in about.values()))


def _video_id(record: dict[str, Any], base: Path, where: str, problems: Problems) -> str:
    """What a line calls its video: the name of the folder or file where it does not say."""
    path = inside(base, take(record, "video", str, where), where, problems)
    if "video_id" not in record:
        record = {"video_id": path.name if path.is_dir() else path.stem}
    return take_id(record, "video_id", where)


@dataclass(frozen=True, eq=False)
class _Opened:
    """A video that lines are about.

    Attributes:
        path: The folder of frames, the video file or the image.
        frames: What is in it.
        video: What samples know of it.
    """

    path: Path
    frames: FileFrames
    video: Video


@dataclass
class _Videos:
    """The videos of a file, each opened once."""

    base: Path
    decoder: VideoDecoder = field(default_factory=VideoDecoder)
    opened: dict[str, _Opened] = field(default_factory=dict)

    def open(self, id: str, told: str, where: str) -> _Opened:
        """Open the video that a line is about, or find it where it was opened before."""
        path = self.base / told
        if id not in self.opened:
            frames = self._frames(path, where)
            self.opened[id] = _Opened(path, frames, Video(id, frames))
        other = self.opened[id].path
        if other != path:
            raise DataError(f"{where}: {path} and {other} are both called {id!r}; give each a 'video_id'.")
        return self.opened[id]

    def _frames(self, path: Path, where: str) -> FileFrames:
        if path.is_dir():
            return ImageFrames(path, image_files(path))
        if not path.is_file():
            raise DataError(f"{path} is missing, the video of {where}.")
        if path.suffix.lower() in IMAGE_SUFFIXES and not holds_several(path):
            return ImageFrames(path.parent, (path.name,))
        return VideoFileFrames(path, self.decoder)


@dataclass(frozen=True, eq=False)
class _StoredAsTold:
    """The masks of a line, found when they are first wanted: a video file would have to be decoded for that.

    Attributes:
        source: The video.
        masks: As the line tells them; None where nothing is meant in any frame.
        values: What the pixels meant are in mask images; none where these are masks of the object alone.
        voids: What the pixels that do not count are in mask images.
        base: What paths are relative to.
        where: What to call the line in an error.
        allow_outside: Whether masks may be outside of the base.
    """

    source: _Opened
    masks: Any
    values: Sequence[int]
    voids: Sequence[int]
    base: Path
    where: str
    allow_outside: bool

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of the frames that are annotated."""
        return tuple(self._by_frame)

    def mask(self, index: int) -> Mask:
        """Read the mask in one annotated frame, bool (H, W); DataError where it is damaged."""
        stored, size = self._by_frame[index], self.source.frames.size
        if stored is None:
            return np.zeros(size, dtype=np.bool_)
        if isinstance(stored, dict):
            return decode_rle(stored, f"{self.where}, frame {self.source.frames.names[index]}", size)
        numbers = self._numbers(stored, size)
        if self.values:
            return np.isin(numbers, self.values)
        numbers[np.isin(numbers, self.voids)] = 0
        return binary_mask(numbers, stored, "; 'value' tells which are meant, 'void' which do not count")

    def void(self, index: int) -> Mask | None:
        """Pixels of one annotated frame that do not count, bool (H, W); None where all do."""
        stored = self._by_frame[index]
        if not self.voids or not isinstance(stored, Path):
            return None
        return np.isin(self._numbers(stored, self.source.frames.size), self.voids)

    def _numbers(self, stored: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Read a mask image, uint8 (H, W)."""
        numbers = read_indices(stored)
        if numbers.shape != size:
            height, width = numbers.shape
            raise DataError(f"{stored} is {width}x{height}, the frames of {self.source.path} are {size[1]}x{size[0]}.")
        return numbers

    @cached_property
    def _by_frame(self) -> dict[int, dict[str, Any] | Path | None]:
        """What is stored of each annotated frame: a mask image, run lengths, or None where nothing is meant."""
        names, masks = self.source.frames.names, self.masks
        if masks is None:
            return dict.fromkeys(range(len(names)))
        if isinstance(masks, str):
            path = self._inside(masks)
            masks = {Path(name).stem: f"{masks}/{name}" for name in image_files(path)} if path.is_dir() else [masks]
        if isinstance(masks, list):
            if len(masks) != len(names):
                raise DataError(
                    f"{self.where} has {len(masks)} masks, {self.source.path} has {len(names)} frames; "
                    "where only some are annotated, give masks by the frame's name."
                )
            for name, mask in zip(names, masks, strict=True):
                told = PurePosixPath(mask).stem if isinstance(mask, str) else name
                if told != name and told in self._indices:
                    raise DataError(
                        f"{self.where}: the list gives {mask} for frame {name}, but that is named after another frame; "
                        "give masks by the frame's name."
                    )
            masks = dict(zip(names, masks, strict=True))
        by_frame = {self._index(name): self._stored(name, mask) for name, mask in masks.items()}
        if len(by_frame) < len(masks):
            raise DataError(f"{self.where}: the masks tell of a frame twice.")
        return dict(sorted(by_frame.items()))

    def _inside(self, told: str) -> Path:
        return inside(self.base, told, self.where, Problems(allow_outside=self.allow_outside))

    def _index(self, name: str) -> int:
        frames = self.source.frames
        if name in self._indices:
            return self._indices[name]
        number = as_number(name) if isinstance(frames, VideoFileFrames) else None
        if number is not None and number < len(frames.names):
            return number
        raise DataError(f"{self.where}: there is a mask for frame {name!r}, which {self.source.path} does not have.")

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.source.frames.names)}

    def _stored(self, name: str, mask: Any) -> dict[str, Any] | Path | None:
        if mask is None or isinstance(mask, dict):
            return mask
        if not isinstance(mask, str):
            raise DataError(f"{self.where}: the mask of frame {name} must be run lengths, a PNG file, or null.")
        path = self._inside(mask)
        if path.suffix.lower() != ".png":
            raise DataError(f"{self.where}: {path} is no PNG; other images change the values of pixels.")
        if not path.is_file():
            raise DataError(f"{path} is missing, the mask of frame {name} in {self.where}.")
        return path


def _record(line: str, where: str) -> dict[str, Any]:
    record = parse_json(line, where, DataError)
    if not isinstance(record, dict):
        raise DataError(f"{where} must be an object with named fields.")
    unknown = [name for name in record if name not in FIELDS]
    if unknown:
        raise DataError(f"{where} has {unknown[0]!r}, which is unknown; the fields are {', '.join(FIELDS)}.")
    return record


def _sample(record: dict[str, Any], id: str, source: _Opened, base: Path, where: str, problems: Problems) -> Sample:
    expression = take(record, "expression", str, where)
    if not expression.strip():
        raise DataError(f"{where}: the expression is empty.")
    masks, no_target = record.get("masks"), record.get("no_target", False)
    if not isinstance(no_target, bool) or (no_target and masks is not None):
        raise DataError(f"{where}: 'no_target' must be true or false, and true only where there are no masks.")
    if not isinstance(masks, str | list | dict | None):
        raise DataError(f"{where}: 'masks' must be a list, an object by frames, or the path of a folder or PNG file.")
    if masks is not None and len(masks) == 0:
        raise DataError(f"{where}: 'masks' annotates no frame; leave it out where the answer is not known.")
    truth = None
    if masks is not None or no_target:
        values, voids = _values(record, "value", where), _values(record, "void", where)
        if set(values) & set(voids):
            raise DataError(f"{where}: 'value' and 'void' both tell {min(set(values) & set(voids))}.")
        truth = _StoredAsTold(source, masks, values, voids, base, where, problems.allow_outside)
        if isinstance(source.frames, ImageFrames):
            _ = truth.annotated  # costs nothing here, and tells what is wrong before anything is run
    return Sample(
        source.video,
        id,
        expression,
        truth,
        has_target=None if truth is None else _tells_anything(masks),
        kind=take(record, "kind", str, where) if "kind" in record else None,
    )


def _tells_anything(masks: str | list[Any] | dict[str, Any] | None) -> bool:
    told = masks.values() if isinstance(masks, dict) else masks or ()
    return any(mask is not None for mask in told)


def _values(record: dict[str, Any], name: str, where: str) -> Sequence[int]:
    """Numbers in mask images that a line tells."""
    told = record.get(name)
    values = told if isinstance(told, list) else [] if told is None else [told]
    if not all(type(value) is int and 0 < value < 256 for value in values):  # true is no number
        raise DataError(f"{where}: {name!r} must be a number from 1 to 255, or a list of such.")
    return values
