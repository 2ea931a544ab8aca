"""What every source and sink has in common: it is closed at the end of a ``with`` block, however that ends."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """Base that calls ``close`` when a ``with`` block ends."""

    def close(self) -> object:
        """Ends the work; safe to call twice."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
