"""Decoding in a child process, which can be killed and cannot use more memory or time than its limits."""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from av.error import FFmpegError

from refervos.errors import EndOfVideoError, VideoError
from refervos.files.images import ImageArray
from refervos.serving.limits import Limits
from refervos.video import Frame, ReconnectPolicy, open_source
from refervos.video.containers import open_input
from refervos.video.decoder_process import (
    DecoderProcess,
    Message,
    answer_requests,
    frame_message,
    frame_of,
    raise_error,
)

_AHEAD = 4
"""Number of frames of a recording that are decoded ahead."""


@dataclass(frozen=True)
class DecodedInfo:
    """Information about an open source.

    Attributes:
        name: Short name, without a password.
        width: Width of the frames in pixels.
        height: Height of the frames in pixels.
        fps: Frames per second; None if unknown.
        frame_count: Number of frames from the first to decode on; None if unknown.
        live: Whether frames arrive at their own pace.
    """

    name: str
    width: int | None
    height: int | None
    fps: float | None
    frame_count: int | None
    live: bool


class Decoder:
    """Child process that decodes one source.

    Args:
        limits: Limits of the server.

    Attributes:
        outages: How often the connection to the source was lost so far.
        warnings: Sentences about problems, known at the end of the source.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._live = False
        self.outages = 0
        self.warnings: list[str] = []
        self._process = DecoderProcess(
            "refervos.serving.decoding",
            limits.decode_bytes,
            limits.decode_seconds,
            quiet=True,  # FFmpeg repeats addresses with their passwords
        )

    def open(self, spec: str, start: int = 0, named: str | None = None) -> DecodedInfo:
        """Open a source, or open it again at another frame.

        Args:
            spec: A path or an address.
            start: First frame to decode.
            named: Name of a file in messages, in place of its path.

        Returns:
            Information about it.

        Raises:
            VideoError: It cannot be read, is too large, or decoding takes too long.
        """
        self._live = False
        try:
            header, _ = self._ask({"do": "open", "spec": spec, "start": start, "wait": self._limits.camera_wait})
        except VideoError as error:
            if named is None:
                raise
            raise type(error)(str(error).replace(spec, named)) from None
        info = DecodedInfo(**header) if named is None else DecodedInfo(**{**header, "name": named})
        self._live = info.live
        width, height, limits = info.width or 0, info.height or 0, self._limits
        if max(width, height) > limits.side or width * height > limits.pixels:
            self.close()
            raise VideoError(
                f"The frames of '{info.name}' are {width} x {height} pixels; at most {limits.side} pixels a side and "
                f"{limits.pixels} in total are allowed."
            )
        return info

    def next(self) -> Frame | None:
        """Decode the next frame; None at the end.

        Raises:
            VideoError: Decoding failed or takes too long.
        """
        header, _ = message = self._ask({"do": "next"})
        if header.get("end"):
            self.warnings = header["warnings"]
            return None
        self.outages = header["outages"]
        return frame_of(message)

    def times(self, path: str) -> dict[str, Any]:
        """Read the presentation times of a video file.

        Args:
            path: The file.

        Returns:
            ``times``, seconds since the first frame or None; ``start_time``, the first frame's own time; and
            ``playable``, whether browsers play the file.
        """
        return self._ask({"do": "times", "path": path})[0]

    def close(self) -> None:
        """End the process; safe to call twice, from any thread."""
        self._process.close()

    def _ask(self, request: dict[str, Any]) -> Message:
        """Send a request and wait for its answer, within the time limit unless the source is live."""
        self._process.send(request)
        message = self._process.receive(None if self._live else 2 * self._limits.decode_seconds)
        if message is None:
            raise VideoError(
                "The video cannot be decoded within the limits of memory and time, or it crashes the decoder; "
                "re-encode it as H.264."
            )
        raise_error(message[0], EndOfVideoError)
        return message


def read_frame(path: Path, index: int, named: str, limits: Limits) -> ImageArray:
    """Read one frame of a file.

    Args:
        path: The file.
        index: Index of the frame.
        named: Name of the file in messages.
        limits: Limits of the server.

    Returns:
        uint8 (H, W, 3).

    Raises:
        VideoError: There is no such frame, or it cannot be decoded.
    """
    decoder = Decoder(limits)
    try:
        decoder.open(str(path), index, named)
        frame = decoder.next()
    finally:
        decoder.close()
    if frame is None:
        raise EndOfVideoError(f"'{named}' has no frame {index}.")
    return frame.image


class FrameFeed:
    """Frames of one source, decoded ahead by a thread: the next ones of a recording, the newest one of a live source.

    Args:
        spec: A path or an address.
        named: Name of a file in messages, in place of its path.
        limits: Limits of the server.
        notify: Called from the thread when a frame, the end or an error has arrived.

    Attributes:
        info: Information about the source; None until it is open.
        error: Why decoding ended early; None if it did not.
        ended: Whether the source has no more frames beyond those that wait.
    """

    def __init__(self, spec: str, named: str | None, limits: Limits, notify: Callable[[], None]) -> None:
        self._named = named
        self._spec, self._limits, self._notify = spec, limits, notify
        self._changed = threading.Condition()
        self._frames: deque[Frame] = deque()
        self._start: int | None = 0
        self._closed = False
        self.info: DecodedInfo | None = None
        self.error: VideoError | None = None
        self.ended = False
        self._decoder = Decoder(limits)
        self._thread = threading.Thread(target=self._fill, name="decoding", daemon=True)
        self._thread.start()

    @property
    def outages(self) -> int:
        """How often the connection to the source was lost so far."""
        return self._decoder.outages

    @property
    def ready(self) -> bool:
        """Whether ``take`` would return a frame."""
        return bool(self._frames)

    def take(self, timeout: float = 0.0) -> Frame | None:
        """Return the next frame, or the newest of a live source.

        Args:
            timeout: Seconds to wait for it.

        Returns:
            The frame; None if there is none yet, at the end, and after an error.
        """
        with self._changed:
            if timeout:
                self._changed.wait_for(lambda: self._frames or self.ended or self._closed, timeout)
            frame = self._frames.popleft() if self._frames else None
            self._changed.notify_all()
            return frame

    def seek(self, start: int) -> None:
        """Continue at another frame of a recording."""
        with self._changed:
            self._start = start
            self._frames.clear()
            self.ended, self.error = False, None
            self._changed.notify_all()

    def close(self) -> None:
        """End the decoding process and the thread; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._decoder.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _fill(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._closed:
                    return
                start, self._start = self._start, None
            try:
                if start is not None:
                    self.info = self._decoder.open(self._spec, start, self._named)
                    continue
                frame = self._decoder.next()
            except VideoError as error:
                self._end(None if isinstance(error, EndOfVideoError) else error)
            else:
                self._put(frame)
            self._notify()

    def _has_work(self) -> bool:
        if self._closed or self._start is not None:
            return True
        live = self.info is not None and self.info.live
        return not self.ended and (live or len(self._frames) < _AHEAD)

    def _end(self, error: VideoError | None) -> None:
        with self._changed:
            if self._start is None:
                self.error, self.ended = error, True
            self._changed.notify_all()

    def _put(self, frame: Frame | None) -> None:
        with self._changed:
            if self._start is not None:
                return  # it is from before a seek
            if frame is None:
                self.ended = True
            else:
                if self.info is not None and self.info.live:
                    self._frames.clear()
                self._frames.append(frame)
            self._changed.notify_all()


# The child.

_PLAYABLE = {"mp4": {"h264", "av1", "vp9"}, "webm": {"vp8", "vp9", "av1"}}
"""Codecs that browsers play, by container, in 8-bit 4:2:0."""

_UNPLAYABLE = {"times": None, "playable": False, "start_time": 0.0, "media_type": "application/octet-stream"}


class _Reader:
    """The open source of the process."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._source: Any = None
        self._frames: Iterator[Any] = iter(())

    def answer(self, request: dict[str, Any]) -> Iterator[Message]:
        """Answer one request."""
        _limit_seconds(self._seconds)
        yield getattr(self, f"_{request.pop('do')}")(**request)

    def _open(self, spec: str, start: int, wait: float) -> Message:
        if self._source is not None:
            self._source.close()
        self._source = open_source(spec, start=start, reconnect=ReconnectPolicy(give_up=wait), redirects=False)
        self._frames = iter(self._source)
        info = self._source.info
        header = {name: getattr(info, name) for name in ("name", "width", "height", "frame_count", "live")}
        return {**header, "fps": None if info.fps is None else float(info.fps)}, b""

    def _next(self) -> Message:
        frame = next(self._frames, None)
        if frame is None:
            return {"end": True, "warnings": self._source.warnings}, b""
        return frame_message(frame, name=None, outages=self._source.losses.outages)

    def _times(self, path: str) -> Message:
        """Read the presentation times of all packets of a video file without decoding them."""
        times: list[float] = []
        try:
            with open_input(f"file:{path}") as container:
                stream = container.streams.best("video")
                if stream is None or stream.codec_context is None:
                    return dict(_UNPLAYABLE), b""
                codec = stream.codec_context
                names = set(container.format.name.split(","))
                playable = codec.pix_fmt in ("yuv420p", "yuvj420p") and any(
                    kind in names and codec.name.removeprefix("lib") in codecs for kind, codecs in _PLAYABLE.items()
                )
                for packet in container.demux(stream):
                    if packet.pts is not None and packet.size:
                        times.append(float(packet.pts * packet.time_base))
        except (FFmpegError, ValueError, OSError):
            return dict(_UNPLAYABLE), b""
        times.sort()
        start = times[0] if times else 0.0
        relative = [round(each - start, 6) for each in times if math.isfinite(each)]
        media_type = (
            f"video/{next(kind for kind in _PLAYABLE if kind in names)}" if playable else "application/octet-stream"
        )
        return {"times": relative or None, "playable": playable, "start_time": start, "media_type": media_type}, b""


def _limit_memory(size: int) -> None:
    """Limit the address space of this process, where the system can."""
    with contextlib.suppress(ImportError):  # Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_seconds(seconds: float) -> None:
    """Limit the processor time until the next request; the system ends the process beyond it."""
    with contextlib.suppress(ImportError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    _limit_memory(int(sys.argv[1]))
    answer_requests(_Reader(float(sys.argv[2])).answer)
