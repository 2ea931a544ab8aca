"""Monotonic frame times from unreliable timestamps."""

from __future__ import annotations

# As in FFmpeg (option dts_delta_threshold), a larger jump is a reset of the clock.
_LONGEST_PAUSE = 10.0


class Timeline:
    """Converter from decoder timestamps to seconds since the first frame.

    A missing timestamp adds the duration of one frame. A timestamp that decreases means that the clock was reset, by a
    restarted encoder or by lost packets; time then continues from the previous frame. The same holds for a jump forward
    of more than ten seconds in containers with discontinuous timestamps, such as MPEG-TS.

    Args:
        begin: Timestamp of the first frame in seconds.
        step: Duration of a frame in seconds; None if unknown.
        may_leap: Whether the container allows discontinuous timestamps.
    """

    def __init__(self, begin: float, step: float | None, may_leap: bool) -> None:
        self._offset = -begin
        self._step = step
        self._may_leap = may_leap
        self._last: float | None = None

    def at(self, timestamp: float | None) -> float | None:
        """Return the time of the next frame.

        Args:
            timestamp: Its timestamp in seconds; None if missing.

        Returns:
            Seconds since the first frame, never less than for the previous frame; None if unknown.
        """
        following = 0.0 if self._last is None else self._last + (self._step or 0.0)
        if timestamp is None:
            unknown = self._last is not None and self._step is None
            self._last = following
            return None if unknown else following
        if self._last is not None:
            leap = timestamp + self._offset - self._last
            if leap < 0 or (self._may_leap and leap > _LONGEST_PAUSE):
                self._offset = following - timestamp
        self._last = timestamp + self._offset
        return self._last
