"""Keeps the times of frames in order, whatever a stream says about them."""

from __future__ import annotations

# FFmpeg takes a larger leap for a clock that was set anew, too (its option dts_delta_threshold).
_LONGEST_PAUSE = 10.0


class Timeline:
    """Seconds since the first frame, made of the times that a decoder tells.

    Where a time is missing, one frame's duration is added. A clock that runs backwards was set anew, by an encoder that
    started again or by packets that were lost; time then goes on from the frame before. So does it after a leap forward
    of more than ten seconds in containers whose clocks may leap, such as MPEG-TS.

    Args:
        begin: What the clock says at the first frame, in seconds.
        step: Duration of a frame in seconds; None while unknown.
        may_leap: Whether the container's clock may leap.
    """

    def __init__(self, begin: float, step: float | None, may_leap: bool) -> None:
        self._offset = -begin
        self._step = step
        self._may_leap = may_leap
        self._last: float | None = None

    def at(self, told: float | None) -> float | None:
        """The time of the next frame.

        Args:
            told: What the clock says at it, in seconds, or None where it says nothing.

        Returns:
            Seconds since the first frame, never less than for the frame before; None where nothing is known.
        """
        following = 0.0 if self._last is None else self._last + (self._step or 0.0)
        if told is None:
            unknown = self._last is not None and self._step is None
            self._last = following
            return None if unknown else following
        if self._last is not None:
            leap = told + self._offset - self._last
            if leap < 0 or (self._may_leap and leap > _LONGEST_PAUSE):
                self._offset = following - told
        self._last = told + self._offset
        return self._last
