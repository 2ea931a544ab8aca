"""Frames that are read from files: images, or a video file that is decoded as it is needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath

from refervos.data.files import IMAGE_SUFFIXES, Problems, image_size, read_frame, report_missing
from refervos.data.records import as_number
from refervos.data.sample import ImageArray
from refervos.errors import DataError, VideoError
from refervos.files.images import opened_image
from refervos.video import Source, open_source
from refervos.video.sources import natural_key


@dataclass(frozen=True, eq=False)
class ImageFrames:
    """Frames that are image files; each is named by its file's stem.

    Attributes:
        folder: What the file names are relative to.
        files: The files, in order.
    """

    folder: Path
    files: tuple[str, ...]

    @cached_property
    def names(self) -> Sequence[str]:
        """Stems of the files, in order."""
        return tuple(PurePath(file).stem for file in self.files)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the first frame, as its file says without being decoded."""
        return image_size(self.folder / self.files[0])

    def read(self, index: int) -> ImageArray:
        """Read one frame, uint8 RGB (H, W, 3); DataError where the file is missing or no image."""
        if index >= len(self.files):
            raise DataError(f"{self.folder} has {len(self.files)} frames, none of index {index}.")
        return read_frame(self.folder / self.files[index])


def image_files(folder: Path) -> tuple[str, ...]:
    """List the images in a folder in natural order: 2.jpg before 10.jpg.

    Args:
        folder: Where to look, not deeper.

    Returns:
        Names of the files; hidden ones and those of other kinds are passed over.

    Raises:
        DataError: When the folder is missing, holds no image, or holds two of the same stem.
    """
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise DataError(f"{folder} is no folder that can be read ({error.strerror}).") from error
    found = sorted(
        (name for name in names if name.lower().endswith(IMAGE_SUFFIXES)), key=lambda name: (natural_key(name), name)
    )
    if not found:
        raise DataError(f"{folder} holds no images; frames are {', '.join(IMAGE_SUFFIXES)} files.")
    stems: dict[str, str] = {}
    for name in found:
        other = stems.setdefault(PurePath(name).stem, name)
        if other != name:
            raise DataError(f"{folder} holds both {other} and {name}; each frame needs its own stem.")
    return tuple(found)


def counted_images(folder: Path, problems: Problems) -> ImageFrames:
    """Find frames that are counted from ``00001.png`` on, where masks tell a frame by its number.

    Args:
        folder: Where to look.
        problems: Told of numbers that are missing before the last.

    Returns:
        The frames; the first has the number 1.

    Raises:
        DataError: When there are none, or the last has no number of five digits.
    """
    last = PurePath(image_files(folder)[-1])
    count = as_number(last.stem)
    if count is None or len(last.stem) != 5:
        raise DataError(f"{folder / last} is not named after the number of its frame, such as 00001.png.")
    files = tuple(f"{number:05d}.png" for number in range(1, count + 1))
    report_missing(folder, files, problems)
    return ImageFrames(folder, files)


class VideoDecoder:
    """Decodes frames of video files, with one file open at a time; a data set has one for all its videos.

    Frames that are asked for in order are decoded once; going back, or to another file, starts a file anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._path: Path | None = None
        self._source: Source | None = None
        self._inherited: Source | None = None
        self._index = -1
        self._image: ImageArray | None = None

    def __reduce__(self) -> tuple[type[VideoDecoder], tuple[()]]:
        """Another process gets a decoder of its own."""
        return VideoDecoder, ()

    def frame(self, path: Path, index: int) -> ImageArray | None:
        """Decode one frame.

        Args:
            path: A video file.
            index: From 0.

        Returns:
            uint8 RGB (H, W, 3), or None where the video is over before.

        Raises:
            DataError: When it cannot be decoded.
        """
        with self._lock:
            if self._path != path or index < self._index or self._process != os.getpid():
                self._close()
                self._path = path
            with _as_data_error():
                if self._source is None:
                    self._source = open_source(path)
                while self._index < index:
                    frame = next(iter(self._source), None)
                    if frame is None:
                        return None
                    self._index, self._image = frame.index, frame.image
            return self._image

    def _close(self) -> None:
        if self._process == os.getpid():
            if self._source is not None:
                self._source.close()
        else:
            # A file that was opened before a fork shares its position with the parent, and its decoding threads are
            # not in this process: to close it would wait for them for ever, and so would its end as garbage.
            self._inherited = self._source
        self._process = os.getpid()
        self._path = self._source = self._image = None
        self._index = -1


@contextmanager
def _opened(path: Path) -> Iterator[Source]:
    with _as_data_error(), open_source(path) as source:
        yield source


@contextmanager
def _as_data_error() -> Iterator[None]:
    try:
        yield
    except VideoError as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True, eq=False)
class VideoFileFrames:
    """Frames of a video file, named by their number in five digits.

    Attributes:
        path: The file.
        decoder: What reads it.
    """

    path: Path
    decoder: VideoDecoder = field(repr=False)

    @cached_property
    def names(self) -> Sequence[str]:
        """``00000`` and so on; the first time, the whole file is decoded to count its frames."""
        with _opened(self.path) as source:
            count = sum(1 for _ in source)
            if source.warnings:
                raise DataError(" ".join(source.warnings))
        return tuple(f"{index:05d}" for index in range(count))

    @cached_property
    def size(self) -> tuple[int, int]:
        """Height and width of the first frame."""
        with _opened(self.path) as source:
            height, width = next(iter(source)).image.shape[:2]
        return height, width

    def read(self, index: int) -> ImageArray:
        """Decode one frame, uint8 RGB (H, W, 3); DataError where the file is damaged."""
        image = self.decoder.frame(self.path, index)
        if image is None:
            raise DataError(f"{self.path} is over before frame {index}.")
        return image


FileFrames = ImageFrames | VideoFileFrames
"""Frames of either kind."""


def holds_several(path: Path) -> bool:
    """Whether a picture file holds several pictures, as a stack or an animation does, which then are frames."""
    with opened_image(path, DataError) as image:
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def fitting(frames: FileFrames, index: int, told: tuple[int, int] | None, where: str) -> tuple[int, int]:
    """Make sure that a frame has the size that annotations tell, before anything of that size is made.

    Args:
        frames: The frames.
        index: Which one.
        told: Height and width that are told; None where they are not.
        where: What to call the annotations in an error.

    Returns:
        Height and width of the frame.

    Raises:
        DataError: When the frame has another size or cannot be read.
    """
    if isinstance(frames, ImageFrames):
        name = str(frames.folder / frames.files[index])
        size = frames.size if index == 0 else image_size(frames.folder / frames.files[index])
    else:
        name, size = str(frames.path), frames.size
    if told is not None and told != size:
        raise DataError(f"{where} is about {told[1]}x{told[0]} pixels, but {name} is {size[1]}x{size[0]}.")
    return size
