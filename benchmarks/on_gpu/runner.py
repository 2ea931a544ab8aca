"""Runs parts one after another, each in a process of its own, within a budget of time; none stops the others."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

LINES = 15
"""How many last lines are kept of what a part that failed printed."""

FITS = 0.5
"""A part is begun when at least this share of the seconds that it needs is left."""

Status = Literal["ok", "failed", "not run"]


@dataclass(frozen=True)
class Part:
    """Something to be run.

    Attributes:
        name: Of one word.
        title: What it does.
        seconds: How long it needs at most. So much is kept for it; it may take longer where others leave time over.
    """

    name: str
    title: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """What came of a part.

    Attributes:
        part: Which.
        status: Whether it ran through.
        seconds: How long it ran.
        reason: Why not, in one line.
        trace: Last lines of the traceback, or of the output where there is none.
        values: What it found, also when it failed later.
    """

    part: Part
    status: Status
    seconds: float = 0.0
    reason: str = ""
    trace: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


Command = Callable[[Part, float, Path], Sequence[str]]
"""The command line of a part: it is given the seconds that it may take and the file to write to (``write_found``)."""


def run_parts(
    parts: Sequence[Part], command: Command, seconds: float, environment: Mapping[str, str] | None = None
) -> Iterator[Outcome]:
    """Run parts in their order, the most important first.

    Args:
        parts: What to run.
        command: See ``Command``.
        seconds: The budget of all parts together.
        environment: Of the processes, default this one's.

    Yields:
        One outcome a part, as soon as it is known.
    """
    end = time.monotonic() + seconds
    for index, part in enumerate(parts):
        limit = allowance(parts, index, end - time.monotonic())
        if limit is None:
            yield Outcome(part, "not run", reason="no time left")
        else:
            yield _run(part, command, limit, environment)


def allowance(parts: Sequence[Part], index: int, left: float) -> float | None:
    """How long a part may take: what it needs, and what is left over once the parts after it have what they need.

    Args:
        parts: All parts.
        index: Which of them.
        left: Seconds until the budget is spent.

    Returns:
        Seconds, or None when the part no longer fits.
    """
    needed = parts[index].seconds
    if left < FITS * needed:
        return None
    later = sum(part.seconds for part in parts[index + 1 :])
    return max(min(left, needed), left - later)


def write_found(
    path: Path, values: Mapping[str, Any], error: str | None = None, trace: Sequence[str] | None = None
) -> None:
    """Write what a part found, whole; called again as more is known.

    Args:
        path: The file that the part was told.
        values: What it found.
        error: What went wrong at last, in one line.
        trace: Last lines of the traceback.
    """
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"values": values, "error": error, "trace": trace or []}))
    unfinished.replace(path)


def _run(part: Part, command: Command, limit: float, environment: Mapping[str, str] | None) -> Outcome:
    """Run one part; whatever it started ends with it."""
    with tempfile.TemporaryDirectory(prefix="refervos-gpu-") as folder:
        found, log = Path(folder) / "found.json", Path(folder) / "output.txt"
        begun = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(part, limit, found),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
        seconds = time.monotonic() - begun
        told = json.loads(found.read_text()) if found.is_file() else {"values": {}, "error": None, "trace": []}
        if code == 0 and found.is_file():
            return Outcome(part, "ok", seconds, values=told["values"])
        if code is None:
            reason = f"stopped after {limit:.0f} s, its limit"
        elif told["error"]:
            reason = told["error"]
        else:
            reason = f"its process ended with exit code {code}" if code else "it wrote nothing"
        trace = told["trace"] or log.read_text(errors="replace").splitlines()[-LINES:]
        return Outcome(part, "failed", seconds, reason, tuple(trace), told["values"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of a process and of those that it started."""
    with contextlib.suppress(ProcessLookupError):  # nothing is
        os.killpg(process.pid, signal.SIGKILL)  # its group bears its number, for it leads a session of its own
    process.wait()
