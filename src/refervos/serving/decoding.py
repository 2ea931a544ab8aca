"""Decoding in a process of its own, which can be killed and cannot use more memory or time than it is given."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refervos.errors import EndOfVideoError, VideoError
from refervos.files.images import ImageArray
from refervos.serving.decoder_process import LENGTH
from refervos.serving.limits import Limits
from refervos.video import Frame

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
    """A decoding process.

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
        self._process = subprocess.Popen(
            [sys.executable, "-m", "refervos.serving.decoder_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # FFmpeg repeats addresses with their passwords
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        self._send({"bytes": limits.decode_bytes, "seconds": limits.decode_seconds})

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
            header = self._ask({"do": "open", "spec": spec, "start": start, "wait": self._limits.camera_wait})
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
        header = self._ask({"do": "next"})
        if header.get("end"):
            self.warnings = header["warnings"]
            return None
        height, width = header["h"], header["w"]
        pixels = self._receive(height * width * 3)
        self.outages = header["outages"]
        image = np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
        return Frame(header["index"], image, header["time"], after_gap=header["after_gap"])

    def times(self, path: str) -> dict[str, Any]:
        """Read the presentation times of a video file.

        Args:
            path: The file.

        Returns:
            ``times``, seconds since the first frame or None; ``start_time``, the first frame's own time; and
            ``playable``, whether browsers play the file.
        """
        return self._ask({"do": "times", "path": path})

    def close(self) -> None:
        """End the process; safe to call twice, from any thread."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # a request that was not read
                    pipe.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise self._died() from error

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self._send(request)
        (length,) = LENGTH.unpack(self._receive(LENGTH.size))
        header: dict[str, Any] = json.loads(self._receive(length))
        if "error" in header:
            kind = EndOfVideoError if header["error"] == "EndOfVideoError" else VideoError
            raise kind(header["sentence"])
        return header

    def _receive(self, size: int) -> bytearray:
        """Read exactly so many bytes, within the time limit unless the source is live."""
        assert self._process.stdout is not None
        content, view = bytearray(size), 0
        while view < size:
            try:
                descriptor = self._process.stdout.fileno()
                if not self._live and not select.select([descriptor], [], [], 2 * self._limits.decode_seconds)[0]:
                    self._process.kill()
                part = os.read(descriptor, min(size - view, 1 << 20))
            except (OSError, ValueError) as error:
                raise self._died() from error
            if not part:
                raise self._died()
            content[view : view + len(part)] = part
            view += len(part)
        return content

    def _died(self) -> VideoError:
        return VideoError(
            "The video cannot be decoded within the limits of memory and time, or it crashes the decoder; re-encode it "
            "as H.264."
        )


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
