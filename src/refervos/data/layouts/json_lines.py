"""Your own data as JSON lines, one line per expression; ``docs/data/own-data.md`` describes the format."""

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
    read_indices,
    read_lines,
    require_inside,
)
from refervos.data.frames import (
    FileFrames,
    ImageFrames,
    VideoDecoder,
    VideoFileFrames,
    has_several_frames,
    image_files,
)
from refervos.data.records import as_number, require_field, require_id
from refervos.data.sample import Dataset, Mask, Sample, Video
from refervos.errors import DataError
from refervos.files.plain_text import parse_json

NAME = "json-lines"

FILE = "expressions.jsonl"
"""Name of the file in a folder."""

FIELDS = ("video", "expression", "masks", "value", "void", "no_target", "video_id", "expression_id", "split", "kind")

ALL = "all"
"""The split of all lines."""


def read_json_lines(folder: Path, split: str, problems: Problems) -> Dataset:
    """Read your own data from JSON lines.

    Args:
        folder: A ``.jsonl`` file, or a folder with ``expressions.jsonl``.
        split: ``all``, or a value of ``split`` in the lines.
        problems: Collects problems with single lines.

    Returns:
        A sample for each line.

    Raises:
        DataError: When the file is missing or no line belongs to the split.
    """
    file = folder / FILE if folder.is_dir() else folder
    videos = _Videos(file.parent)
    samples: dict[str, dict[str, Sample]] = {}
    splits = {ALL}
    counts: Counter[str] = Counter()  # lines per video
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        with problems.collect():
            record = _record(line, where)
            splits.add(require_field(record, "split", str, where) if "split" in record else ALL)
            video_id = _video_id(record, file.parent, where, problems)
            id = require_id(record, "expression_id", where) if "expression_id" in record else str(counts[video_id])
            counts[video_id] += 1
            if split not in (ALL, record.get("split")):
                continue
            expressions = samples.setdefault(video_id, {})
            if id in expressions:
                raise DataError(f"{where}: video {video_id!r} has expression {id!r} twice.")
            video = videos.open(video_id, record["video"], where)
            expressions[id] = _sample(record, id, video, file.parent, where, problems)
    if split not in splits:
        raise DataError(f"{file} has no line with split {split!r}; its splits are {', '.join(sorted(splits))}.")
    return Dataset(NAME, split, tuple(sample for by_id in samples.values() for sample in by_id.values()))


def _video_id(record: dict[str, Any], base: Path, where: str, problems: Problems) -> str:
    """Return the video id of a line; by default the name of the video's folder or file."""
    path = require_inside(base, require_field(record, "video", str, where), where, problems)
    if "video_id" not in record:
        record = {"video_id": path.name if path.is_dir() else path.stem}
    return require_id(record, "video_id", where)


@dataclass(frozen=True, eq=False)
class _OpenVideo:
    """A video with its path and frames.

    Attributes:
        path: The folder of frames, the video file or the image.
        frames: Its frames.
        video: The video that samples share.
    """

    path: Path
    frames: FileFrames
    video: Video


@dataclass
class _Videos:
    """Videos of a file, each opened once."""

    base: Path
    decoder: VideoDecoder = field(default_factory=VideoDecoder)
    opened: dict[str, _OpenVideo] = field(default_factory=dict)

    def open(self, id: str, name: str, where: str) -> _OpenVideo:
        """Return the video of a line, opened on first use."""
        path = self.base / name
        if id not in self.opened:
            frames = self._frames(path, where)
            self.opened[id] = _OpenVideo(path, frames, Video(id, frames))
        other = self.opened[id].path
        if other != path:
            raise DataError(f"{where}: {path} and {other} have the same id {id!r}; give each a 'video_id'.")
        return self.opened[id]

    def _frames(self, path: Path, where: str) -> FileFrames:
        if path.is_dir():
            return ImageFrames(path, image_files(path))
        if not path.is_file():
            raise DataError(f"{path}, the video of {where}, is missing.")
        if path.suffix.lower() in IMAGE_SUFFIXES and not has_several_frames(path):
            return ImageFrames(path.parent, (path.name,))
        return VideoFileFrames(path, self.decoder)


