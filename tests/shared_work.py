"""Work for other processes, for tests; they import this file, so it is a light one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from refervos.errors import EvaluationError


def begin_doubling() -> Callable[[int], list[int]]:
    """Each number gives two."""
    return lambda number: [2 * number, 2 * number + 1]


def begin_failing() -> Callable[[int], list[int]]:
    """Cannot be prepared for."""
    raise EvaluationError("this is wrong")


def begin_dying() -> Callable[[int], list[int]]:
    """Ends the process without a word."""
    os._exit(9)


def begin_meeting(folder: Path, name: str, processes: int) -> Callable[[int], list[str]]:
    """Leaves its name, and works once so many processes have."""
    (folder / str(os.getpid())).write_text(name)

    def work(number: int) -> list[str]:
        deadline = time.monotonic() + 60
        while len(list(folder.iterdir())) < processes and time.monotonic() < deadline:
            time.sleep(0.01)
        return [name]

    return work
