"""Progress bars on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Self, TypeVar

Item = TypeVar("Item")


class Bar:
    """A progress bar that work is reported to, with the remaining time where the total is known.

    Args:
        unit: What is counted, in the plural.
        total: How many there will be, None where that is not known.
        show: True or False; None to show it where standard error is a terminal.
        description: Text before the bar.
        done: How many are done already.
    """

    def __init__(
        self, unit: str, total: int | None = None, show: bool | None = None, *, description: str = "", done: int = 0
    ) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total,
            initial=done,
            desc=description or None,
            unit=f" {unit}",
            disable=None if show is None else not show,
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int = 1, description: str | None = None) -> None:
        """Count some more."""
        if description is not None:
            self._bar.set_description(description, refresh=False)
        self._bar.update(count)

    def expect(self, total: int) -> None:
        """Change how many there will be."""
        self._bar.total = total

    def show_values(self, values: Mapping[str, str]) -> None:
        """Show values behind the bar."""
        self._bar.set_postfix(values, refresh=False)

    def say(self, sentence: str) -> None:
        """Print a sentence without breaking the bar."""
        self._bar.write(sentence, file=sys.stderr)


def progress(
    frames: Iterable[Item], total: int | None = None, description: str = "", disable: bool | None = None
) -> Iterator[Item]:
    """Pass frames on while showing frames per second and the remaining time.

    Args:
        frames: What to pass on.
        total: How many there will be; None if unknown, when no remaining time is shown.
        description: Text before the bar.
        disable: True for silence; None for silence only where standard error is not a terminal.

    Yields:
        The same items in the same order.
    """
    with Bar("frames", total, None if disable is None else not disable, description=description) as bar:
        for frame in frames:
            yield frame
            # Counted once it comes back for the next, that is, when the work on this one is done.
            bar.advance()
