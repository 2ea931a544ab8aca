"""What all sources have in common: they are read once, in order, and closed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from refervos.video.closing import Closing
from refervos.video.frames import Frame, SourceInfo


@dataclass(frozen=True)
class Losses:
    """What a source has lost so far; nothing but live sources loses anything.

    Attributes:
        late: Frames dropped because they came faster than they were asked for.
        outages: Times that the stream went away.
        away: Seconds that it was away, all outages together.
    """

    late: int = 0
    outages: int = 0
    away: float = 0.0


class Source(Protocol):
    """A stream of frames, read once and in order; iterating again goes on where the last loop stopped.

    Attributes:
        info: What is known about the source.
    """

    info: SourceInfo

    @property
    def notes(self) -> list[str]:
        """Sentences on how it is read, where one may not expect that; nothing has gone wrong."""

    @property
    def warnings(self) -> list[str]:
        """Sentences on what has gone wrong so far without stopping the reading."""

    @property
    def losses(self) -> Losses:
        """What has been lost so far."""

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None:
        """Releases the file or device; safe to call twice. No frame comes after it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Reader(Closing):
    """Base of the sources: holds what every kind needs. A subclass generates the frames."""

    def __init__(self, info: SourceInfo) -> None:
        self.info = info
        self._closed = False
        self._frames = self._generate()

    @property
    def notes(self) -> list[str]:
        """Sentences on how it is read, where one may not expect that; nothing has gone wrong."""
        return []

    @property
    def warnings(self) -> list[str]:
        """Sentences on what has gone wrong so far without stopping the reading."""
        return []

    @property
    def losses(self) -> Losses:
        """What has been lost so far."""
        return Losses()

    def _generate(self) -> Generator[Frame, None, None]:
        raise NotImplementedError

    def _release(self) -> None:
        """Gives back what the subclass holds open."""

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._closed:
            raise StopIteration
        return next(self._frames)

    def close(self) -> None:
        """Releases the file or device; safe to call twice. No frame comes after it."""
        if not self._closed:
            self._closed = True
            self._frames.close()
            self._release()
