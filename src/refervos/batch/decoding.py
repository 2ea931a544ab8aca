"""Decoding of a job's videos in a child process: frames come ahead of the model, and within a time limit."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from refervos.batch.inputs import facts_of, open_input
from refervos.errors import EndOfVideoError, RefervosError, VideoError
from refervos.video import Frame, Source
from refervos.video.decoder_process import (
    DecoderProcess,
    Message,
    answer_requests,
    frame_message,
    frame_of,
    raise_error,
)

AHEAD = 32
"""Maximum number of decoded frames that wait for the model: four clips of the published length."""

_POLL = 0.2


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
        self._child: DecoderProcess | None = None
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
        messages: queue.Queue[Message | None] = queue.Queue(AHEAD)
        if self._child is None or not self._child.running:
            self._child = DecoderProcess("refervos.batch.decoding")
        child = self._child
        abandoned = threading.Event()
        finished = False
        try:
            child.send(request)
            threading.Thread(target=_receive, args=(child, messages, abandoned), daemon=True).start()
            waited = 0.0
            while True:
                message, seconds = self._next(uri, messages, min(patience, max(patience, total) - waited), patience)
                waited += seconds
                if message is None:
                    raise DecoderDiedError(f"'{uri}' ends the decoder's process ({child.ending()}); re-encode it.")
                header = message[0]
                if "shape" in header:
                    yield frame_of(message)
                    continue
                finished = True
                raise_error(header, InputChangedError)
                self.warnings, self.counted = header["warnings"], header["counted"]
                return
        finally:
            abandoned.set()
            if not finished:
                self.close()

    def _next(
        self, uri: str, messages: queue.Queue[Message | None], limit: float, patience: float
    ) -> tuple[Message | None, float]:
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

    def close(self) -> None:
        """Kill the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.close()


def _receive(child: DecoderProcess, messages: queue.Queue[Message | None], abandoned: threading.Event) -> None:
    """Pass messages of one video on, None if the child ends before the last one."""
    last = False
    while not last and not abandoned.is_set():
        message = child.receive()
        last = message is None or "shape" not in message[0]
        while not abandoned.is_set():
            with contextlib.suppress(queue.Full):
                messages.put(message, timeout=_POLL)
                break


# The child.


def _answer(request: dict[str, Any]) -> Iterator[Message]:
    try:
        uri, version = request["uri"], request["version"]
        if version is not None and facts_of(uri).version not in (version, "missing"):
            raise InputChangedError(f"'{uri}' has changed since the work was planned; run the same command again.")
        with open_input(uri, request["start"], request["end"]) as source:
            for frame in () if request["probe"] else _frames_of(source, request["resumed"]):
                yield frame_message(frame)
            yield {"warnings": [*source.notes, *source.warnings], "counted": source.info.frame_count}, b""
    except RefervosError:
        raise
    except Exception as error:
        raise VideoError(f"'{request['uri']}' cannot be decoded ({type(error).__name__}: {error}).") from error


def _frames_of(source: Source, resumed: bool) -> Iterator[Frame]:
    try:
        yield from source
    except EndOfVideoError:
        if not resumed:
            raise


if __name__ == "__main__":
    answer_requests(_answer)
