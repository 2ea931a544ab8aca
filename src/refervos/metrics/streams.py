"""Frames that come one by one, several streams of them side by side, a few at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, zip_longest
from typing import Any, TypeVar

from refervos.errors import EvaluationError

T = TypeVar("T")


def in_step(**streams: Iterable[Any] | None) -> Iterator[tuple[Any, ...]]:
    """Go through several streams together.

    Args:
        streams: Their names, for the error, and what they give; None where there is no such stream.

    Yields:
        One item of each; None for a stream that there is not.

    Raises:
        EvaluationError: When one ends before the others.
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
    """Take up to ``size`` items at a time."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
