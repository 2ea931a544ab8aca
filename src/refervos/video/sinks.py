"""Where answers go: masks as pictures, as run lengths, as cut-outs, and drawn over the video."""

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
from refervos.files.writing import PartialFile, prepare_folder, refuse_existing, write_atomically, write_error
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
    """Takes frames with their segmentations and leaves whole files behind.

    As a context manager a sink is closed whatever happens inside, so that what was written up to an error or
    an interruption is kept and can be used.
    """

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Takes the next frame."""

    def close(self) -> list[Path]:
        """Finishes and puts everything in place; safe to call twice. Returns the files or folders written."""

    def abort(self) -> None:
        """Drops what is not in place yet."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _FolderSink(Closing):
    """Base of the sinks that write one PNG after another, each put in place whole."""

    # Which existing files count as output that must not be mixed with new.
    _pattern = "*.png"

    def __init__(self, folder: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
        """Claims the folder.

        Args:
            folder: Where to write; made with its parents.
            overwrite: Whether such files in it are replaced: at the end none of an earlier run is left. Others stay.
            resume: Whether such files in it are gone on with, and stay.

        Raises:
            OutputError: It holds such files already, is a file, or cannot be written.
        """
        self._folder = Path(folder)
        if self._folder.exists() and not self._folder.is_dir():
            raise OutputError(f"'{folder}' is a file; give a folder to write into.")
        self._earlier = set() if resume else set(self._folder.glob(self._pattern))
        if self._earlier and not overwrite:
            raise OutputError(
                f"'{folder}' holds images already; choose another folder or --overwrite (overwrite=True)."
            )
        prepare_folder(self._folder)
        self._names = FrameNames()
        self._numbers = TrackNumbers()
        self._made: set[Path] = set()
        self._any = False
        self._closed = False

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Writes the images of one frame.

        Args:
            frame: The frame as the source gave it.
            segmentation: Its masks.

        Raises:
            VideoError: The masks do not fit the frame, a file cannot be written, or the sink is closed.
        """
        if self._closed:
            raise VideoError(f"'{self._folder}' is closed already; write frames before closing.")
        check_fit(frame, segmentation)
        self._write(frame, segmentation, self._names.of(frame))

    def close(self) -> list[Path]:
        """Ends the writing; every image is in place already. Safe to call twice.

        Returns:
            The folder, or nothing where no image was written.
        """
        if self._any and not self._closed:
            # Frames and tracks that an earlier, longer run had would be taken for this one's.
            for path in self._earlier:
                with contextlib.suppress(OSError):
                    path.unlink()
            for parent in {path.parent for path in self._earlier} - {self._folder}:
                with contextlib.suppress(OSError):
                    parent.rmdir()  # only where nothing is left in it
        self._closed = True
        return [self._folder] if self._any else []

    def abort(self) -> None:
        """Ends the writing; images in place stay."""
        self._closed = True

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        raise NotImplementedError

    def _save(self, image: Image.Image, path: Path) -> None:
        if path.parent not in self._made:
            prepare_folder(path.parent)
            self._made.add(path.parent)
        data = io.BytesIO()
        # Masks shrink about as well at low effort, and cut-outs would else take longer than the model.
        image.save(data, format="PNG", compress_level=3)
        write_atomically(path, data.getvalue())
        self._earlier.discard(path)
        self._any = True


class PaletteSink(_FolderSink):
    """One indexed PNG per frame, folder/<name>.png, with the palette of the DAVIS benchmark.

    Index 0 is background, k + 1 the k-th track in order of first appearance; where tracks overlap, the later
    one lies above. Index 255 is left out: DAVIS means by it pixels that do not count.
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


class BinarySink(_FolderSink):
    """One PNG per track and frame, folder/<track>/<name>.png, 255 inside and 0 outside.

    Tracks are numbered from 0 in order of first appearance.
    """

    _pattern = "*/*.png"

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        for track, mask in zip(segmentation.track_ids, segmentation.masks, strict=True):
            image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
            self._save(image, self._folder / str(self._numbers.of(track)) / f"{name}.png")


class CutoutSink(_FolderSink):
    """One PNG per track and frame, folder/<track>/<name>.png, the object on transparent ground.

    Tracks are numbered from 0 in order of first appearance. Pixels outside of the mask are emptied, not just
    hidden.
    """

    _pattern = "*/*.png"

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        for track, mask in zip(segmentation.track_ids, segmentation.masks, strict=True):
            cut = np.zeros((*mask.shape, 4), np.uint8)
            cut[mask, :3] = frame.image[mask]
            cut[mask, 3] = 255
            self._save(Image.fromarray(cut), self._folder / str(self._numbers.of(track)) / f"{name}.png")


class OverlayImageSink(Closing):
    """Writes one picture with masks and a legend drawn over it.

    Attributes:
        warnings: Sentences on what could not be drawn.
    """

    def __init__(self, path: str | Path, *, opacity: float = 0.4, legend: bool = True, overwrite: bool = False) -> None:
        """Claims the output.

        Args:
            path: The png, jpg or webp file to write; parent folders are made.
            opacity: Share of the colour in the tint of a mask, 0 to 1.
            legend: Whether to draw the legend.
            overwrite: Whether an existing file may be replaced.

        Raises:
            VideoError: The file exists, cannot be written, or is none of these kinds, or an option is out of range.
        """
        self._path = Path(path)
        self._format = _PICTURES.get(self._path.suffix.lower())
        if self._format is None:
            raise VideoError(f"'{path}' does not end in {', '.join(_PICTURES)}; name the picture so.")
        self._painter = Painter(opacity, legend)
        self._overwrite = overwrite
        refuse_existing(self._path, overwrite)
        prepare_folder(self._path.parent)
        self._written: list[Path] = []
        self._closed = False

    @property
    def warnings(self) -> list[str]:
        """Sentences on what could not be drawn."""
        return self._painter.warnings

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Draws and writes the picture.

        Args:
            frame: The frame as the source gave it.
            segmentation: Its masks.

        Raises:
            VideoError: It is not the first, the masks do not fit it, the file cannot be written, or the sink is closed.
        """
        if self._closed:
            raise VideoError(f"'{self._path}' is closed already; write frames before closing.")
        if self._written:
            raise VideoError(f"'{self._path}' is one picture and there are more frames; write them with OverlaySink.")
        picture = Image.fromarray(self._painter.paint(frame, segmentation))
        data = io.BytesIO()
        try:
            picture.save(data, self._format, quality=92)
            write_atomically(self._path, data.getvalue(), overwrite=self._overwrite)
        except (OSError, ValueError) as error:  # more pixels a side than the kind has
            raise write_error(self._path, error) from error
        self._written = [self._path]

    def close(self) -> list[Path]:
        """Ends the writing; safe to call twice. Returns the picture's path, or nothing where none was written."""
        self._closed = True
        return self._written

    def abort(self) -> None:
        """Ends the writing; a picture that was written stays."""
        self._closed = True


_PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def overlay_sink(folder: str | Path, source: SourceInfo, **options: Any) -> OverlaySink | OverlayImageSink:
    """Opens the overlay that fits a source: a picture for a picture, else a video.

    Args:
        folder: Where to write overlay.png or overlay.mp4.
        source: What is known about the source.
        options: Of both sinks: opacity, legend and overwrite.

    Returns:
        The sink.

    Raises:
        VideoError: See the sinks.
    """
    if source.still:
        return OverlayImageSink(Path(folder) / "overlay.png", **options)
    return OverlaySink(Path(folder) / "overlay.mp4", source, **options)


class RleSink(Closing):
    """JSON lines with COCO run lengths, one object per frame and track.

    {"frame": 0, "time": 0.0, "track": 0, "expression": "...", "size": [h, w], "counts": "...",
    "presence": 1.0, "switched": false, "area": 12, "bbox": [x, y, w, h]}

    A time that is unknown and a presence that is not finite are null.
    """

    def __init__(
        self, path: str | Path | BinaryIO, *, overwrite: bool = False, live: bool = False, resume: bool = False
    ) -> None:
        """Claims the output; nothing is at the path before `close`, unless it is to grow live.

        Args:
            path: The file to write, whose parent folders are made; or an open stream, such as `sys.stdout.buffer`,
                which is given each frame's lines as soon as they are known and stays open.
            overwrite: Whether an existing file may be replaced.
            live: Whether the file is at the path from the first frame on, so that others can follow it; each write
                adds the lines of a whole frame. Without, it is there complete or not at all.
            resume: Whether lines are added to those of an existing file.

        Raises:
            OutputError: It exists already or cannot be written.
            MissingDependencyError: pycocotools is not installed.
        """
        try:
            from pycocotools import mask as coco
        except ImportError as error:
            raise MissingDependencyError(
                "Run lengths need pycocotools; install it with pip install pycocotools."
            ) from error
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
        """Writes the lines of one frame.

        Args:
            frame: The frame as the source gave it.
            segmentation: Its masks.

        Raises:
            VideoError: The masks do not fit the frame, the file cannot be written, or the sink is closed.
        """
        if self._written is not None:
            raise VideoError(f"'{self._path}' is closed already; write frames before closing.")
        check_fit(frame, segmentation)
        lines = b"".join(self._line(frame, segmentation, k) for k in range(len(segmentation.track_ids)))
        try:
            if self._file is None:
                self._file = self._opened()
            self._file.write(lines)
            self._file.flush()
        # A stream that was closed raises ValueError.
        except (OSError, ValueError) as error:
            raise write_error(self._path, error) from error
        self._complete += len(lines)
        self._frames += 1

    def close(self) -> list[Path]:
        """Puts the file in place with all complete frames; safe to call twice.

        Returns:
            The file's path; nothing where no frame was written, or to a stream.

        Raises:
            OutputError: It cannot be put in place.
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
            self._end()
        except OSError as error:
            raise write_error(self._path, error) from error
        if self._part is not None:
            self._part.put_in_place(self._overwrite)
        self._written = [self._path]
        return self._written

    def abort(self) -> None:
        """Drops what was written, but to a file that grew live; does nothing once closed."""
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
            return self._path.open("ab" if self._resume else "wb" if self._overwrite else "xb")
        self._part = PartialFile(self._path)
        if before:
            shutil.copyfile(self._path, self._part.temporary)
        return self._part.temporary.open("ab")

    def _drop(self) -> None:
        if self._file is not None and self._stream is None:
            with contextlib.suppress(OSError):  # what is still to be written is not wanted
                self._file.close()
        if self._part is not None:
            self._part.discard()

    def _end(self) -> None:
        assert self._file is not None
        try:
            self._file.close()
        finally:
            # A write that a full disk or an interruption broke off leaves half a frame, which is cut away.
            held = self._path if self._part is None else self._part.temporary
            if held.stat().st_size > self._complete:
                with held.open("r+b") as file:
                    file.truncate(self._complete)

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
        # A lone surrogate, which no UTF-8 file can hold, is written as an escape.
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
        try:
            return text.encode() + b"\n"
        except UnicodeEncodeError:
            return json.dumps(record, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def davis_palette() -> npt.NDArray[np.uint8]:
    """The colours of the DAVIS benchmark: the bits of each index dealt to red, green and blue.

    Returns:
        uint8 (256, 3).
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            dealt = (index >> (3 * bit + channel)) & 1
            colours[:, channel] |= (dealt << (7 - bit)).astype(np.uint8)
    return colours
