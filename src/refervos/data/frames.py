"""Frames read from files: images, or a video file decoded on demand."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePath

from refervos.data.files import IMAGE_SUFFIXES, Problems, image_size, list_folder, read_frame, report_missing
from refervos.data.records import as_number
from refervos.data.sample import ImageArray
from refervos.errors import DataError, VideoError
from refervos.files.images import opened_image
from refervos.video import Source, open_source
from refervos.video.sources import natural_key


@dataclass(frozen=True, eq=False)
class ImageFrames:
    """Frames stored as image files; each frame is named by its file's stem.

    Attributes:
        folder: Folder that the file names are relative to.
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
        """Height and width of the first frame, from its header."""
        return image_size(self.folder / self.files[0])

    def read(self, index: int) -> ImageArray:
        """Read one frame, uint8 RGB (H, W, 3); DataError when the file is missing or not an image."""
        if index >= len(self.files):
            raise DataError(f"{self.folder} has {len(self.files)} frames, but no index {index}.")
        return read_frame(self.folder / self.files[index])


def image_files(folder: Path) -> tuple[str, ...]:
    """List the images in a folder in natural order: 2.jpg before 10.jpg.

    Args:
        folder: The folder; subfolders are not searched.

    Returns:
        File names; hidden files and other formats are ignored.

    Raises:
        DataError: When the folder is missing, contains no image, or two images have the same stem.
    """
    images = (name for name in list_folder(folder) if name.lower().endswith(IMAGE_SUFFIXES))
    found = sorted(images, key=lambda name: (natural_key(name), name))
    if not found:
        raise DataError(f"{folder} contains no images; frames are {', '.join(IMAGE_SUFFIXES)} files.")
    stems: dict[str, str] = {}
    for name in found:
        other = stems.setdefault(PurePath(name).stem, name)
        if other != name:
            raise DataError(f"{folder} contains both {other} and {name}; each frame needs its own stem.")
    return tuple(found)


def numbered_images(folder: Path, problems: Problems) -> ImageFrames:
    """List frames named ``00001.png``, ``00002.png`` and so on.

    Args:
        folder: The folder.
        problems: Collects numbers missing before the last.

    Returns:
        The frames; the first has number 1.

    Raises:
        DataError: When there are none, or the last is not named by a five-digit number.
    """
    last = PurePath(image_files(folder)[-1])
    count = as_number(last.stem)
    if count is None or len(last.stem) != 5:
        raise DataError(f"{folder / last} is not named by its frame number, such as 00001.png.")
    files = tuple(f"{number:05d}.png" for number in range(1, count + 1))
    report_missing(folder, files, problems)
    return ImageFrames(folder, files)


def open_stored(path: Path) -> Source:
    """Open a video file of a data set at its stored size.

    Masks and boxes were drawn on frames as decoders return them, with pixels that are not square left as they are: the
    published sets state that size, and the released code reads it.
    """
    return open_source(path, square_pixels=False)


class VideoDecoder:
    """Decoder of video files that keeps one file open; all videos of a data set share it.

    Frames requested in order are decoded once; going back or to another file starts decoding from the beginning.
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
        """Pickle as a new decoder: another process opens its own files."""
        return VideoDecoder, ()

    def frame(self, path: Path, index: int) -> ImageArray | None:
        """Decode one frame.

        Args:
            path: A video file.
            index: From 0.

        Returns:
            uint8 RGB (H, W, 3); None past the end of the video.

        Raises:
            DataError: When it cannot be decoded.
        """
        with self._lock:
            if self._path != path or index < self._index or self._process != os.getpid():
                self._close()
                self._path = path
            with _as_data_error():
                if self._source is None:
                    self._source = open_stored(path)
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
            # A file opened before a fork shares its position with the parent, and its decoding threads do not exist in
            # this process: closing it, or collecting it as garbage, would wait for them forever.
            self._inherited = self._source
        self._process = os.getpid()
        self._path = self._source = self._image = None
        self._index = -1


@contextmanager
def _opened(path: Path) -> Iterator[Source]:
    with _as_data_error(), open_stored(path) as source:
        yield source


@contextmanager
def _as_data_error() -> Iterator[None]:
    try:
        yield
    except VideoError as error:
        raise DataError(str(error)) from error


@dataclass(frozen=True, eq=False)
class VideoFileFrames:
    """Frames of a video file, named by five-digit numbers.

    Attributes:
        path: The file.
        decoder: Decoder, shared by the data set.
    """

    path: Path
    decoder: VideoDecoder = field(repr=False)

    @cached_property
    def names(self) -> Sequence[str]:
        """``00000`` and so on; the first access decodes the whole file to count its frames."""
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
        """Decode one frame, uint8 RGB (H, W, 3); DataError when the file is damaged."""
        image = self.decoder.frame(self.path, index)
        if image is None:
            raise DataError(f"{self.path} ends before frame {index}.")
        return image


FileFrames = ImageFrames | VideoFileFrames
"""Frames of either kind."""


def has_several_frames(path: Path) -> bool:
    """Return whether an image file is a multi-page stack or an animation, whose images are frames."""
    with opened_image(path, DataError) as image:
        return image.format != "MPO" and getattr(image, "n_frames", 1) > 1


def require_frame_size(frames: FileFrames, index: int, stated: tuple[int, int] | None, where: str) -> tuple[int, int]:
    """Check the size that annotations state for a frame, before anything of that size is allocated.

    Args:
        frames: The frames.
        index: Index of the frame.
        stated: Height and width in the annotations; None when they state none.
        where: Name of the annotations in error messages.

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
    if stated is not None and stated != size:
        raise DataError(f"{where} states {stated[1]}x{stated[0]} pixels, but {name} is {size[1]}x{size[0]}.")
    return size
