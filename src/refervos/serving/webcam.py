"""Frames that a browser sends from its webcam, as JPEG."""

from __future__ import annotations

import io
import math
import struct
import threading
import time
from collections.abc import Callable

from PIL import Image

from refervos.errors import VideoError
from refervos.files.images import rgb_from_pil
from refervos.serving.decoding import DecodedInfo
from refervos.serving.limits import Limits
from refervos.video import Frame

_TIME = struct.Struct("<d")
_LONGEST_PAUSE = 86_400
"""Seconds between two frames beyond which the sender's clock is not believed."""


class PushedFeed:
    """The newest frame that was pushed; decoded when the session asks for it.

    Args:
        limits: Limits of the server.
        notify: Called when a frame has arrived.

    Attributes:
        info: Information about the source.
        error: None; a broken picture is the sender's problem alone.
        ended: Whether no more frames follow.
        outages: How often the sender disconnected.
    """

    def __init__(self, limits: Limits, notify: Callable[[], None]) -> None:
        self._limits, self._notify = limits, notify
        self._changed = threading.Condition()
        self._newest: Frame | None = None
        self._count = 0
        self._seconds: float | None = None  # time of the last frame
        self._offset = self._arrived = 0.0
        self._gap = False
        self.info: DecodedInfo | None = DecodedInfo("webcam", None, None, None, None, live=True)
        self.error: VideoError | None = None
        self.ended = False
        self.outages = 0

    def push(self, message: bytes) -> None:
        """Take a frame: eight bytes of capture time in milliseconds (float64, little-endian), then a JPEG.

        Raises:
            VideoError: When it is not such a message, or the picture is broken or too large.
        """
        if len(message) < _TIME.size + 2:
            raise VideoError("the frame is empty; send eight bytes of time and a JPEG.")
        (milliseconds,) = _TIME.unpack_from(message)
        try:
            picture = Image.open(io.BytesIO(message[_TIME.size :]), formats=["JPEG"])
            if max(picture.size) > self._limits.side or picture.width * picture.height > self._limits.pixels:
                raise VideoError(f"the frame has {picture.width} x {picture.height} pixels, more than are allowed.")
            image = rgb_from_pil(picture)
        except VideoError:
            raise
        except Exception as error:  # Pillow raises many kinds on a broken file
            raise VideoError("the frame is not a JPEG that can be read.") from error
        with self._changed:
            self._newest = Frame(self._count, image, self._time_of(milliseconds), after_gap=self._gap)
            self._gap = False
            self._count += 1
            self._changed.notify_all()
        self._notify()

    def _time_of(self, milliseconds: float) -> float:
        """Return the time of a frame in seconds since the first; a sender that connects again may count anew."""
        before, self._arrived = self._arrived, time.monotonic()
        seconds, last = milliseconds / 1000 + self._offset, self._seconds
        if self._gap or last is None or not last <= seconds < last + _LONGEST_PAUSE:
            seconds = 0.0 if last is None else last + self._arrived - before
            self._offset = seconds - milliseconds / 1000 if math.isfinite(milliseconds) else 0.0
        self._seconds = seconds
        return seconds

    def disconnected(self) -> None:
        """Record that the sender has gone; a later frame follows a gap."""
        with self._changed:
            if self._count:
                self._gap = True
                self.outages += 1

    @property
    def ready(self) -> bool:
        """Whether ``take`` would return a frame."""
        return self._newest is not None

    def take(self, timeout: float = 0.0) -> Frame | None:
        """Return the newest frame; None if there is none since the last call."""
        with self._changed:
            if timeout:
                self._changed.wait_for(lambda: self._newest is not None or self.ended, timeout)
            frame, self._newest = self._newest, None
            return frame

    def seek(self, start: int) -> None:
        """Do nothing: frames that were not kept cannot come again."""

    def close(self) -> None:
        """Wake whoever waits; no frames follow."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()
