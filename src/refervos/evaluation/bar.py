"""A progress bar that work is reported to, with the remaining time where the total is known."""

from __future__ import annotations

from typing import Self


class Bar:
    """A progress bar on standard error, by default only where that is a terminal.

    Args:
        unit: What is counted, in the plural.
        total: How many there will be, None where that is not known.
        show: True or False; None to show it on terminals.
    """

    def __init__(self, unit: str, total: int | None = None, show: bool | None = None) -> None:
        from tqdm import tqdm

        disable = None if show is None else not show
        self._bar = tqdm(total=total, unit=f" {unit}", disable=disable, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int, description: str | None = None) -> None:
        """Count some more."""
        if description is not None:
            self._bar.set_description(description, refresh=False)
        self._bar.update(count)
