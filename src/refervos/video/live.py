"""Cameras and network streams that go away and come back."""

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
    """How patiently a live source that went away is asked again.

    Attributes:
        first: Seconds before the first attempt.
        factor: By how much longer each wait is than the one before.
        longest: Seconds that a wait takes at most.
        give_up: Seconds after which a source that has not come back is given up.
        wait: Whether a source that is not there at the start is waited for, too, in the same manner.

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
                f"{self} cannot be followed; first must be above 0 and at most longest, factor at least 1, "
                "give_up at least 0."
            )

    def waits(self) -> Iterator[float]:
        """Seconds before each attempt, without end."""
        seconds = self.first
        while True:
            yield seconds
            seconds = min(seconds * self.factor, self.longest)


class LiveReader(Reader):
    """Frames of a live source over all its connections.

    Indices and times go on over a gap: the index counts the frames that came, the time includes how long the source was
    away.

    Args:
        connect: Connects and gives the frames from then on; raises `VideoError` where nobody answers.
        first: The first connection.
        reconnect: How to connect again; None to end when the source first goes away.
        start: First frame to yield.
        stop: Frame before which to end; None to go on until closed.
        clock: The seconds by which a connection tells when it was last heard.
        pause: Waits for so many seconds; True where waiting was ended by somebody who wants no more frames.
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
        """Sentences on how it is read, where one may not expect that; nothing has gone wrong."""
        return self._connection.notes

    @property
    def warnings(self) -> list[str]:
        """Sentences on what has gone wrong so far without stopping the reading."""
        described = self._connection.described
        found = damage(described, self._damaged + self._connection.damaged)
        if self._losses.outages:
            times = "once" if self._losses.outages == 1 else f"{self._losses.outages} times"
            found.append(f"{described} went away {times}, for {self._losses.away:.1f} seconds in all.")
        if self._end is not None:
            found.append(f"{described} {self._end}.")
        return found

    @property
    def losses(self) -> Losses:
        """What has been lost so far."""
        return self._losses

    def _generate(self) -> Generator[Frame, None, None]:
        count = 0
        last: float | None = 0.0  # time of the last frame
        begin: float | None = 0.0  # time at which the connection at hand began
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
                f"{self._connection.described} gave {frames_text(count)}, so there is none from frame {self._start} on."
            )

    def _release(self) -> None:
        self._connection.close()


def await_connection(
    connect: Callable[[], MediaReader],
    reconnect: ReconnectPolicy,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], bool] | None = None,
) -> MediaReader | None:
    """Asks a source that is not there, again and again, until it is.

    Args:
        connect: Connects; raises `VideoError` where nobody answers.
        reconnect: How patiently.
        clock: Seconds from any moment on.
        pause: Waits for so many seconds; True where waiting was ended.

    Returns:
        The connection, or None where patience or the waiting ended.
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
