"""Sinks: write masks as images, run lengths, cut-outs, and overlays on the video."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Protocol, Self

import numpy as np
import numpy.typing as npt
from PIL import Image

from refervos.errors import MissingDependencyError, OutputError, VideoError
from refervos.files.writing import (
    PartialFile,
    UnbufferedFile,
    prepare_folder,
    refuse_existing,
    write_atomically,
    write_error,
)
from refervos.segmentation import Segmentation
from refervos.video.closing import Closing
from refervos.video.frames import Frame, SourceInfo
from refervos.video.overlay import Painter
from refervos.video.overlay_video import OverlaySink
from refervos.video.tracks import FrameNames, TrackNumbers, check_fit

__all__ = [
    "BinarySink",
    "CutoutSink",
    "OverlayImageSink",
    "OverlaySink",
    "PaletteSink",
    "RleSink",
    "Sink",
    "davis_palette",
    "overlay_sink",
]


class Sink(Protocol):
    """Output that receives frames with their segmentations and leaves complete files.

    As a context manager a sink is always closed at the end, so that the output up to an error or an interruption is
    kept and usable.
    """

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Write the next frame."""

    def close(self) -> list[Path]:
        """Finalise the output and return the files or folders written; safe to call twice."""

    def abort(self) -> None:
        """Delete unfinished output."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class FolderSink(Closing):
    """Base class of sinks that write several files into a folder, each atomically."""

    # Existing files that count as output and must not be mixed with new files, and what messages call them.
    _pattern = "*.png"
    _contents = "images"

    def __init__(self, folder: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
        """Open the folder.

        Args:
            folder: Output folder; created with its parents.
            overwrite: Whether to replace the files of an earlier run: at the end none of them is left. Others stay.
            resume: Whether to keep the files of an earlier run and add to them.

        Raises:
            OutputError: It already has such files, is a file, or is not writable.
        """
        self._folder = Path(folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise OutputError(f"'{folder}' is a file; give a folder to write to.")
        self._earlier = set() if resume else set(self._folder.glob(self._pattern))
        if self._earlier and not overwrite:
            raise OutputError(
                f"'{folder}' already has {self._contents}; choose another folder or --overwrite (overwrite=True)."
            )
        prepare_folder(self._folder)
        self._names = FrameNames()
        self._numbers = TrackNumbers()
        self._made: set[Path] = set()
        self._any = False
        self._closed = False

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Write one frame.

        Args:
            frame: Frame of the source.
            segmentation: Its masks.

        Raises:
            VideoError: The masks do not fit the frame, a file cannot be written, or the sink is closed.
        """
        if self._closed:
            raise VideoError(f"'{self._folder}' is already closed; write frames before closing.")
        check_fit(frame, segmentation)
        self._write(frame, segmentation, self._names.of(frame))

    def close(self) -> list[Path]:
        """Close the sink; all files are in place. Safe to call twice.

        Returns:
            The folder; empty if no file was written.
        """
        if self._any and not self._closed:
            # Frames and tracks of an earlier, longer run would be mistaken for this one's.
            for path in self._earlier:
                with contextlib.suppress(OSError):
                    path.unlink()
            for parent in {path.parent for path in self._earlier} - {self._folder}:
                with contextlib.suppress(OSError):
                    parent.rmdir()  # only if it is empty
        self._closed = True
        return [self._folder] if self._any else []

    def abort(self) -> None:
        """Close the sink; files already written stay."""
        self._closed = True

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        raise NotImplementedError

    def _save(self, image: Image.Image, path: Path) -> None:
        data = io.BytesIO()
        # Low effort compresses masks about as well; with more, cut-outs would take longer than the model.
        image.save(data, format="PNG", compress_level=3)
        self._put(data.getvalue(), path)

    def _put(self, data: bytes, path: Path) -> None:
        if path.parent not in self._made:
            prepare_folder(path.parent)
            self._made.add(path.parent)
        write_atomically(path, data)
        self._earlier.discard(path)
        self._any = True


class PaletteSink(FolderSink):
    """Sink for one indexed PNG per frame, folder/<name>.png, with the palette of the DAVIS benchmark.

    Index 0 is background, k + 1 the k-th track in order of first appearance; where tracks overlap, the later one is on
    top. Index 255 is not used: in DAVIS it marks pixels to ignore.
    """

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        indices = np.zeros(frame.image.shape[:2], np.uint8)
        for number, mask in sorted(
            (
                (self._numbers.of(track), mask)
                for track, mask in zip(segmentation.track_ids, segmentation.masks, strict=True)
            ),
            key=lambda pair: pair[0],
        ):
            if number > 253:
                raise VideoError("More than 254 tracks do not fit into a palette image; use RleSink or BinarySink.")
            indices[mask] = number + 1
        image = Image.fromarray(indices)
        image.putpalette(davis_palette().tobytes())
        self._save(image, self._folder / f"{name}.png")


