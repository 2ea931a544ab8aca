"""Decoding in a child process, which can be killed when a damaged video hangs or crashes the decoder.

The child (``python -m refervos.batch.decoding``) reads requests from its standard input and writes messages to its
standard output: a header of JSON, and for frames their pixels. It ends when its parent does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from refervos.batch.inputs import facts_of, open_input
from refervos.errors import EndOfVideoError, RefervosError, VideoError
from refervos.video import Frame, Source

AHEAD = 32
"""Maximum number of decoded frames that wait for the model: four clips of the published length."""

_POLL = 0.2
_KILLED_WITHIN = 10.0


class DecoderTimeoutError(VideoError):
    """The decoder gave no frame in time and was killed."""


class DecoderDiedError(VideoError):
    """The decoder's process died, for instance of a crash in a codec."""


class InputChangedError(VideoError):
    """The video is no longer the file for which the work was planned."""


class Decoder:
    """Child process that decodes videos, started when needed and again after it was killed.

    Args:
        poll: Called several times per second while waiting for frames; may raise.
    """

    def __init__(self, poll: Callable[[], None] = lambda: None) -> None:
        self._poll = poll
        self._child: subprocess.Popen[bytes] | None = None
        self.warnings: list[str] = []
        self.counted: int | None = None

    def count_frames(self, uri: str, patience: float) -> int | None:
        """Return the number of frames that a video's header states.

        Args:
            uri: Absolute path or address.
            patience: Seconds to wait for an answer.

        Returns:
            The number; None if the video does not state it, cannot be read, or hangs in the decoder.
        """
        with contextlib.suppress(VideoError):
            for _ in self.frames(uri, 0, None, version=None, patience=patience, total=patience, probe=True):
                pass
            return self.counted
        return None

    def frames(
        self,
        uri: str,
        start: int,
        end: int | None,
        *,
        version: str | None,
        patience: float,
        total: float,
        probe: bool = False,
        resumed: bool = False,
    ) -> Iterator[Frame]:
        """Decode a video.

        Args:
            uri: Absolute path or address.
            start: First frame to yield.
            end: Frame before which to end; None for all.
            version: Version that the file must have; None to accept any.
            patience: Seconds to wait for one frame.
            total: Seconds to wait for all frames together; time that the caller spends on frames does not count.
            probe: Read the header alone and yield no frames.
            resumed: Whether earlier frames were decoded before, so that there may be none left.

        Yields:
            The frames; afterwards ``warnings`` has the sentences of the source, and ``counted`` the number of frames
            that the header states.

        Raises:
            VideoError: When the video cannot be read, has changed, or the decoder hangs or dies.
        """
        self.warnings = []
        request = {"uri": uri, "start": start, "end": end, "version": version, "probe": probe, "resumed": resumed}
        messages: queue.Queue[tuple[dict[str, Any], bytearray] | None] = queue.Queue(AHEAD)
        child = self._running()
        abandoned = threading.Event()
        thread = threading.Thread(target=_receive, args=(child.stdout, messages, abandoned), daemon=True)
        finished = False
        try:
            with contextlib.suppress(OSError):  # a dead child is reported below
                assert child.stdin is not None
                child.stdin.write(json.dumps(request).encode() + b"\n")
                child.stdin.flush()
            thread.start()
            waited = 0.0
            while True:
                message, seconds = self._next(uri, messages, min(patience, max(patience, total) - waited), patience)
                waited += seconds
                if message is None:
                    raise DecoderDiedError(f"'{uri}' ends the decoder's process ({_ending(child)}); re-encode it.")
                header, pixels = message
                if header["kind"] == "frame":
                    image = np.frombuffer(pixels, np.uint8).reshape(header["shape"])
                    yield Frame(header["index"], image, header["time"], header["name"])
                    continue
                finished = True
                if header["kind"] == "error":
                    raise _ERRORS.get(header["class"], VideoError)(header["sentence"])
                self.warnings, self.counted = header["warnings"], header["counted"]
                return
        finally:
            abandoned.set()
            if not finished:
                self.close()

    def _next(
        self, uri: str, messages: queue.Queue[Any], limit: float, patience: float
    ) -> tuple[tuple[dict[str, Any], bytearray] | None, float]:
        """Wait for a message; return it and the time spent."""
        begun = time.monotonic()
        while True:
            self._poll()
            with contextlib.suppress(queue.Empty):
                return messages.get(timeout=_POLL), time.monotonic() - begun
            if time.monotonic() - begun > limit:
                raise DecoderTimeoutError(
                    f"'{uri}' hangs in the decoder (no frame in {patience:g} seconds, or too few in ten times the "
                    "expected time); re-encode it, or give a longer --timeout."
                )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            command = [sys.executable, "-m", "refervos.batch.decoding"]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self._child

    def close(self) -> None:
        """Kill the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_KILLED_WITHIN)
            for pipe in (child.stdin, child.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()


_ERRORS: dict[str, type[VideoError]] = {"InputChangedError": InputChangedError}


def _ending(child: subprocess.Popen[bytes]) -> str:
    try:
        code = child.wait(_KILLED_WITHIN)
    except subprocess.TimeoutExpired:
        return "it closed its output"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _receive(
    stream: BinaryIO, messages: queue.Queue[tuple[dict[str, Any], bytearray] | None], abandoned: threading.Event
) -> None:
    """Pass messages of one video on, None if the child ends before the last one."""
    last = False
    while not last and not abandoned.is_set():
        message = None
        with contextlib.suppress(OSError, ValueError):  # the pipe was closed
            message = _read_message(stream)
        last = message is None or message[0]["kind"] != "frame"
        while not abandoned.is_set():
            with contextlib.suppress(queue.Full):
                messages.put(message, timeout=_POLL)
                break


def _read_message(stream: BinaryIO) -> tuple[dict[str, Any], bytearray] | None:
    head = stream.read(8)
    if len(head) < 8:
        return None
    header_size, size = struct.unpack("<II", head)
    header = stream.read(header_size)
    pixels = bytearray(size)
    filled, view = 0, memoryview(pixels)
    while filled < size:
        count = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not count:
            return None
        filled += count
    return json.loads(header), pixels


def _write_message(stream: BinaryIO, header: dict[str, Any], pixels: Any = b"") -> None:
    text = json.dumps(header).encode()
    stream.write(struct.pack("<II", len(text), memoryview(pixels).nbytes) + text)
    stream.write(pixels)
    stream.flush()


# The child.


def main() -> None:
    """Answer requests until the parent closes the standard input."""
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print must not mix with messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal and Slurm signal all processes; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    while True:
        _answer(requests.get(), output)


def _listen(requests: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)  # also when the decoder hangs


def _answer(request: dict[str, Any], output: BinaryIO) -> None:
    try:
        uri, version = request["uri"], request["version"]
        if version is not None and facts_of(uri).version not in (version, "missing"):
            raise InputChangedError(f"'{uri}' has changed since the work was planned; run the same command again.")
        with open_input(uri, request["start"], request["end"]) as source:
            for frame in () if request["probe"] else _frames_of(source, request["resumed"]):
                header = {"kind": "frame", "index": frame.index, "time": frame.time, "name": frame.name}
                _write_message(output, {**header, "shape": frame.image.shape}, np.ascontiguousarray(frame.image))
            end = {"kind": "end", "warnings": [*source.notes, *source.warnings]}
            _write_message(output, {**end, "counted": source.info.frame_count})
    except BrokenPipeError:
        os._exit(1)
    except Exception as error:
        known = isinstance(error, RefervosError)
        sentence = str(error) if known else f"'{request['uri']}' cannot be decoded ({type(error).__name__}: {error})."
        _write_message(output, {"kind": "error", "class": type(error).__name__, "sentence": sentence})


def _frames_of(source: Source, resumed: bool) -> Iterator[Frame]:
    try:
        yield from source
    except EndOfVideoError:
        if not resumed:
            raise


if __name__ == "__main__":
    main()
