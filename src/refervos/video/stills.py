"""Sources of image files: folders of images, and files with several images."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fractions import Fraction
from pathlib import Path

from PIL import Image

from refervos.errors import EndOfVideoError, VideoError
from refervos.files.images import (
    SUFFIXES,
    WhiteLevel,
    high_bit_depth_values,
    image_errors,
    is_hdr,
    is_high_bit_depth,
    open_image,
    opened_image,
    refuse_large,
    rgb_from_pil,
)
from refervos.video.frames import Frame, ImageArray, SourceInfo, frame_time, frames_text
from refervos.video.media import open_file
from refervos.video.reader import Reader

_SAMPLES = 16  # images read to estimate the common white level
_LISTED = 3  # file names in a sentence
_SUBFILE, _REDUCED = 254, 1  # TIFF tag and flag of pages that are smaller versions of others
_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key for natural sorting: digits by value, letters regardless of case.

    Args:
        name: A file name.

    Returns:
        A key for ``sorted``.
    """
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return tuple((0, int(part), "") if part[0] in "0123456789" else (1, 0, part.casefold()) for part in parts)


class _ImageReader(Reader):
    """Base class of both readers: images with a common white level, read one at a time."""

    def __init__(
        self, name: str, described: str, count: int, fps: Fraction | None, start: int, stop: int | None
    ) -> None:
        """Read the first image.

        Args:
            name: Name for the outputs.
            described: Name of the source in messages.
            count: Number of images.
            fps: Frames per second of images without times.
            start: First image to yield.
            stop: Image before which to end; None for all.
        """
        self._described, self._fps = described, fps
        self._chosen = range(count)[start:stop]
        if not self._chosen:
            raise EndOfVideoError(f"{described} has only {frames_text(count)}, so none is left from frame {start} on.")
        self._white = WhiteLevel()
        self._notes: list[str] = []
        self._hdr = False
        with self._opened(self._chosen[0]) as image:
            deep = is_high_bit_depth(image)
        if deep and self._hdr_file(self._chosen[0]) is None:
            self._find_white(count)
        # Read now so that the size is known.
        self._first = self._read(self._chosen[0])
        height, width = self._first[0].shape[:2]
        super().__init__(SourceInfo(name, width, height, fps, len(self._chosen), still=count == 1))

    @property
    def notes(self) -> list[str]:
        """Sentences about unusual properties of the source and how they are handled; not errors."""
        hdr = [f"{self._described} is HDR; it was tone-mapped to BT.709."] if self._hdr else []
        return self._notes + hdr

    def _opened(self, index: int) -> AbstractContextManager[Image.Image]:
        """Open an image; exceptions inside the block become sentences."""
        raise NotImplementedError

    def _hdr_file(self, index: int) -> Path | None:
        """Return the file of an image if it is HDR."""
        return None

    def _name(self, index: int) -> str | None:
        """Return the name of a frame, if any."""
        return None

    def _rewind(self) -> None:
        """Reopen the file, because decoded images lose the stored values."""

    def _find_white(self, count: int) -> None:
        for index in sorted({k * (count - 1) // (_SAMPLES - 1) for k in range(_SAMPLES)}):
            # A damaged image raises when it is read as a frame.
            with contextlib.suppress(VideoError), self._opened(index) as image:
                values = high_bit_depth_values(image)
                if values is not None:
                    self._white.include(values)
        self._rewind()
        if self._white.value not in (1, 2**16 - 1):
            self._notes.append(
                f"{self._described} has more than 8 bits per channel; {self._white.value:.0f} is used as white."
            )

    def _read(self, index: int) -> tuple[ImageArray, float | None]:
        """Return an image and its time."""
        hdr_file = self._hdr_file(index)
        if hdr_file is not None:
            # FFmpeg can tone-map it, Pillow cannot.
            with open_file(hdr_file, fps=None, start=0, stop=1) as opened:
                self._hdr = True
                return next(iter(opened)).image, self._time(index, None)
        white = self._white.value
        with self._opened(index) as image:
            rgb = rgb_from_pil(image, self._white)
            duration = _duration(image)
        if white and self._white.value > white:
            self._notes.append(
                f"{self._described} has larger values in frame {index} than before; "
                f"from then on {self._white.value:.0f} is used as white."
            )
        return rgb, self._time(index, duration)

    def _time(self, index: int, duration: float | None) -> float | None:
        """Return the time of an image, given its duration in seconds, if known."""
        return frame_time(index, self._fps)

    def _generate(self) -> Generator[Frame, None, None]:
        for index in self._chosen:
            image, time = self._first if index == self._chosen[0] else self._read(index)
            yield Frame(index, image, time, self._name(index))


class FolderReader(_ImageReader):
    """Source of the image files in a folder.

    Args:
        folder: The folder.
        fps: Frames per second for the times of frames; None for no times.
        start: First frame to yield.
        stop: Frame before which to end; None for all.

    Raises:
        VideoError: It has no images, two with the same stem, or none in that range.
    """

    def __init__(self, folder: Path, fps: Fraction | None, start: int, stop: int | None) -> None:
        self._folder = folder
        self._files, self._others = _image_files(folder)
        self._several: dict[str, None] = {}
        super().__init__(folder.name or "frames", f"'{folder}'", len(self._files), fps, start, stop)

    @property
    def notes(self) -> list[str]:
        """Sentences about unusual properties of the source and how they are handled; not errors."""
        found = super().notes
        if self._others:
            which = "which is" if len(self._others) == 1 else "which are"
            found.append(f"'{self._folder}' has {_joined(self._others)}, {which} not read.")
        if self._several:
            found.append(
                f"'{self._folder}' has {_joined(list(self._several))} with several images each, "
                "of which only the first is a frame."
            )
        return found

    @contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        with opened_image(self._files[index]) as image:
            if len(_pages(image)) > 1:
                self._several[self._files[index].name] = None
                image.seek(0)
            yield image

    def _hdr_file(self, index: int) -> Path | None:
        return self._files[index] if is_hdr(self._files[index]) else None

    def _name(self, index: int) -> str | None:
        return self._files[index].stem


def _image_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the image files of a folder in natural order, and the names of its other entries."""
    found, others = [], []
    for path in sorted(folder.iterdir(), key=lambda path: (natural_key(path.stem), path.name)):
        if path.name.startswith(".") or path.name.lower() in _LEFT_BY_SYSTEMS:
            continue
        if path.suffix.lower() in SUFFIXES and path.is_file():
            found.append(path)
        else:
            others.append(f"{path.name}/" if path.is_dir() else path.name)
    if not found:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        only = f", only {_joined(others)}" if others else ""
        raise VideoError(f"'{folder}' has no images{only}; put frames into it as files of these types: {kinds}.")
    stems: dict[str, Path] = {}
    for path in found:
        # Outputs are named after the frames, so masks of frames with the same stem would overwrite each other.
        if path.stem in stems:
            raise VideoError(f"'{folder}' has both {stems[path.stem].name} and {path.name}; stems must be unique.")
        stems[path.stem] = path
    return found, others


class ImageFileReader(_ImageReader):
    """Source of the images in one file, such as a TIFF stack or an animated WebP file.

    Args:
        path: The file.
        fps: Frames per second of images without times.
        start: First frame to yield.
        stop: Frame before which to end; None for all.

    Raises:
        VideoError: It is not readable, or has no frame in that range.
    """

    def __init__(self, path: Path, fps: Fraction | None, start: int, stop: int | None) -> None:
        self._path = path
        self._image = open_image(path)
        self._fps = fps
        self._clock: float | None = 0.0  # time of the next image
        try:
            with image_errors(path):
                self._pages = _pages(self._image)
                for page in self._pages[: min(start, len(self._pages) - 1)]:
                    self._image.seek(page)
                    self._image.load()
                    self._time(0, _duration(self._image))
            super().__init__(path.stem or "frames", f"'{path}'", len(self._pages), fps, start, stop)
        except BaseException:
            self._image.close()
            raise
        count = getattr(self._image, "n_frames", 1)
        if count > len(self._pages):
            self._notes.append(
                f"'{path}' has {count} images; smaller versions and auxiliary images are not used as frames."
            )

    @contextmanager
    def _opened(self, index: int) -> Iterator[Image.Image]:
        with image_errors(self._path):
            self._image.seek(self._pages[index])
            refuse_large(f"'{self._path}'", *self._image.size)
            yield self._image

    def _hdr_file(self, index: int) -> Path | None:
        return self._path if len(self._pages) == 1 and is_hdr(self._path) else None

    def _name(self, index: int) -> str | None:
        return self._path.stem if len(self._pages) == 1 else None

    def _time(self, index: int, duration: float | None) -> float | None:
        time = self._clock
        self._clock = None if time is None or duration is None else time + duration
        return super()._time(index, duration) if time is None or duration is None else time

    def _rewind(self) -> None:
        self._image.close()
        self._image = open_image(self._path)

    def _release(self) -> None:
        self._image.close()


def _duration(image: Image.Image) -> float | None:
    """Return the duration of a decoded image in seconds; None if its file has none."""
    milliseconds = image.info.get("duration")
    return milliseconds / 1000 if isinstance(milliseconds, (int, float)) and milliseconds > 0 else None


def _pages(image: Image.Image) -> list[int]:
    """Return the indices of the images in a file that are frames."""
    count = int(getattr(image, "n_frames", 1))
    if image.format == "MPO":
        return [0]  # a photograph with auxiliary images: the view of another lens, a gain map
    if image.format != "TIFF" or count == 1:
        return list(range(count))
    kept = []
    for page in range(count):
        image.seek(page)
        if not image.tag_v2.get(_SUBFILE, 0) & _REDUCED:  # type: ignore[attr-defined]
            kept.append(page)
    return kept or [0]


def _joined(names: Sequence[str]) -> str:
    """Join names for a sentence, abbreviating a long list."""
    parts = list(names[:_LISTED]) if len(names) > _LISTED + 1 else list(names)
    if len(names) > len(parts):
        parts.append(f"{len(names) - len(parts)} more")
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
