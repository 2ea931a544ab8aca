"""Decoding in a child process, which can be killed when a damaged video hangs or crashes the decoder.

``DecoderProcess`` is the parent's side. The child is a module whose ``main`` calls ``answer_requests``. Requests are
lines of JSON on the child's standard input, not on its command line, where other users could read a password in an
address. Each message on its standard output is two lengths, a header of JSON, and for a frame its pixels.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import numpy as np

from refervos.errors import RefervosError, VideoError
from refervos.video.frames import Frame

Message = tuple[dict[str, Any], Any]
"""Header of a message, and its pixels, which may be empty."""

_LENGTHS = struct.Struct("<II")
_KILLED_WITHIN = 10.0


class DecoderProcess:
    """Child process that answers requests about videos.

    Args:
        module: Module to run.
        arguments: Arguments of its command line.
        quiet: Whether to discard what it writes to standard error.
    """

    def __init__(self, module: str, *arguments: object, quiet: bool = False) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else None,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._child.poll() is None

    def send(self, request: dict[str, Any]) -> None:
        """Send a request; if the process has ended, ``receive`` will report it."""
        assert self._child.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self._child.stdin.write(json.dumps(request).encode() + b"\n")

    def receive(self, wait: float | None = None) -> Message | None:
        """Wait for the next message.

        Args:
            wait: Seconds without any data after which the process is killed; None to wait without end.

        Returns:
            The message; None if the process has ended, was killed or closed, also by another thread.
        """
        if (lengths := self._read(_LENGTHS.size, wait)) is None:
            return None
        header, pixels = (self._read(size, wait) for size in _LENGTHS.unpack(lengths))
        return None if header is None or pixels is None else (json.loads(header), pixels)

    def _read(self, size: int, wait: float | None) -> bytearray | None:
        content, filled = bytearray(size), 0
        stream: Any = self._child.stdout
        with contextlib.suppress(OSError, ValueError):  # the pipe was closed
            while filled < size:
                if wait is not None and not select.select([stream], [], [], wait)[0]:
                    self._child.kill()
                count = stream.readinto(memoryview(content)[filled:])
                if not count:
                    break
                filled += count
        return content if filled == size else None

    def ending(self) -> str:
        """Wait for the end of the process; return how it ended, for messages."""
        try:
            code = self._child.wait(_KILLED_WITHIN)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        if code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def close(self) -> None:
        """Kill the process; safe to call twice, from any thread."""
        self._child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(_KILLED_WITHIN)
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()


def raise_error(header: dict[str, Any], *kinds: type[VideoError]) -> None:
    """Raise the error that a message reports, if any; as a ``VideoError`` unless its class is one of ``kinds``."""
    if "error" in header:
        raise {kind.__name__: kind for kind in kinds}.get(header["error"], VideoError)(header["sentence"])


def frame_of(message: Message) -> Frame:
    """Return the frame of a message of ``frame_message``."""
    header, pixels = message
    image = np.frombuffer(pixels, np.uint8).reshape(header["shape"])
    return Frame(header["index"], image, header["time"], header["name"], header["after_gap"])


# The child.


def frame_message(frame: Frame, **more: Any) -> Message:
    """Return the message of a frame; ``more`` adds fields to its header, or replaces some."""
    header = {"index": frame.index, "time": frame.time, "name": frame.name, "after_gap": frame.after_gap}
    return {**header, "shape": frame.image.shape, **more}, np.ascontiguousarray(frame.image)


def answer_requests(answer: Callable[[dict[str, Any]], Iterable[Message]]) -> None:
    """Answer requests until the parent closes standard input or ends.

    Args:
        answer: Returns the messages that answer a request; a ``RefervosError`` or lack of memory is the last message.
    """
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not mix with messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal and Slurm signal all processes; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    while True:
        try:
            for message in answer(requests.get()):
                _write(output, message)
        except BrokenPipeError:
            os._exit(1)
        except RefervosError as error:
            _write(output, ({"error": type(error).__name__, "sentence": str(error)}, b""))
        except MemoryError:
            _write(output, ({"error": "VideoError", "sentence": "The video needs too much memory to decode."}, b""))


def _listen(requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    for line in sys.stdin.buffer:
        requests.put(json.loads(line))
    os._exit(0)  # also when the decoder hangs


def _write(output: BinaryIO, message: Message) -> None:
    header, pixels = message
    text = json.dumps(header).encode()
    output.write(_LENGTHS.pack(len(text), memoryview(pixels).nbytes) + text)
    output.write(pixels)
    output.flush()
