"""Read a source in a thread, so that frames are decoded while others are processed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from dataclasses import replace

from refervos.video.frames import Frame
from refervos.video.reader import Losses, Reader

# A blocking read cannot be interrupted; one that hangs is left to end by itself.
_JOIN_TIMEOUT = 1.0


class BufferedReader(Reader):
    """Source behind a buffer of a few frames, which a thread fills.

    Exceptions of the source are raised after the frames before them, as without a buffer. The thread closes the source
    at its end or when this reader is closed.

    Args:
        source: Source to read, owned by this reader from now on.
        capacity: Maximum number of buffered frames, at least 1.
        drops: Whether a full buffer drops its oldest frame and counts it; if False, the thread waits.
        ended: Event set when no more frames are needed, so that the source also stops waiting.
    """

    def __init__(self, source: Reader, capacity: int, *, drops: bool, ended: threading.Event | None = None) -> None:
        super().__init__(source.info)
        self._source = source
        self._capacity = capacity
        self._drops = drops
        self._ended = ended or threading.Event()
        self._waiting: deque[Frame] = deque()
        self._requested = False
        self._late = 0
        self._exhausted = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._fill, name=f"frames of {source.info.name}", daemon=True)
        self._thread.start()

    @property
    def notes(self) -> list[str]:
        """Sentences about unusual properties of the source and how they are handled; not errors."""
        return self._source.notes

    @property
    def warnings(self) -> list[str]:
        """Sentences about problems so far that did not stop the reading."""
        return self._source.warnings

    @property
    def losses(self) -> Losses:
        """Losses so far."""
        return replace(self._source.losses, late=self._late)

    def _generate(self) -> Generator[Frame, None, None]:
        self._requested = True
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._exhausted)
                if not self._waiting:
                    break
                frame = self._waiting.popleft()
                self._changed.notify_all()
            yield frame
        if self._failure is not None:
            raise self._failure

    def _fill(self) -> None:
        try:
            with self._source:
                for frame in self._source:
                    if not self._put(frame):
                        break
        except BaseException as error:  # raised again in the thread of the reader
            self._failure = error
        finally:
            with self._changed:
                self._exhausted = True
                self._changed.notify_all()

    def _put(self, frame: Frame) -> bool:
        """Put a frame into the buffer; False if no more are needed."""
        with self._changed:
            if self._drops:
                if len(self._waiting) == self._capacity:
                    frame = self._drop_oldest(frame)
            else:
                self._changed.wait_for(lambda: len(self._waiting) < self._capacity or self._ended.is_set())
            if self._ended.is_set():
                return False
            self._waiting.append(frame)
            self._changed.notify_all()
            return True

    def _drop_oldest(self, newest: Frame) -> Frame:
        """Drop the oldest frame, moving a gap before it to the next frame, and return the newest frame."""
        dropped = self._waiting.popleft()
        self._late += self._requested  # frames before the first request, as while a model is loaded, are not counted
        if not dropped.after_gap:
            return newest
        if not self._waiting:
            return replace(newest, after_gap=True)
        self._waiting[0] = replace(self._waiting[0], after_gap=True)
        return newest

    def _release(self) -> None:
        self._ended.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(_JOIN_TIMEOUT)
