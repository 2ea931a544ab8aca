"""Sink that writes a video with the masks drawn over it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from PIL import Image

from refervos.errors import OutputError, RefervosError, VideoError
from refervos.files.writing import PartialFile, UnbufferedFile, prepare_folder, refuse_existing, write_error
from refervos.segmentation import Segmentation
from refervos.video.audio import AudioTrack
from refervos.video.closing import Closing
from refervos.video.frames import Frame, ImageArray, SourceInfo
from refervos.video.media import exact_fps
from refervos.video.overlay import Painter
from refervos.video.truncation import playable_part

# The MPEG time base: frame times of all common rates are multiples of it, to within six microseconds.
_CLOCK = 90_000
_LONGEST = 16384  # maximum pixels per side in x264
_DEFAULT_FPS = Fraction(25)
_PRESETS = (
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
)


@dataclass(frozen=True)
class _TimedImage:
    image: ImageArray
    pts: int


class OverlaySink(Closing):
    """Sink for an H.264 mp4 of the source, with masks and a legend drawn over it and the audio of the source.

    Frames keep their times, so a variable frame rate is preserved; frames without times get a fixed rate. The video
    begins at the first frame written. Odd sizes are padded by repeating the last row or column, as H.264 requires;
    frames whose size differs from the first are fitted into it with black bars.
    """

    def __init__(
        self,
        path: str | Path,
        source: SourceInfo | None = None,
        *,
        fps: float | Fraction | None = None,
        crf: int = 20,
        preset: str = "veryfast",
        opacity: float = 0.4,
        legend: bool = True,
        audio: bool = True,
        overwrite: bool = False,
    ) -> None:
        """Open the output; the file appears at the path on ``close``.

        Args:
            path: The mp4 file to write; parent folders are created.
            source: Information about the source: its file for the audio, its rate for frames without times.
            fps: Frames per second for frames without times; None for the source's rate or else 25.
            crf: x264 quality, from 0 (lossless) to 51 (worst).
            preset: x264 preset, from "ultrafast" to "veryslow".
            opacity: Opacity of the mask colour, 0 to 1.
            legend: Whether to draw the legend.
            audio: Whether to keep the audio of the source.
            overwrite: Whether an existing file may be replaced.

        Raises:
            VideoError: The file exists, is not writable, is the source itself, or an option is out of range.
        """
        self._path = Path(path)
        if self._path.suffix.lower() != ".mp4":
            raise VideoError(f"'{path}' does not end in .mp4; the overlay is an mp4 file, so use that suffix.")
        if not 0 <= crf <= 51:
            raise VideoError(f"crf is {crf}; it must be from 0 (lossless) to 51 (worst).")
        if preset not in _PRESETS:
            raise VideoError(f"preset is {preset!r}; it must be one of {', '.join(_PRESETS)}.")
        self._painter = Painter(opacity, legend)
        if source is not None and source.path is not None and _same_file(source.path, self._path):
            raise OutputError(f"'{path}' is the video being read; choose another name for the output.")
        refuse_existing(self._path, overwrite)
        prepare_folder(self._path.parent)
        self._source = source
        self._rate = exact_fps(fps) or (source.fps if source is not None else None) or _DEFAULT_FPS
        # Without B-frames, decoding and display order agree, which a variable frame rate mp4 needs for correct
        # durations of its last frames.
        self._options = {"crf": str(crf), "preset": preset, "bf": "0"}
        self._keeps_audio = audio and source is not None
        self._overwrite = overwrite
        self._part: PartialFile | None = None
        self._file: Any = None
        self._container: Any = None
        self._stream: Any = None
        self._audio: AudioTrack | None = None
        self._pending: _TimedImage | None = None
        self._begin: float | None = None
        self._count = 0
        self._end = 0
        self._durations: dict[int, int] = {}
        self._size = self._frame_size = (0, 0)
        self._size_warned = False
        self._written: list[Path] | None = None
        self._warnings: list[str] = []

    @property
    def warnings(self) -> list[str]:
        """Sentences about anything that could not be kept, such as the audio, or drawn."""
        return self._warnings + self._painter.warnings

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Draw one frame and encode it.

        Args:
            frame: Frame of the source.
            segmentation: Its masks.

        Raises:
            VideoError: The masks do not fit the frame, the sink is closed, or writing fails, as on a full disk; the
                video up to then is put in place and can be played.
        """
        if self._written is not None:
            raise VideoError(f"'{self._path}' is already closed; write frames before closing.")
        image = self._painter.paint(frame, segmentation)
        try:
            if self._container is None:
                self._begin = frame.time
                self._open(image)
            self._check_size(frame)
            timed = _TimedImage(self._fitted(image), self._pts(frame))
            self._count += 1
            # One frame is held back, as its duration is known only when the next one arrives.
            before, self._pending = self._pending, timed
            if before is not None:
                self._encode(before, timed.pts - before.pts)
        except (FFmpegError, OSError, ValueError) as error:
            raise self._salvage(error) from error

    def close(self) -> list[Path]:
        """Finalise the video and put it in place; safe to call twice.

        Returns:
            The path of the video; empty if no frame was written.

        Raises:
            OutputError: The rest cannot be written.
        """
        if self._written is not None:
            return self._written
        self._written = []
        if self._container is None:
            return self._written
        try:
            last, self._pending = self._pending, None
            if last is not None:
                # The duration of the last frame is unknown: use the average of the others.
                gaps = self._count - 1
                self._encode(last, max(1, round(last.pts / gaps)) if gaps else round(_CLOCK / self._rate))
            self._mux(self._stream.encode(None))
            self._write_audio(last=True)
            self._container.close()
            self._file.close()
        except (FFmpegError, OSError, ValueError) as error:
            raise self._salvage(error) from error
        finally:
            self._close_audio()
        assert self._part is not None
        self._part.put_in_place(self._overwrite)
        self._written = [self._path]
        return self._written

    def abort(self) -> None:
        """Delete the unfinished output. Does nothing once closed."""
        if self._written is None:
            self._written = []
            self._drop()

    def _open(self, image: ImageArray) -> None:
        self._frame_size = image.shape[0], image.shape[1]
        height, width = self._size = _within(self._frame_size)
        if self._size != self._frame_size:
            self._warnings.append(
                f"'{self._path}' is {width}x{height}, smaller than the frames, because H.264 is limited to {_LONGEST} "
                "pixels per side."
            )
        try:
            self._begin_file(self._open_audio)
        except (FFmpegError, OSError, ValueError) as error:
            if self._audio is None:
                self._drop()
                raise
            # Perhaps the mp4 does not support the audio.
            self._drop()
            self._begin_file(lambda: None)
            self._lose_audio(error)
        except BaseException:
            self._drop()
            raise

    def _begin_file(self, add_audio: Callable[[], None]) -> None:
        # Fragmented until finished, then an ordinary mp4: if the disk fills up, only the last second is lost.
        options = {"movflags": "hybrid_fragmented+delay_moov", "frag_duration": "1000000"}
        self._part = PartialFile(self._path)
        self._file = UnbufferedFile(self._part.temporary, "r+")
        self._container = av.open(self._file, mode="w", format="mp4", options=options)
        height, width = self._size
        stream: Any = self._container.add_stream("libx264", rate=self._rate, options=self._options)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        # Explicit, as players guess differently for small and large frames: BT.709, limited range.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1
        context.color_range = 1
        context.time_base = Fraction(1, _CLOCK)
        self._stream = stream
        add_audio()
        self._container.start_encoding()

    def _open_audio(self) -> None:
        """Add the audio; any problem with it becomes a warning, so that the video is not lost."""
        source = self._source
        if source is None or not self._keeps_audio:
            return
        address = source.url or (f"file:{source.path}" if source.path is not None else None)
        if address is None:
            if source.has_audio:
                self._warnings.append(f"The audio of '{source.name}', which is live, is not kept in '{self._path}'.")
            return
        try:
            self._audio = AudioTrack(address, self._container, source.start_time + (self._begin or 0.0))
        except Exception as error:
            if not isinstance(error, LookupError) or isinstance(error, FFmpegError):
                self._lose_audio(error)

    def _check_size(self, frame: Frame) -> None:
        """Warn about the first frame of another size."""
        (height, width), (first_height, first_width) = frame.image.shape[:2], self._frame_size
        if (height, width) != self._frame_size and not self._size_warned:
            self._size_warned = True
            self._warnings.append(
                f"Frames of other sizes than {first_width}x{first_height}, such as frame {frame.index} of "
                f"{width}x{height}, were fitted into '{self._path}' with black bars."
            )

    def _fitted(self, image: ImageArray) -> ImageArray:
        """Resize an image to the size of the video, letterboxed if its aspect ratio differs, padded to even sides."""
        height, width = self._size
        if image.shape[:2] == self._frame_size != self._size:
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        elif image.shape[:2] != self._size:
            scale = min(height / image.shape[0], width / image.shape[1])
            inner = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            canvas = Image.new("RGB", (width, height))
            resized = Image.fromarray(image).resize(inner, Image.Resampling.BILINEAR)
            canvas.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
            image = np.asarray(canvas)
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        return image

    def _pts(self, frame: Frame) -> int:
        if frame.time is not None and self._begin is not None:
            pts = round((frame.time - self._begin) * _CLOCK)
        else:
            pts = round(self._count * _CLOCK / self._rate)
        # Timestamps in an mp4 must increase.
        return pts if self._pending is None else max(pts, self._pending.pts + 1)

    def _encode(self, timed: _TimedImage, duration: int) -> None:
        frame = av.VideoFrame.from_ndarray(timed.image, format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = timed.pts, Fraction(1, _CLOCK)
        self._durations[timed.pts] = duration
        self._mux(self._stream.encode(frame))
        self._end = timed.pts + duration
        self._write_audio()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # The encoder sets the average duration, with which the last frame would end at a wrong time.
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)

    def _write_audio(self, last: bool = False) -> None:
        if self._audio is None:
            return
        try:
            if last:
                self._audio.finish(self._end / _CLOCK)
            else:
                self._audio.write_until(self._end / _CLOCK)
        except Exception as error:
            self._lose_audio(error)
            self._close_audio()

    def _lose_audio(self, error: Exception) -> None:
        assert self._source is not None
        # The rest of FFmpeg's errors may repeat an address with a password.
        reason = getattr(error, "strerror", None) or (str(error) if self._source.url is None else "it cannot be read")
        named = self._source.path or self._source.name
        self._warnings.append(f"The audio of '{named}' could not be kept in '{self._path}': {reason}.")

    def _close_audio(self) -> None:
        audio, self._audio = self._audio, None
        if audio is not None:
            audio.close()

    def _drop(self) -> None:
        self._close_audio()
        if self._container is not None:
            self._break_off()
        if self._part is not None:
            self._part.discard()

    def _break_off(self) -> None:
        """Close the file first, so that the container cannot append its trailer."""
        with contextlib.suppress(FFmpegError, OSError, ValueError):
            self._file.close()
            self._container.close()
        self._container = None

    def _salvage(self, error: Exception) -> RefervosError:
        """Put the playable part of a video in place after a failed write, and return the error to raise."""
        self._written = []
        self._close_audio()
        if self._container is not None:
            self._break_off()
        part = self._part
        kept = playable_part(part.temporary) if part is not None and part.temporary.exists() else 0
        if part is None or not kept:
            self._drop()
            return write_error(self._path, error)
        os.truncate(part.temporary, kept)
        part.put_in_place(self._overwrite)
        self._written = [self._path]
        reason = getattr(error, "strerror", None) or str(error)
        return OutputError(
            f"writing '{self._path}' failed ({reason}); the part written so far can be played, but the rest needs more "
            "free space."
        )


def _within(size: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of the video for frames of a size, scaled down to the limit of H.264."""
    scale = min(1.0, _LONGEST / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