@dataclass(frozen=True, eq=False)
class _LineMasks:
    """Ground truth of a line, matched to frames on first use, since counting the frames of a video file decodes it.

    Attributes:
        source: The video.
        masks: ``masks`` of the line; None for an expression without target.
        values: Pixel values of the target in mask images; empty when these are binary masks.
        voids: Pixel values of void pixels in mask images.
        base: Folder that paths are relative to.
        where: Name of the line in error messages.
        allow_outside: Whether masks may be outside the base.
    """

    source: _OpenVideo
    masks: Any
    values: Sequence[int]
    voids: Sequence[int]
    base: Path
    where: str
    allow_outside: bool

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of the annotated frames."""
        return tuple(self._by_frame)

    def mask(self, index: int) -> Mask:
        """Read the mask of one annotated frame, bool (H, W); DataError when it is damaged."""
        stored, size = self._by_frame[index], self.source.frames.size
        if stored is None:
            return np.zeros(size, dtype=np.bool_)
        if isinstance(stored, dict):
            return decode_rle(stored, f"{self.where}, frame {self.source.frames.names[index]}", size)
        pixels = self._pixels(stored, size)
        if self.values:
            return np.isin(pixels, self.values)
        pixels[np.isin(pixels, self.voids)] = 0
        return binary_mask(pixels, stored, "; give the target's pixel values as 'value', void pixels as 'void'")

    def void(self, index: int) -> Mask | None:
        """Read the void pixels of one annotated frame, bool (H, W); None when there are none."""
        stored = self._by_frame[index]
        if not self.voids or not isinstance(stored, Path):
            return None
        return np.isin(self._pixels(stored, self.source.frames.size), self.voids)

    def _pixels(self, stored: Path, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Read a mask image, uint8 (H, W)."""
        pixels = read_indices(stored)
        if pixels.shape != size:
            height, width = pixels.shape
            raise DataError(f"{stored} is {width}x{height}, the frames of {self.source.path} are {size[1]}x{size[0]}.")
        return pixels

    @cached_property
    def _by_frame(self) -> dict[int, dict[str, Any] | Path | None]:
        """Mask of each annotated frame: a mask image, run lengths, or None for an empty mask."""
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
                    "if only some are annotated, give an object with the masks by frame name."
                )
            for name, mask in zip(names, masks, strict=True):
                stem = PurePosixPath(mask).stem if isinstance(mask, str) else name
                if stem != name and stem in self._indices:
                    raise DataError(
                        f"{self.where}: the list gives {mask} for frame {name}, but that is the name of another frame; "
                        "give an object with the masks by frame name."
                    )
            masks = dict(zip(names, masks, strict=True))
        by_frame = {self._index(name): self._stored(name, mask) for name, mask in masks.items()}
        if len(by_frame) < len(masks):
            raise DataError(f"{self.where}: 'masks' has a frame twice.")
        return dict(sorted(by_frame.items()))

    def _inside(self, name: str) -> Path:
        return require_inside(self.base, name, self.where, Problems(allow_outside=self.allow_outside))

    def _index(self, name: str) -> int:
        frames = self.source.frames
        if name in self._indices:
            return self._indices[name]
        number = as_number(name) if isinstance(frames, VideoFileFrames) else None
        if number is not None and number < len(frames.names):
            return number
        raise DataError(f"{self.where}: 'masks' has frame {name!r}, which {self.source.path} does not have.")

    @cached_property
    def _indices(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.source.frames.names)}

    def _stored(self, name: str, mask: Any) -> dict[str, Any] | Path | None:
        if mask is None or isinstance(mask, dict):
            return mask
        if not isinstance(mask, str):
            raise DataError(f"{self.where}: the mask of frame {name} must be a run-length mask, a PNG file, or null.")
        path = self._inside(mask)
        if path.suffix.lower() != ".png":
            raise DataError(f"{self.where}: {path} is not a PNG; other formats do not keep exact pixel values.")
        if not path.is_file():
            raise DataError(f"{path}, the mask of frame {name} in {self.where}, is missing.")
        return path


def _record(line: str, where: str) -> dict[str, Any]:
    record = parse_json(line, where, DataError)
    if not isinstance(record, dict):
        raise DataError(f"{where} must be an object with named fields.")
    unknown = [name for name in record if name not in FIELDS]
    if unknown:
        raise DataError(f"{where} has an unknown field {unknown[0]!r}; known fields are {', '.join(FIELDS)}.")
    return record


def _sample(record: dict[str, Any], id: str, source: _OpenVideo, base: Path, where: str, problems: Problems) -> Sample:
    expression = require_field(record, "expression", str, where)
    if not expression.strip():
        raise DataError(f"{where}: the expression is empty.")
    masks, no_target = record.get("masks"), record.get("no_target", False)
    if not isinstance(no_target, bool) or (no_target and masks is not None):
        raise DataError(f"{where}: 'no_target' must be true or false, and true only without 'masks'.")
    if not isinstance(masks, str | list | dict | None):
        raise DataError(f"{where}: 'masks' must be a list, an object by frame name, or the path of a folder or PNG.")
    if masks is not None and len(masks) == 0:
        raise DataError(f"{where}: 'masks' annotates no frame; omit it when the ground truth is unknown.")
    ground_truth = None
    if masks is not None or no_target:
        values, voids = _values(record, "value", where), _values(record, "void", where)
        if set(values) & set(voids):
            raise DataError(f"{where}: 'value' and 'void' both contain {min(set(values) & set(voids))}.")
        ground_truth = _LineMasks(source, masks, values, voids, base, where, problems.allow_outside)
        if isinstance(source.frames, ImageFrames):
            _ = ground_truth.annotated  # cheap here, and finds errors before anything runs
    return Sample(
        source.video,
        id,
        expression,
        ground_truth,
        has_target=None if ground_truth is None else _any_mask(masks),
        kind=require_field(record, "kind", str, where) if "kind" in record else None,
    )


def _any_mask(masks: str | list[Any] | dict[str, Any] | None) -> bool:
    entries = masks.values() if isinstance(masks, dict) else masks or ()
    return any(mask is not None for mask in entries)


def _values(record: dict[str, Any], name: str, where: str) -> Sequence[int]:
    """Return the pixel values in a field of a line."""
    field = record.get(name)
    values = field if isinstance(field, list) else [] if field is None else [field]
    if not all(type(value) is int and 0 < value < 256 for value in values):  # excludes true
        raise DataError(f"{where}: {name!r} must be a number from 1 to 255, or a list of such.")
    return values
