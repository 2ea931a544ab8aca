"""Runner of parts: one after another, each in its own process, within a time limit; failures stop no other part."""

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
"""Number of last lines to keep of a failed part's output."""

FITS = 0.5
"""Least share of a part's needed seconds that must be left to start it."""

Status = Literal["ok", "failed", "not run"]


@dataclass(frozen=True)
class Part:
    """Part of the run.

    Attributes:
        name: Name of one word.
        title: Short description.
        seconds: Most seconds it needs, which are reserved for it; it may use time that others leave over.
    """

    name: str
    title: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """Outcome of a part.

    Attributes:
        part: The part.
        status: ``ok``, ``failed`` or ``not run``.
        seconds: Duration.
        reason: Reason of a failure in one line.
        trace: Last lines of the traceback, or of the output without one.
        values: Results, also those from before a failure.
    """

    part: Part
    status: Status
    seconds: float = 0.0
    reason: str = ""
    trace: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)


Command = Callable[[Part, float, Path], Sequence[str]]
"""Returns the command line of a part, given its time limit in seconds and the file for its results."""


def run_parts(
    parts: Sequence[Part], command: Command, seconds: float, environment: Mapping[str, str] | None = None
) -> Iterator[Outcome]:
    """Run parts in their order, the most important first.

    Args:
        parts: The parts.
        command: See ``Command``.
        seconds: Time limit of all parts in total.
        environment: Environment of the processes, default this one's.

    Yields:
        The outcome of each part, as soon as it is known.
    """
    end = time.monotonic() + seconds
    for index, part in enumerate(parts):
        limit = allowance(parts, index, end - time.monotonic())
        if limit is None:
            yield Outcome(part, "not run", reason="no time left")
        else:
            yield _run(part, command, limit, environment)


def allowance(parts: Sequence[Part], index: int, left: float) -> float | None:
    """Compute the time limit of a part: its own seconds, and those that later parts do not need.

    Args:
        parts: All parts.
        index: Index of the part.
        left: Remaining seconds of the run.

    Returns:
        Seconds, or None if the part no longer fits.
    """
    needed = parts[index].seconds
    if left < FITS * needed:
        return None
    later = sum(part.seconds for part in parts[index + 1 :])
    return max(min(left, needed), left - later)


def write_results(
    path: Path, values: Mapping[str, Any], error: str | None = None, trace: Sequence[str] | None = None
) -> None:
    """Write a part's results atomically; called again with later results.

    Args:
        path: The part's file for results.
        values: The results.
        error: Final error in one line.
        trace: Last lines of the traceback.
    """
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"values": values, "error": error, "trace": trace or []}))
    unfinished.replace(path)


def _run(part: Part, command: Command, limit: float, environment: Mapping[str, str] | None) -> Outcome:
    """Run one part, and end all processes that it started."""
    with tempfile.TemporaryDirectory(prefix="refervos-gpu-") as folder:
        results, log = Path(folder) / "results.json", Path(folder) / "output.txt"
        start = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command(part, limit, results),
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
        seconds = time.monotonic() - start
        written = json.loads(results.read_text()) if results.is_file() else {"values": {}, "error": None, "trace": []}
        if code == 0 and results.is_file():
            return Outcome(part, "ok", seconds, values=written["values"])
        if code is None:
            reason = f"stopped after {limit:.0f} s, its limit"
        elif written["error"]:
            reason = written["error"]
        else:
            reason = f"its process ended with exit code {code}" if code else "it wrote no results"
        trace = written["trace"] or log.read_text(errors="replace").splitlines()[-LINES:]
        return Outcome(part, "failed", seconds, reason, tuple(trace), written["values"])


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all others of its group that are still running."""
    with contextlib.suppress(ProcessLookupError):  # none is
        os.killpg(process.pid, signal.SIGKILL)  # the group has the process's id, because it leads its own session
    process.wait()
