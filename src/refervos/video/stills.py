"""Frames that are pictures: folders of picture files, and files that hold several pictures."""

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

_SAMPLES = 16  # pictures looked at to find out what is white in all of them
_TOLD = 3  # names of files in a sentence
_SUBFILE, _REDUCED = 254, 1  # the tag of TIFF that says so of a smaller version of another page
_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini"}


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts names as people count: digits by their value, letters without regard to case.

    Args:
        name: A file name.

    Returns:
        A key for `sorted`.
    """
    parts = [part for part in re.split(r"([0-9]+)", name) if part]
    return tuple((0, int(part), "") if part[0] in "0123456789" else (1, 0, part.casefold()) for part in parts)


class _PictureReader(Reader):
    """Base of both: pictures that share what is white in them, each read when its turn comes."""

    def __init__(
        self, name: str, described: str, count: int, fps: Fraction | None, start: int, stop: int | None
    ) -> None:
        """Reads the first picture.

        Args:
            name: For the outputs.
            described: How messages name the source.
            count: How many pictures there are.
            fps: Frames per second of pictures that carry no times.
            start: First to give.
            stop: The one before which to end, or None for all.
        """
        self._described, self._fps = described, fps
        self._chosen = range(count)[start:stop]
        if not self._chosen:
            raise EndOfVideoError(f"{described} has only {frames_text(count)}, so none is left from frame {start} on.")
        self._white = WhiteLevel()
        self._notes: list[str] = []
        self._hdr = False
        with self._picture(self._chosen[0]) as image:
            deep = is_high_bit_depth(image)
        if deep and self._film(self._chosen[0]) is None:
            self._find_white(count)
        # Read ahead so that the size is known; a frame is small beside what segments it.
        self._first = self._read(self._chosen[0])
        height, width = self._first[0].shape[:2]
        super().__init__(SourceInfo(name, width, height, fps, len(self._chosen), still=count == 1))

    @property
    def notes(self) -> list[str]:
        """Sentences on how it is read, where one may not expect that."""
        hdr = [f"{self._described} is HDR; its brightness was mapped to BT.709."] if self._hdr else []
        return self._notes + hdr

    def _picture(self, index: int) -> AbstractContextManager[Image.Image]:
        """Opens a picture; errors inside become sentences."""
        raise NotImplementedError

    def _film(self, index: int) -> Path | None:
        """The file of a picture that is HDR."""
        return None

    def _name(self, index: int) -> str | None:
        """The name of a frame."""
        return None

    def _rewind(self) -> None:
        """Makes pictures that have been decoded new again."""

    def _find_white(self, count: int) -> None:
        for index in sorted({k * (count - 1) // (_SAMPLES - 1) for k in range(_SAMPLES)}):
            # One that is damaged is told when its turn comes.
            with contextlib.suppress(VideoError), self._picture(index) as image:
                levels = high_bit_depth_values(image)
                if levels is not None:
                    self._white.include(levels)
        self._rewind()
        if self._white.value not in (1, 2**16 - 1):
            self._notes.append(f"{self._described} has more than 8 bits; {self._white.value:.0f} is shown as white.")

    def _read(self, index: int) -> tuple[ImageArray, float | None]:
        """A picture and its time."""
        film = self._film(index)
        if film is not None:
            # FFmpeg knows how to show it.
            with open_file(film, fps=None, start=0, stop=1) as opened:
                self._hdr = True
                return next(iter(opened)).image, self._time(index, None)
        white = self._white.value
        with self._picture(index) as image:
            picture = rgb_from_pil(image, self._white)
            shown = _shown(image)
        if white and self._white.value > white:
            self._notes.append(
                f"{self._described} has larger values in frame {index} than in those before; "
                f"from it on {self._white.value:.0f} is shown as white."
            )
        return picture, self._time(index, shown)

    def _time(self, index: int, shown: float | None) -> float | None:
        """The time of a picture, whose file says for how many seconds it is shown."""
        return frame_time(index, self._fps)

    def _generate(self) -> Generator[Frame, None, None]:
        for index in self._chosen:
            picture, time = self._first if index == self._chosen[0] else self._read(index)
            yield Frame(index, picture, time, self._name(index))


class FolderReader(_PictureReader):
    """A folder of picture files.

    Args:
        folder: The folder.
        fps: Frames per second, from which the times of frames follow; None for no times.
        start: First frame to give.
        stop: Frame before which to end, or None for all.

    Raises:
        VideoError: It holds no pictures, two of one name, or none in that range.
    """

    def __init__(self, folder: Path, fps: Fraction | None, start: int, stop: int | None) -> None:
        self._folder = folder
        self._files, self._others = _sorted_out(folder)
        self._several: dict[str, None] = {}
        super().__init__(folder.name or "frames", f"'{folder}'", len(self._files), fps, start, stop)

    @property
    def notes(self) -> list[str]:
        """Sentences on how it is read, where one may not expect that."""
        found = super().notes
        if self._others:
            which = "which is" if len(self._others) == 1 else "which are"
            found.append(f"'{self._folder}' holds {_listed(self._others)}, {which} not read.")
        if self._several:
            found.append(
                f"'{self._folder}' has {_listed(list(self._several))} with several pictures each, "
                "of which only the first is a frame."
            )
        return found

    @contextmanager
    def _picture(self, index: int) -> Iterator[Image.Image]:
        with opened_image(self._files[index]) as image:
            if len(_pages(image)) > 1:
                self._several[self._files[index].name] = None
                image.seek(0)
            yield image

    def _film(self, index: int) -> Path | None:
        return self._files[index] if is_hdr(self._files[index]) else None

    def _name(self, index: int) -> str | None:
        return self._files[index].stem


def _sorted_out(folder: Path) -> tuple[list[Path], list[str]]:
    """The picture files in a folder in their order, and the names of what else is in it."""
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
        only = f", only {_listed(others)}" if others else ""
        raise VideoError(f"'{folder}' holds no images{only}; put frames as files of these kinds into it: {kinds}.")
    stems: dict[str, Path] = {}
    for path in found:
        # Outputs are named after the frames, so two frames of one name would overwrite each other's masks.
        if path.stem in stems:
            raise VideoError(f"'{folder}' holds both {stems[path.stem].name} and {path.name}; each needs its own stem.")
        stems[path.stem] = path
    return found, others


class ImageFileReader(_PictureReader):
    """A picture file; where it holds several, as TIFF stacks and animated WebP files do, each is a frame.

    Args:
        path: The file.
        fps: Frames per second of pictures for which the file tells no times.
        start: First frame to give.
        stop: Frame before which to end, or None for all.

    Raises:
        VideoError: It cannot be read, or has no frame in that range.
    """

    def __init__(self, path: Path, fps: Fraction | None, start: int, stop: int | None) -> None:
        self._path = path
        self._image = open_image(path)
        self._fps = fps
        self._clock: float | None = 0.0  # when the next picture is shown
        try:
            with image_errors(path):
                self._pages = _pages(self._image)
                for page in self._pages[: min(start, len(self._pages) - 1)]:
                    self._image.seek(page)
                    self._image.load()
                    self._time(0, _shown(self._image))
            super().__init__(path.stem or "frames", f"'{path}'", len(self._pages), fps, start, stop)
        except BaseException:
            self._image.close()
            raise
        held = getattr(self._image, "n_frames", 1)
        if held > len(self._pages):
            self._notes.append(f"'{path}' holds {held} pictures; versions and additions to others are no frames.")

    @contextmanager
    def _picture(self, index: int) -> Iterator[Image.Image]:
        with image_errors(self._path):
            self._image.seek(self._pages[index])
            refuse_large(f"'{self._path}'", *self._image.size)
            yield self._image

    def _film(self, index: int) -> Path | None:
        return self._path if len(self._pages) == 1 and is_hdr(self._path) else None

    def _name(self, index: int) -> str | None:
        return self._path.stem if len(self._pages) == 1 else None

    def _time(self, index: int, shown: float | None) -> float | None:
        known, self._clock = self._clock, None if self._clock is None or shown is None else self._clock + shown
        return super()._time(index, shown) if known is None or shown is None else known

    def _rewind(self) -> None:
        self._image.close()
        self._image = open_image(self._path)

    def _release(self) -> None:
        self._image.close()


def _shown(image: Image.Image) -> float | None:
    """For how many seconds a picture that has been decoded is shown, where its file tells."""
    told = image.info.get("duration")
    return told / 1000 if isinstance(told, (int, float)) and told > 0 else None


def _pages(image: Image.Image) -> list[int]:
    """The pictures in a file that are frames."""
    count = int(getattr(image, "n_frames", 1))
    if image.format == "MPO":
        return [0]  # a photograph, and what a camera adds to it: the view of another lens, a map of brightness
    if image.format != "TIFF" or count == 1:
        return list(range(count))
    kept = []
    for page in range(count):
        image.seek(page)
        if not image.tag_v2.get(_SUBFILE, 0) & _REDUCED:  # type: ignore[attr-defined]
            kept.append(page)
    return kept or [0]


def _listed(names: Sequence[str]) -> str:
    """Names in words, the first few of them."""
    told = list(names[:_TOLD]) if len(names) > _TOLD + 1 else list(names)
    if len(names) > len(told):
        told.append(f"{len(names) - len(told)} more")
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
