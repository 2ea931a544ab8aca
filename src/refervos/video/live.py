"""Cameras and network streams that disconnect and are reconnected."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from threading import Event

from refervos.errors import VideoError
from refervos.video.frames import Frame, frames_text
from refervos.video.media import MediaReader, damage
from refervos.video.reader import Losses, Reader


@dataclass(frozen=True)
class ReconnectPolicy:
    """Exponential back-off for a live source that disconnects.

    Attributes:
        first: Seconds before the first attempt.
        factor: Factor by which the wait grows with each attempt.
        longest: Maximum wait in seconds.
        give_up: Seconds after which a source is given up.
        wait: Whether to also wait for a source that is unavailable at the start.

    Raises:
        VideoError: When a wait is not positive, or waits would shrink.
    """

    first: float = 0.5
    factor: float = 2.0
    longest: float = 30.0
    give_up: float = 300.0
    wait: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.first <= self.longest and self.factor >= 1 and self.give_up >= 0):
            raise VideoError(
                f"{self} is invalid; first must be above 0 and at most longest, factor at least 1, give_up at least 0."
            )

    def waits(self) -> Iterator[float]:
        """Yield the seconds to wait before each attempt, endlessly."""
        seconds = self.first
        while True:
            yield seconds
            seconds = min(seconds * self.factor, self.longest)


class LiveReader(Reader):
    """Frames of a live source across all its connections.

    Indices and times continue after a gap: the index counts the frames received, the time includes the outage.

    Args:
        connect: Opens a new connection; raises ``VideoError`` if that fails.
        first: The first connection.
        reconnect: Reconnection policy; None to end when the source first disconnects.
        start: First frame to yield.
        stop: Frame before which to end; None to continue until closed.
        clock: Returns seconds, with the same origin as ``MediaReader.heard``.
        pause: Waits for a number of seconds; returns True if interrupted because no more frames are needed.
    """

    def __init__(
        self,
        connect: Callable[[], MediaReader],
        first: MediaReader,
        reconnect: ReconnectPolicy | None,
        *,
        start: int = 0,
        stop: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], bool] | None = None,
    ) -> None:
        super().__init__(first.info)
        self._connect = connect
        self._connection = first
        self._reconnect = reconnect
        self._start, self._stop = start, stop
        self._clock = clock
        self._pause = pause or Event().wait
        self._damaged = 0  # on earlier connections
        self._losses = Losses()
        self._end: str | None = None

    @property
    def notes(self) -> list[str]:
        """Sentences about unusual properties of the source and how they are handled; not errors."""
        return self._connection.notes

    @property
    def warnings(self) -> list[str]:
        """Sentences about problems so far that did not stop the reading."""
        described = self._connection.described
        found = damage(described, self._damaged + self._connection.damaged)
        if self._losses.outages:
            times = "once" if self._losses.outages == 1 else f"{self._losses.outages} times"
            found.append(f"{described} was disconnected {times}, for {self._losses.away:.1f} seconds in total.")
        if self._end is not None:
            found.append(f"{described} {self._end}.")
        return found

    @property
    def losses(self) -> Losses:
        """Losses so far."""
        return self._losses

    def _generate(self) -> Generator[Frame, None, None]:
        count = 0
        last: float | None = 0.0  # time of the last frame
        begin: float | None = 0.0  # time at which the current connection began
        after_gap = False
        while True:
            for frame in self._connection:
                last = None if begin is None or frame.time is None else begin + frame.time
                count += 1
                if count > self._start:
                    yield replace(frame, index=count - 1, time=last, after_gap=after_gap)
                    after_gap = False
                if self._stop is not None and count >= self._stop:
                    return
            reason = self._connection.end
            if self._reconnect is None:
                if reason is not None:
                    self._end = f"broke off after {frames_text(count)}: {reason}"
                break
            self._losses = replace(self._losses, outages=self._losses.outages + 1)
            self._connection.close()
            again = await_connection(self._connect, self._reconnect, self._clock, self._pause)
            away = self._clock() - self._connection.heard
            self._losses = replace(self._losses, away=self._losses.away + away)
            if again is None:
                self._end = (
                    f"broke off after {frames_text(count)} ({reason or 'the stream ended'}) "
                    f"and did not come back within {self._reconnect.give_up:g} seconds"
                )
                break
            self._damaged += self._connection.damaged
            self._connection = again
            begin = None if last is None else last + away
            after_gap = True
        if count <= self._start:
            raise VideoError(
                f"{self._connection.described} had only {frames_text(count)}, so none is left from frame "
                f"{self._start} on."
            )

    def _release(self) -> None:
        self._connection.close()


def await_connection(
    connect: Callable[[], MediaReader],
    reconnect: ReconnectPolicy,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], bool] | None = None,
) -> MediaReader | None:
    """Try to connect to an unavailable source until it succeeds.

    Args:
        connect: Opens a connection; raises ``VideoError`` if that fails.
        reconnect: Reconnection policy.
        clock: Returns seconds, with any origin.
        pause: Waits for a number of seconds; returns True if interrupted.

    Returns:
        The connection; None if given up or interrupted.
    """
    pause = pause or Event().wait
    begin = clock()
    for seconds in reconnect.waits():
        if clock() - begin + seconds > reconnect.give_up or pause(seconds):
            return None
        try:
            return connect()
        except VideoError:
            continue
    return None
