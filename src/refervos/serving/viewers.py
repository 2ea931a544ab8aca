"""Viewers: the connections that watch a session, with a window of frames in flight."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class Viewer:
    """One connection that watches a session. The session's thread offers messages, the event loop sends them.

    Args:
        loop: The event loop that sends.
        window: Number of frames sent before one must be acknowledged.
        notify: Called after an acknowledgement, so that the session goes on.

    Attributes:
        sends_frames: Whether it has sent frames of a webcam.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, window: int, notify: Callable[[], None]) -> None:
        self._loop, self._window, self._notify = loop, window, notify
        self._lock = threading.Lock()
        self._queue: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        self._in_flight: deque[int] = deque()
        self._newest: tuple[int, bytes] | None = None  # a live frame that waits for room
        self._heard = time.monotonic()
        self.sends_frames = False

    @property
    def has_room(self) -> bool:
        """Whether another frame may be sent."""
        with self._lock:
            return len(self._in_flight) < self._window

    def silent_for(self) -> float:
        """Return for how many seconds a frame has been waiting for its acknowledgement."""
        with self._lock:
            return time.monotonic() - self._heard if len(self._in_flight) >= self._window else 0.0

    def offer_frame(self, frame: int, message: bytes, *, newest_wins: bool) -> None:
        """Send a frame, or let it replace the waiting one of a live source.

        Args:
            frame: Its index.
            message: The binary message.
            newest_wins: Whether to keep only the newest frame while there is no room; otherwise it is sent anyway.
        """
        with self._lock:
            if newest_wins and len(self._in_flight) >= self._window:
                self._newest = (frame, message)
                return
            self._launch(frame, message)

    def offer_event(self, event: dict[str, Any]) -> None:
        """Send an event, ahead of no frame that was offered before."""
        self._put(json.dumps(event))

    def acknowledge(self, frame: int) -> None:
        """Make room: the viewer has received this frame, and with it those sent before."""
        with self._lock:
            self._heard = time.monotonic()
            if frame in self._in_flight:
                while self._in_flight.popleft() != frame:
                    pass
            if self._newest is not None and len(self._in_flight) < self._window:
                waiting, self._newest = self._newest, None
                self._launch(*waiting)
        self._notify()

    def close(self) -> None:
        """End ``messages``; nothing more is sent."""
        self._put(None)

    async def next(self) -> bytes | str | None:
        """Return the next message to send: bytes, text, or None at the end."""
        return await self._queue.get()

    def _launch(self, frame: int, message: bytes) -> None:
        if not self._in_flight:
            self._heard = time.monotonic()
        self._in_flight.append(frame)
        self._put(message)

    def _put(self, message: bytes | str | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, message)
        except RuntimeError:  # the server is stopping and the loop is closed
            return
