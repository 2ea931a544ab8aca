"""Shows how far the work on a video has come."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def progress(
    frames: Iterable[Item], total: int | None = None, description: str = "", disable: bool | None = None
) -> Iterator[Item]:
    """Passes frames on while showing frames per second and the remaining time on stderr.

    Args:
        frames: What to pass on.
        total: How many there will be; None if unknown, when no remaining time is shown.
        description: Text before the bar.
        disable: True for silence; None for silence only where stderr is not a terminal.

    Yields:
        The same items in the same order.
    """
    from tqdm import tqdm

    with tqdm(
        total=total,
        desc=description or None,
        disable=disable,
        unit=" frames",
        file=sys.stderr,
        dynamic_ncols=True,
    ) as bar:
        for frame in frames:
            yield frame
            # Counted once it comes back for the next, that is, when the work on this one is done.
            bar.update()