class BinarySink(FolderSink):
    """Sink for one PNG per track and frame, folder/<track>/<name>.png, 255 inside and 0 outside of the mask.

    Tracks are numbered from 0 in order of first appearance.
    """

    _pattern = "*/*.png"

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        for track, mask in zip(segmentation.track_ids, segmentation.masks, strict=True):
            image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
            self._save(image, self._folder / str(self._numbers.of(track)) / f"{name}.png")


class CutoutSink(FolderSink):
    """Sink for one PNG per track and frame, folder/<track>/<name>.png, the object on a transparent background.

    Tracks are numbered from 0 in order of first appearance. Pixels outside of the mask are erased, not just hidden.
    """

    _pattern = "*/*.png"

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        for track, mask in zip(segmentation.track_ids, segmentation.masks, strict=True):
            cut = np.zeros((*mask.shape, 4), np.uint8)
            cut[mask, :3] = frame.image[mask]
            cut[mask, 3] = 255
            self._save(Image.fromarray(cut), self._folder / str(self._numbers.of(track)) / f"{name}.png")


class OverlayImageSink(Closing):
    """Sink for one image with masks and a legend drawn over it.

    Attributes:
        warnings: Sentences about text that could not be drawn.
    """

    def __init__(self, path: str | Path, *, opacity: float = 0.4, legend: bool = True, overwrite: bool = False) -> None:
        """Open the output.

        Args:
            path: The png, jpg or webp file to write; parent folders are created.
            opacity: Opacity of the mask colour, 0 to 1.
            legend: Whether to draw the legend.
            overwrite: Whether an existing file may be replaced.

        Raises:
            VideoError: The file exists, is not writable, has another suffix, or an option is out of range.
        """
        self._path = Path(path)
        self._format = _SUFFIXES.get(self._path.suffix.lower())
        if self._format is None:
            raise VideoError(f"'{path}' does not end in {', '.join(_SUFFIXES)}; use one of these suffixes.")
        self._painter = Painter(opacity, legend)
        self._overwrite = overwrite
        refuse_existing(self._path, overwrite)
        prepare_folder(self._path.parent)
        self._written: list[Path] = []
        self._closed = False

    @property
    def warnings(self) -> list[str]:
        """Sentences about text that could not be drawn."""
        return self._painter.warnings

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Draw and write the image.

        Args:
            frame: Frame of the source.
            segmentation: Its masks.

        Raises:
            VideoError: It is not the first frame, its masks do not fit, writing fails, or the sink is closed.
        """
        if self._closed:
            raise VideoError(f"'{self._path}' is already closed; write frames before closing.")
        if self._written:
            raise VideoError(f"'{self._path}' is a single image, but more frames follow; write them with OverlaySink.")
        image = Image.fromarray(self._painter.paint(frame, segmentation))
        data = io.BytesIO()
        try:
            image.save(data, self._format, quality=92)
            write_atomically(self._path, data.getvalue(), overwrite=self._overwrite)
        except (OSError, ValueError) as error:  # more pixels per side than the format allows
            raise write_error(self._path, error) from error
        self._written = [self._path]

    def close(self) -> list[Path]:
        """Close the sink and return the path of the image, if written; safe to call twice."""
        self._closed = True
        return self._written

    def abort(self) -> None:
        """Close the sink; an image already written stays."""
        self._closed = True


_SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def overlay_sink(folder: str | Path, source: SourceInfo, **options: Any) -> OverlaySink | OverlayImageSink:
    """Open the overlay sink for a source: an image for a single image, else a video.

    Args:
        folder: Folder for overlay.png or overlay.mp4.
        source: Information about the source.
        options: Common options of both sinks: opacity, legend and overwrite.

    Returns:
        The sink.

    Raises:
        VideoError: See ``OverlaySink`` and ``OverlayImageSink``.
    """
    if source.still:
        return OverlayImageSink(Path(folder) / "overlay.png", **options)
    return OverlaySink(Path(folder) / "overlay.mp4", source, **options)


class RleSink(Closing):
    """Sink for JSON lines with COCO run lengths, one object per frame and track.

    {"frame": 0, "time": 0.0, "track": 0, "expression": "...", "size": [h, w], "counts": "...",
    "presence": 1.0, "switched": false, "area": 12, "bbox": [x, y, w, h]}

    Unknown times and presences that are not finite are null.
    """

    def __init__(
        self, path: str | Path | BinaryIO, *, overwrite: bool = False, live: bool = False, resume: bool = False
    ) -> None:
        """Open the output; unless ``live``, the file appears at the path on ``close``.

        Args:
            path: The file to write, with its parent folders; or an open binary stream, such as ``sys.stdout.buffer``,
                which receives the lines of each frame immediately and stays open.
            overwrite: Whether an existing file may be replaced.
            live: Whether the file exists from the first frame on, so that other programs can follow it; each write
                appends the lines of a whole frame. If False, it appears complete or not at all.
            resume: Whether to append to an existing file.

        Raises:
            OutputError: It exists already or is not writable.
            MissingDependencyError: pycocotools is not installed.
        """
        try:
            from pycocotools import mask as coco
        except ImportError as error:
            raise MissingDependencyError("Run lengths need pycocotools: pip install pycocotools.") from error
        self._coco = coco
        self._resume = resume
        self._overwrite = overwrite or resume
        self._live = live
        self._stream = None if isinstance(path, (str, Path)) else path
        self._path = Path(path) if isinstance(path, (str, Path)) else Path(str(getattr(path, "name", "the stream")))
        if self._stream is None:
            refuse_existing(self._path, self._overwrite)
            prepare_folder(self._path.parent)
        self._part: PartialFile | None = None
        self._file: IO[bytes] | None = None
        self._complete = 0
        self._frames = 0
        self._written: list[Path] | None = None

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Write the lines of one frame.

        Args:
            frame: Frame of the source.
            segmentation: Its masks.

        Raises:
            VideoError: The masks do not fit the frame, the file cannot be written, or the sink is closed.
        """
        if self._written is not None:
            raise VideoError(f"'{self._path}' is already closed; write frames before closing.")
        check_fit(frame, segmentation)
        lines = b"".join(self._line(frame, segmentation, k) for k in range(len(segmentation.track_ids)))
        try:
            if self._file is None:
                self._file = self._opened()
            self._file.write(lines)
            self._file.flush()
        # A closed stream raises ValueError.
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError):
                self._remove_partial_frame()
            raise write_error(self._path, error) from error
        self._complete += len(lines)
        self._frames += 1

    def close(self) -> list[Path]:
        """Put the file in place with all complete frames; safe to call twice.

        Returns:
            The path of the file; empty for a stream or if no frame was written.

        Raises:
            OutputError: Renaming failed.
        """
        if self._written is not None:
            return self._written
        self._written = []
        if self._file is None or self._stream is not None:
            return self._written
        if not self._frames:
            self._drop()
            return self._written
        try:
            self._remove_partial_frame()
            self._file.close()
        except OSError as error:
            raise write_error(self._path, error) from error
        if self._part is not None:
            self._part.put_in_place(self._overwrite)
        self._written = [self._path]
        return self._written

    def abort(self) -> None:
        """Delete the unfinished output, except for a live file; does nothing once closed."""
        if self._written is None:
            self._written = []
            self._drop()

    def _opened(self) -> IO[bytes]:
        if self._stream is not None:
            return self._stream
        before = self._resume and self._path.exists()
        if before:
            self._complete = self._path.stat().st_size
        if self._live:
            return UnbufferedFile(self._path, "a" if self._resume else "w" if self._overwrite else "x")
        self._part = PartialFile(self._path)
        if before:
            shutil.copyfile(self._path, self._part.temporary)
        return UnbufferedFile(self._part.temporary, "a")

    def _drop(self) -> None:
        if self._file is not None and self._stream is None:
            with contextlib.suppress(OSError):  # unwritten data is not needed
                self._file.close()
        if self._part is not None:
            self._part.discard()

    def _remove_partial_frame(self) -> None:
        """Truncate the file after a write that a full disk or a signal has interrupted."""
        if self._file is not None and self._stream is None:
            self._file.truncate(self._complete)
            self._file.seek(self._complete)

    def _line(self, frame: Frame, segmentation: Segmentation, k: int) -> bytes:
        mask: npt.NDArray[np.bool_] = segmentation.masks[k]
        rle = self._coco.encode(np.asfortranarray(mask, dtype=np.uint8))
        presence = float(segmentation.presence[k])
        record = {
            "frame": frame.index,
            "time": None if frame.time is None else round(frame.time, 6),
            "track": int(segmentation.track_ids[k]),
            "expression": segmentation.expressions[k],
            "size": [int(side) for side in rle["size"]],
            "counts": rle["counts"].decode("ascii"),
            "presence": round(presence, 6) if math.isfinite(presence) else None,
            "switched": bool(segmentation.switched[k]),
            "area": int(np.count_nonzero(mask)),
            "bbox": [int(side) for side in self._coco.toBbox(rle)],
        }
        # Lone surrogates cannot be encoded as UTF-8 and are escaped.
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        try:
            return text.encode() + b"\n"
        except UnicodeEncodeError:
            return json.dumps(record, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def davis_palette() -> npt.NDArray[np.uint8]:
    """Return the palette of the DAVIS benchmark: the bits of each index distributed over red, green and blue.

    Returns:
        uint8 (256, 3).
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            bit_value = (index >> (3 * bit + channel)) & 1
            colours[:, channel] |= (bit_value << (7 - bit)).astype(np.uint8)
    return colours
