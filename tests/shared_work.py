"""Work for other processes, for tests; they import this file, so it is a light one."""

from __future__ import annotations

import os
from collections.abc import Callable

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
