"""Measurements of a training run: a file of JSON lines, and running means between its rows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from refervos.errors import TrainingError
from refervos.files.writing import write_atomically, write_error

Row = dict[str, Any]


class History:
    """Rows of ``history.jsonl``: ``{"step": ..., "train": {...}}`` or ``{"step": ..., "validation": {...}}``.

    Args:
        path: The file; rows that it holds already are read.
        upto: Last step to keep; rows of later steps are removed, because the run resumes from an earlier checkpoint.
        write: Whether to write the file; only one process does.
    """

    def __init__(self, path: Path, upto: int, *, write: bool = True) -> None:
        self.path = path
        self.write = write
        self.rows = [row for row in _read(path) if row["step"] <= upto]
        if write:
            write_atomically(path, "".join(map(_line, self.rows)).encode(), error=TrainingError)

    def add(self, step: int, kind: str, scalars: Mapping[str, float]) -> None:
        """Add a row.

        Args:
            step: Number of steps made.
            kind: ``train`` or ``validation``.
            scalars: Values by name.

        Raises:
            TrainingError: When the file cannot be written.
        """
        row: Row = {"step": step, kind: dict(scalars)}
        self.rows.append(row)
        if self.write:
            try:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(_line(row))
            except OSError as error:
                raise write_error(self.path, error, TrainingError) from error

    def of(self, kind: str) -> list[tuple[int, dict[str, float]]]:
        """Return the steps and scalars of all rows of a kind."""
        return [(row["step"], row[kind]) for row in self.rows if kind in row]

    def last(self, kind: str) -> dict[str, float]:
        """Return the scalars of the last row of a kind; empty when there is none."""
        rows = self.of(kind)
        return rows[-1][1] if rows else {}


def _line(row: Row) -> str:
    return json.dumps(row) + "\n"


def _read(path: Path) -> Iterable[Row]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # the last line of a killed run, or a line not written by this class
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


class Means:
    """Running means of named scalars; a name need not occur at every step."""

    def __init__(self, sums: Mapping[str, Iterable[float]] | None = None) -> None:
        self._sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for name, (total, count) in (sums or {}).items():
            self._sums[name] = [total, count]

    def add(self, name: str, total: float, count: float = 1.0) -> None:
        """Add the sum of some values, of which there are ``count``, to the mean of that name."""
        self._sums[name][0] += total
        self._sums[name][1] += count

    def add_output(self, name: str, output: Tensor) -> None:
        """Add an output of a stage: a scalar, or a ``step_means.ratio``, which may have no items."""
        total, count = output.tolist() if output.ndim else (float(output), 1.0)
        if count:
            self.add(name, total, count)

    def merge(self, other: Means) -> None:
        """Add all values of another instance, such as another process's."""
        for name, (total, count) in other.sums().items():
            self._sums[name][0] += total
            self._sums[name][1] += count

    def sums(self) -> dict[str, list[float]]:
        """Return sums and counts by name, which are the whole state."""
        return {name: list(pair) for name, pair in self._sums.items()}

    def values(self) -> dict[str, float]:
        """Return the means by name."""
        return {name: total / count for name, (total, count) in self._sums.items()}
