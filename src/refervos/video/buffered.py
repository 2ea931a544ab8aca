"""Reads a source in a thread of its own, so that frames are decoded while others are being worked on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator
from dataclasses import replace

from refervos.video.frames import Frame
from refervos.video.reader import Losses, Reader

# A read that is under way cannot be broken off; one that hangs is left to end by itself.
_JOIN_TIMEOUT = 1.0


class BufferedReader(Reader):
    """A source behind a buffer of a few frames, filled by a thread.

    What the source raises comes out after the frames before it, as it would without a buffer. The thread closes the
    source, at its end or when this reader is closed.

    Args:
        source: What to read; belongs to this reader from now on.
        capacity: Frames that wait at most, at least 1.
        drops: Whether the oldest frame in a full buffer is dropped and counted, or the thread waits for room.
        ended: Set when no more frames are wanted, for the source to stop waiting, too.
    """

    def __init__(self, source: Reader, capacity: int, *, drops: bool, ended: threading.Event | None = None) -> None:
        super().__init__(source.info)
        self._source = source
        self._capacity = capacity
        self._drops = drops
        self._ended = ended or threading.Event()
        self._waiting: deque[Frame] = deque()
        self._asked = False
        self._late = 0
        self._exhausted = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._fill, name=f"frames of {source.info.name}", daemon=True)
        self._thread.start()

    @property
    def notes(self) -> list[str]:
        """Sentences on how it is read, where one may not expect that; nothing has gone wrong."""
        return self._source.notes

    @property
    def warnings(self) -> list[str]:
        """Sentences on what has gone wrong so far without stopping the reading."""
        return self._source.warnings

    @property
    def losses(self) -> Losses:
        """What has been lost so far."""
        return replace(self._source.losses, late=self._late)

    def _generate(self) -> Generator[Frame, None, None]:
        self._asked = True
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
                    if not self._take(frame):
                        break
        except BaseException as error:  # whatever it is, it belongs to the reader, in whose thread it is raised again
            self._failure = error
        finally:
            with self._changed:
                self._exhausted = True
                self._changed.notify_all()

    def _take(self, frame: Frame) -> bool:
        """Puts a frame into the buffer; False when no more are wanted."""
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
        """Makes room; a gap before the dropped frame is then one before the next. Returns the newest frame."""
        dropped = self._waiting.popleft()
        self._late += self._asked  # before the first is asked for, as while a model is loaded, none comes too fast
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
