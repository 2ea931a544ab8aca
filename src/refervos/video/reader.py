"""Common interface of all sources: read once, in order, and closed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from refervos.video.closing import Closing
from refervos.video.frames import Frame, SourceInfo


@dataclass(frozen=True)
class Losses:
    """Losses of a live source so far; recordings lose nothing.

    Attributes:
        late: Number of frames dropped because they arrived faster than they were read.
        outages: How often the connection was lost.
        away: Total length of all outages in seconds.
    """

    late: int = 0
    outages: int = 0
    away: float = 0.0


class Source(Protocol):
    """Stream of frames, read once and in order; iterating again continues where the last loop stopped.

    Attributes:
        info: Information about the source.
    """

    info: SourceInfo

    @property
    def notes(self) -> list[str]:
        """Sentences about unusual properties of the source and how they are handled; not errors."""

    @property
    def warnings(self) -> list[str]:
        """Sentences about problems so far that did not stop the reading."""

    @property
    def losses(self) -> Losses:
        """Losses so far."""

    def __iter__(self) -> Iterator[Frame]: ...

    def close(self) -> None:
        """Release the file or device; safe to call twice. No frames follow."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Reader(Closing):
    """Base class of sources. Subclasses generate the frames."""

    def __init__(self, info: SourceInfo) -> None:
        self.info = info
        self._closed = False
        self._frames = self._generate()

    @property
    def notes(self) -> list[str]:
        """Sentences about unusual properties of the source and how they are handled; not errors."""
        return []

    @property
    def warnings(self) -> list[str]:
        """Sentences about problems so far that did not stop the reading."""
        return []

    @property
    def losses(self) -> Losses:
        """Losses so far."""
        return Losses()

    def _generate(self) -> Generator[Frame, None, None]:
        raise NotImplementedError

    def _release(self) -> None:
        """Release the resources of the subclass."""

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        if self._closed:
            raise StopIteration
        return next(self._frames)

    def close(self) -> None:
        """Release the file or device; safe to call twice. No frames follow."""
        if not self._closed:
            self._closed = True
            self._frames.close()
            self._release()
