"""Base class of the exports: a video with its masks as a folder in the layout of another tool."""

from __future__ import annotations

import io
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

from PIL import Image

from refervos.errors import OutputError, VideoError
from refervos.files.writing import PartialFolder, write_error
from refervos.segmentation import Segmentation
from refervos.video.closing import Closing
from refervos.video.frames import Frame, ImageArray, SourceInfo
from refervos.video.tracks import FrameNames, check_fit, file_stem

JPEG_QUALITY = 95
"""Quality of exported frames, as in YouTube-VOS."""


class ExportSink(Closing):
    """Base class of sinks that export a video to a folder, which appears complete or not at all.

    A subclass implements ``_write``, which is called for each frame, and ``_finish``, which is called once at the end.
    """

    main_file: ClassVar[str]
    """Path of the file that every export of this kind has; only folders with it are replaced."""

    def __init__(self, folder: str | Path, source: SourceInfo, *, overwrite: bool = False) -> None:
        """Open the output; the folder appears on ``close``.

        Args:
            folder: Output folder; created with its parents.
            source: Information about the source of the frames.
            overwrite: Whether to replace an earlier export of this kind, with everything in its folder.

        Raises:
            OutputError: It has files that may not be replaced, is a file or not writable, or another process writes it.
        """
        self._folder = Path(folder)
        self._source = source
        self._video = file_stem(source.name)
        self._refuse_files(overwrite)
        self._part = PartialFolder(self._folder)
        self._names = FrameNames()
        self._size: tuple[int, int] | None = None
        self._count = 0
        self._objects: dict[tuple[int, str], int] = {}
        self._written: list[Path] | None = None

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Write one frame.

        Args:
            frame: Frame of the source.
            segmentation: Its masks.

        Raises:
            VideoError: The masks do not fit the frame, its size differs from that of earlier frames, a file cannot be
                written (the unfinished export is then deleted), or the sink is closed.
        """
        if self._written is not None:
            raise VideoError(f"'{self._folder}' is already closed; write frames before closing.")
        check_fit(frame, segmentation)
        size = frame.image.shape[:2]
        if self._size not in (None, size):
            height, width = self._size or size
            raise VideoError(
                f"Frame {frame.index} has {size[1]}x{size[0]} pixels, earlier frames {width}x{height}; an export needs "
                "frames of one size."
            )
        self._size = (size[0], size[1])
        try:
            self._write(frame, segmentation, self._names.of(frame))
        except OSError as error:
            self.abort()
            raise write_error(self._folder, error) from error
        self._count += 1

    def close(self) -> list[Path]:
        """Complete the export and put the folder in place; safe to call twice.

        Returns:
            The folder; empty if no frame was written.

        Raises:
            OutputError: A file cannot be written, or renaming failed.
        """
        if self._written is not None:
            return self._written
        self._written = []
        with self._part:
            if self._count:
                try:
                    self._finish()
                except OSError as error:
                    raise write_error(self._folder, error) from error
                self._part.put_in_place()
                self._written = [self._folder]
        return self._written

    def abort(self) -> None:
        """Delete the unfinished export; does nothing once closed."""
        if self._written is None:
            self._written = []
            self._part.discard()

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _refuse_files(self, overwrite: bool) -> None:
        folder = self._folder
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"'{folder}' is a file; give a folder to write to.")
        if not folder.is_dir() or not any(folder.iterdir()):
            return
        if not overwrite:
            raise OutputError(f"'{folder}' already has files; choose another folder or --overwrite (overwrite=True).")
        if not (folder / self.main_file).is_file():
            raise OutputError(
                f"'{folder}' has files, but no '{self.main_file}', so it is no earlier export; choose another folder."
            )

    def _object(self, segmentation: Segmentation, position: int) -> int:
        """Return the number of the object at a position of a segmentation, from 0 in order of first appearance.

        An object is a track with one expression: a track whose prompt is replaced goes on as another object.
        """
        key = (segmentation.track_ids[position], segmentation.expressions[position])
        return self._objects.setdefault(key, len(self._objects))

    @property
    def _expressions(self) -> list[str]:
        """The expressions of the objects, by number."""
        return [expression for _, expression in self._objects]

    def _path(self, name: str) -> Path:
        """Return the path of a file of the export while it is being written; its folder is created."""
        path = self._part.temporary / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _save_json(self, name: str, content: Any) -> None:
        self._path(name).write_text(json_text(content) + "\n", encoding="utf-8")

    def _save_frame(self, name: str, image: ImageArray) -> None:
        data = io.BytesIO()
        Image.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY)
        self._path(name).write_bytes(data.getvalue())


class ObjectLines:
    """Lines of text of each object, in the order of their frames; kept in unnamed files once they are long.

    Args:
        folder: Folder for the files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, IO[str]] = {}

    def append(self, number: int, line: str) -> None:
        """Append a line without a line break to an object's lines."""
        if number not in self._files:
            self._files[number] = _spooled_file(self._folder)
        self._files[number].write(line + "\n")

    def of(self, number: int) -> Iterator[str]:
        """Read the lines of an object, without their line breaks."""
        if number in self._files:
            self._files[number].seek(0)
            yield from (line.rstrip("\n") for line in self._files[number])

    def close(self) -> None:
        """Remove the lines."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def _spooled_file(folder: Path) -> IO[str]:
    """Open a temporary text file that is in memory up to 1 MiB; removed when it is closed."""
    return tempfile.SpooledTemporaryFile(2**20, "w+", encoding="utf-8", newline="\n", dir=str(folder))


def json_text(content: Any) -> str:
    """Format a value as JSON; lone surrogates, which UTF-8 cannot encode, are escaped."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, allow_nan=False)
    return text


def rounded_time(frame: Frame) -> float | None:
    """Return the presentation time of a frame in seconds, to the microsecond; None if unknown."""
    return None if frame.time is None else round(frame.time, 6)


def rounded_presence(segmentation: Segmentation, position: int) -> float | None:
    """Return the presence of a frame's track at a position, to six digits; None if it is not finite."""
    presence = float(segmentation.presence[position])
    return round(presence, 6) if math.isfinite(presence) else None
