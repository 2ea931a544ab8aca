"""Logs of workers: one line of JSON for each event and heartbeat, in a file of each worker's own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from refervos.batch.job import LOGS
from refervos.batch.storage import Store

BEAT = 15.0
"""Seconds between heartbeats."""


class WorkerLog:
    """Log of one worker.

    Args:
        store: Folder of results.
        worker: Name of the worker.
    """

    def __init__(self, store: Store, worker: str) -> None:
        self._store, self._worker = store, worker
        self._beaten = time.monotonic()
        self.frames = 0

    @staticmethod
    def clocks() -> dict[str, float]:
        """Return the time in seconds since 1970, and the processor time of this process."""
        return {"time": round(time.time(), 3), "cpu": round(time.process_time(), 3)}

    def write(self, event: str, **more: Any) -> None:
        """Write an event, with the time, the processor time and the number of frames segmented so far."""
        self._beaten = time.monotonic()
        line = {**self.clocks(), "event": event, "frames": self.frames, **more}
        self._store.append(f"{LOGS}/{self._worker}.jsonl", json.dumps(line).encode() + b"\n")

    def beat(self, **more: Any) -> None:
        """Write a heartbeat if it is time."""
        if time.monotonic() - self._beaten >= BEAT:
            self.write("beat", **more)


def read_logs(store: Store) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Read all logs.

    Args:
        store: Folder of results.

    Yields:
        Name and lines of each worker; an incomplete last line, of a killed worker, is left out.
    """
    for name in store.names(LOGS):
        lines = []
        for line in store.read(f"{LOGS}/{name}").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        yield name.removesuffix(".jsonl"), [line for line in lines if isinstance(line, dict) and "time" in line]
