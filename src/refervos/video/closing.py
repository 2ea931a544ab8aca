"""Context manager base of all sources and sinks."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """Base class that calls ``close`` at the end of a ``with`` block."""

    def close(self) -> object:
        """Close it; safe to call twice."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
