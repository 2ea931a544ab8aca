"""Iteration over parallel streams of frames, a few frames at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, zip_longest
from typing import Any, TypeVar

from refervos.errors import EvaluationError

T = TypeVar("T")


def zip_streams(streams: Mapping[str, Iterable[Any] | None]) -> Iterator[tuple[Any, ...]]:
    """Iterate over several streams in parallel.

    Args:
        streams: Names, for the error message, and streams; None for an absent stream.

    Yields:
        One item of each stream; None for an absent one.

    Raises:
        EvaluationError: When one stream ends before the others.
    """
    ended = object()
    given = {name: stream for name, stream in streams.items() if stream is not None}
    for number, items in enumerate(zip_longest(*given.values(), fillvalue=ended)):
        current = dict(zip(given, items, strict=True))
        short = [name for name, item in current.items() if item is ended]
        if short:
            longer = " and the ".join(name for name in given if name not in short)
            raise EvaluationError(
                f"the {' and the '.join(short)} ended after {number} frames, but the {longer} went on; all must have "
                f"the same number."
            )
        yield tuple(current.get(name) for name in streams)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of up to ``size`` consecutive items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
