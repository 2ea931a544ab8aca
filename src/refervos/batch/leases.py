"""Leases: which worker is at work on which shard. They avoid double work; correctness does not rest on them."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from refervos.batch.job import LEASES
from refervos.batch.storage import Store

LASTS = 300.0
"""Seconds after which a lease that was not renewed is taken over."""

RENEWED_EVERY = 15.0


@dataclass
class Lease:
    """Content of a lease.

    Attributes:
        worker: Name of the worker.
        host: Its machine.
        pid: Its process.
        born: When the process started, in ticks since the machine did; 0 if the system does not report it.
        renewed: Time of the last renewal, in seconds since 1970.
        unit: The unit in work, empty between units.
        frame: The frame from which the unit in work was begun.
        lost: For each unit at which workers have died: how many, and the frame from which the last one had begun it.
    """

    worker: str
    host: str
    pid: int
    born: int
    renewed: float = 0.0
    unit: str = ""
    frame: int = 0
    lost: dict[str, list[int]] = field(default_factory=dict)

    def deaths(self, unit: str, frame: int) -> int:
        """Return how many workers in a row have died at a unit; none if its work has got further since.

        Args:
            unit: Name of the unit.
            frame: The frame from which it will be begun.
        """
        count, begun = self.lost.get(unit, (0, frame))
        if frame > begun:
            self.lost.pop(unit, None)
            return 0
        return count


def worker_name() -> str:
    """Make a unique name for this worker."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


class Leases:
    """Leases of one worker.

    Args:
        store: Folder of results.
        worker: Name of the worker.
        clock: Returns the time in seconds since 1970.
        lasts: Seconds after which a lease is void unless renewed.
    """

    def __init__(self, store: Store, worker: str, clock: Callable[[], float] = time.time, lasts: float = LASTS) -> None:
        self._store, self._worker, self._clock, self._lasts = store, worker, clock, lasts
        self._renewed = 0.0

    def taken(self) -> set[str]:
        """Return the names of shards that have a lease, valid or void."""
        return {name.removesuffix(".json") for name in self._store.names(LEASES)}

    def acquire(self, shard: str) -> Lease | None:
        """Take the lease of a shard, or take it over from a dead worker.

        Args:
            shard: Name of the shard.

        Returns:
            The lease, with the counts of lost workers; None if another worker holds it.
        """
        lease = Lease(self._worker, socket.gethostname(), os.getpid(), _born(os.getpid()))
        present = self._read(shard)
        if present is not None:
            if not self._void(present):
                return None
            lease.lost = dict(present.lost)
            if present.unit:
                before = present.deaths(present.unit, present.frame)
                lease.lost[present.unit] = [before + 1, present.frame]
            # Two workers that do this at the same moment both get the lease; that costs time, nothing else.
            self._store.remove(_path(shard))
        lease.renewed = self._clock()
        return lease if self._store.create(_path(shard), _encode(lease)) else None

    def renew(self, shard: str, lease: Lease, *, now: bool = False) -> None:
        """Renew a lease if it is time.

        Args:
            shard: Name of the shard.
            lease: The lease.
            now: Renew it in any case.
        """
        if now or self._clock() - lease.renewed >= min(RENEWED_EVERY, self._lasts / 4):
            lease.renewed = self._clock()
            self._store.replace(_path(shard), _encode(lease))

    def release(self, shard: str) -> None:
        """Give a lease back."""
        self._store.remove(_path(shard))

    def _read(self, shard: str) -> Lease | None:
        try:
            return Lease(**json.loads(self._store.read(_path(shard))))
        except (FileNotFoundError, TypeError, ValueError):  # none, or a damaged one, which nobody renews
            return None

    def _void(self, lease: Lease) -> bool:
        if self._clock() - lease.renewed > self._lasts:
            return True
        return lease.host == socket.gethostname() and not _alive(lease)


def _path(shard: str) -> str:
    return f"{LEASES}/{shard}.json"


def _encode(lease: Lease) -> bytes:
    return json.dumps(asdict(lease)).encode()


def _born(pid: int) -> int:
    """Return when a process started, which distinguishes it from a later one with the same number; 0 if unknown."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _alive(lease: Lease) -> bool:
    """Return whether a worker of this machine lives; True if unknown."""
    if sys.platform == "win32":  # where signal 0 ends a process
        return True
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return not lease.born or _born(lease.pid) in (0, lease.born)
