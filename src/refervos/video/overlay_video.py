"""Writes a video with the masks drawn over it."""

from __future__ import annotations

import contextlib
import io
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
from refervos.files.writing import PartialFile, prepare_folder, refuse_existing, write_error
from refervos.segmentation import Segmentation
from refervos.video.audio import AudioTrack
from refervos.video.closing import Closing
from refervos.video.frames import Frame, ImageArray, SourceInfo
from refervos.video.media import exact_fps
from refervos.video.overlay import Painter
from refervos.video.truncation import playable_part

# The clock of MPEG: frame times of all common rates fall on it or within six microseconds of it.
_CLOCK = 90_000
_LONGEST = 16384  # pixels a side that x264 encodes at most
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
class _Timed:
    picture: ImageArray
    pts: int


class OverlaySink(Closing):
    """Writes an H.264 mp4 of the source with masks and a legend drawn over it, and the source's sound.

    Every frame keeps its time, so a variable frame rate survives; frames without times follow each other at a
    fixed rate. The video begins at the first frame written. Frames of odd size are padded by their last row
    or column, which H.264 needs; frames of another size than the first are fitted into it with black bars.

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
        """Claims the output; nothing is at the path before `close`.

        Args:
            path: The mp4 to write; parent folders are made.
            source: What is known about the source: its file gives the sound, its rate the times of frames
                without.
            fps: Frames per second for frames without times; None for the source's rate or else 25.
            crf: Quality of x264, from 0 (lossless) to 51 (worst).
            preset: Effort of x264, from "ultrafast" to "veryslow".
            opacity: Share of the colour in the tint of a mask, 0 to 1.
            legend: Whether to draw the legend.
            audio: Whether to keep the source's sound.
            overwrite: Whether an existing file may be replaced.

        Raises:
            VideoError: The file exists, cannot be written, is the source itself, or an option is out of
                range.
        """
        self._path = Path(path)
        if self._path.suffix.lower() != ".mp4":
            raise VideoError(f"'{path}' does not end in .mp4; the overlay is written as mp4, so name it so.")
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
        # Without B-frames the order of decoding is that of showing, which an mp4 of variable frame rate needs
        # for its last frames to be shown for as long as they should.
        self._options = {"crf": str(crf), "preset": preset, "bf": "0"}
        self._keeps_audio = audio and source is not None
        self._overwrite = overwrite
        self._part: PartialFile | None = None
        self._file: Any = None
        self._container: Any = None
        self._stream: Any = None
        self._audio: AudioTrack | None = None
        self._pending: _Timed | None = None
        self._begin: float | None = None
        self._count = 0
        self._end = 0
        self._durations: dict[int, int] = {}
        self._size = self._frame_size = (0, 0)
        self._told_size = False
        self._written: list[Path] | None = None
        self._warnings: list[str] = []

    @property
    def warnings(self) -> list[str]:
        """Sentences on what could not be kept, such as the sound, or drawn."""
        return self._warnings + self._painter.warnings

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Draws one frame and hands it to the encoder.

        Args:
            frame: The frame as the source gave it.
            segmentation: Its masks.

        Raises:
            VideoError: The masks do not fit the frame, the sink is closed, or the file cannot be written on, as on a
                full disk; what it held by then is put in place and can be played.
        """
        if self._written is not None:
            raise VideoError(f"'{self._path}' is closed already; write frames before closing.")
        picture = self._painter.paint(frame, segmentation)
        try:
            if self._container is None:
                self._begin = frame.time
                self._open(picture)
            self._tell_size(frame)
            timed = _Timed(self._fitted(picture), self._pts(frame))
            self._count += 1
            # One frame is kept back, for how long it is shown is known only when the next one comes.
            before, self._pending = self._pending, timed
            if before is not None:
                self._encode(before, timed.pts - before.pts)
        except (FFmpegError, OSError, ValueError) as error:
            raise self._salvage(error) from error

    def close(self) -> list[Path]:
        """Finishes the video and puts it in place; safe to call twice.

        Returns:
            The video's path, or nothing where no frame was written.

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
                # How long the last frame was shown is not known; as long as the frames before, on average.
                gaps = self._count - 1
                self._encode(last, max(1, round(last.pts / gaps)) if gaps else round(_CLOCK / self._rate))
            self._mux(self._stream.encode(None))
            self._sound(last=True)
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
        """Drops what was written; nothing stays behind. Does nothing once closed."""
        if self._written is None:
            self._written = []
            self._drop()

    def _open(self, picture: ImageArray) -> None:
        self._frame_size = picture.shape[0], picture.shape[1]
        height, width = self._size = _within(self._frame_size)
        if self._size != self._frame_size:
            self._warnings.append(
                f"'{self._path}' is {width}x{height}, smaller than the frames, as H.264 has no more than {_LONGEST} "
                "pixels a side."
            )
        try:
            self._begin_file(self._open_audio)
        except (FFmpegError, OSError, ValueError) as error:
            if self._audio is None:
                self._drop()
                raise
            # Perhaps it is the sound that an mp4 does not take.
            self._drop()
            self._begin_file(lambda: None)
            self._lose_audio(error)
        except BaseException:
            self._drop()
            raise

    def _begin_file(self, add_sound: Callable[[], None]) -> None:
        # Fragments until it is finished, when it becomes an ordinary mp4: a disk that fills up costs the last second.
        options = {"movflags": "hybrid_fragmented+delay_moov", "frag_duration": "1000000"}
        self._part = PartialFile(self._path)
        self._file = _File(self._part.temporary, "r+")
        self._container = av.open(self._file, mode="w", format="mp4", options=options)
        height, width = self._size
        stream: Any = self._container.add_stream("libx264", rate=self._rate, options=self._options)
        stream.width, stream.height = width + width % 2, height + height % 2
        stream.pix_fmt = "yuv420p"
        # Said explicitly, as players guess differently for small and large pictures: BT.709, limited
        # range.
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = 1
        context.color_range = 1
        context.time_base = Fraction(1, _CLOCK)
        self._stream = stream
        add_sound()
        self._container.start_encoding()

    def _open_audio(self) -> None:
        """Adds the sound, which is never worth the video: whatever is wrong with it is told and no more."""
        source = self._source
        if source is None or not self._keeps_audio:
            return
        address = source.url or (f"file:{source.path}" if source.path is not None else None)
        if address is None:
            if source.has_sound:
                self._warnings.append(f"The sound of '{source.name}', which is live, is not kept in '{self._path}'.")
            return
        try:
            self._audio = AudioTrack(address, self._container, source.start_time + (self._begin or 0.0))
        except Exception as error:
            if not isinstance(error, LookupError) or isinstance(error, FFmpegError):
                self._lose_audio(error)

    def _tell_size(self, frame: Frame) -> None:
        """Warns of the first frame of another size."""
        (height, width), (first_height, first_width) = frame.image.shape[:2], self._frame_size
        if (height, width) != self._frame_size and not self._told_size:
            self._told_size = True
            self._warnings.append(
                f"Frames of other sizes than {first_width}x{first_height}, such as frame {frame.index} of "
                f"{width}x{height}, were fitted into '{self._path}' with black bars."
            )

    def _fitted(self, picture: ImageArray) -> ImageArray:
        """The picture at the video's size, within bars where its proportions are others, padded to even sides."""
        height, width = self._size
        if picture.shape[:2] == self._frame_size != self._size:
            picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
        elif picture.shape[:2] != self._size:
            scale = min(height / picture.shape[0], width / picture.shape[1])
            inner = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
            canvas = Image.new("RGB", (width, height))
            resized = Image.fromarray(picture).resize(inner, Image.Resampling.BILINEAR)
            canvas.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
            picture = np.asarray(canvas)
        if height % 2 or width % 2:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        return picture

    def _pts(self, frame: Frame) -> int:
        if frame.time is not None and self._begin is not None:
            pts = round((frame.time - self._begin) * _CLOCK)
        else:
            pts = round(self._count * _CLOCK / self._rate)
        # Times that stand still or run backwards are bent: an mp4 cannot hold them.
        return pts if self._pending is None else max(pts, self._pending.pts + 1)

    def _encode(self, timed: _Timed, duration: int) -> None:
        picture = av.VideoFrame.from_ndarray(timed.picture, format="rgb24")
        picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        picture.pts, picture.time_base = timed.pts, Fraction(1, _CLOCK)
        self._durations[timed.pts] = duration
        self._mux(self._stream.encode(picture))
        self._end = timed.pts + duration
        self._sound()

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # Left to itself the encoder tells the average duration, and the last frame would end at a wrong
            # time.
            packet.duration = self._durations.pop(packet.pts, packet.duration)
            self._container.mux(packet)

    def _sound(self, last: bool = False) -> None:
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
        # What FFmpeg's errors say besides may repeat an address, and with it a password.
        reason = getattr(error, "strerror", None) or (str(error) if self._source.url is None else "it cannot be read")
        named = self._source.path or self._source.name
        self._warnings.append(f"The sound of '{named}' could not be kept in '{self._path}': {reason}.")

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
        """Closes the file as it is; a container whose file is closed adds no ending to it."""
        with contextlib.suppress(FFmpegError, OSError, ValueError):
            self._file.close()
            self._container.close()
        self._container = None

    def _salvage(self, error: Exception) -> RefervosError:
        """Puts in place what can be played of a video that cannot be written on; returns the error that says so."""
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
            f"'{self._path}' cannot be written on ({reason}); what it holds until then can be played, but the rest "
            "needs a place that has room."
        )


class _File(io.FileIO):
    """A file that takes all or raises: a disk that is filling up takes parts without a word."""

    def write(self, data: Any) -> int:
        left = memoryview(data)
        while left:
            left = left[super().write(left) :]
        return len(data)


def _within(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of a video of pictures of such a size, which H.264 may be too small for."""
    scale = min(1.0, _LONGEST / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
