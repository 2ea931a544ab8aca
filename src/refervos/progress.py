"""Progress bars on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Self, TypeVar

Item = TypeVar("Item")


class Bar:
    """Progress bar that is advanced explicitly; shows the remaining time if the total is known.

    Args:
        unit: Name of the counted items, in the plural.
        total: Number of items; None if unknown.
        show: True or False; None to show the bar only if standard error is a terminal.
        description: Text before the bar.
        done: Number of items already done.
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
        """Count more items as done, and optionally replace the description."""
        if description is not None:
            self._bar.set_description(description, refresh=False)
        self._bar.update(count)

    def expect(self, total: int) -> None:
        """Set the total."""
        self._bar.total = total

    def show_values(self, values: Mapping[str, str]) -> None:
        """Show values after the bar."""
        self._bar.set_postfix(values, refresh=False)

    def say(self, sentence: str) -> None:
        """Print a line above the bar."""
        self._bar.write(sentence, file=sys.stderr)


def progress(
    frames: Iterable[Item], total: int | None = None, description: str = "", disable: bool | None = None
) -> Iterator[Item]:
    """Iterate over frames while showing frames per second and the remaining time.

    Args:
        frames: Frames, or any other items.
        total: Number of frames; None if unknown, and then no remaining time is shown.
        description: Text before the bar.
        disable: True to hide the bar; None to hide it unless standard error is a terminal.

    Yields:
        The same items in the same order.
    """
    with Bar("frames", total, None if disable is None else not disable, description=description) as bar:
        for frame in frames:
            yield frame
            # Counted only when the next frame is requested, that is, when this one has been processed.
            bar.advance()
