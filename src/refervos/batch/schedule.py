"""Simulation of a schedule on many workers: how long a job takes, and what it costs, before anything is spent."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """Simulated run of a job.

    Attributes:
        seconds: Time from the start to the end of the last worker (the makespan).
        work: Seconds of work without loading models and without what was lost.
        lost: Seconds of work that failures destroyed.
        slots: Number of workers.
    """

    seconds: float
    work: float
    lost: float
    slots: int

    @property
    def utilisation(self) -> float:
        """Share of the workers' time that was work, from 0 to 1."""
        return self.work / (self.seconds * self.slots) if self.seconds else 0.0

    @property
    def slot_hours(self) -> float:
        """Hours of all workers together, until the last one has ended."""
        return self.seconds * self.slots / 3600


def simulate(
    work: Sequence[float], slots: int, load: float = 0.0, mean_uptime: float | None = None, seed: int = 0
) -> Schedule:
    """Simulate workers that take pieces of work from a queue, in the given order.

    Args:
        work: Seconds of each piece, in the order of the queue.
        slots: Number of workers.
        load: Seconds to start a worker, at its start and after each of its failures.
        mean_uptime: Mean seconds between two failures of a worker (exponentially distributed), each of which loses the
            piece in work, which is then done again before all others; None for no failures.
        seed: Seed of the failures.

    Returns:
        The schedule.
    """
    rng = np.random.default_rng(seed)

    def uptime() -> float:
        return float("inf") if mean_uptime is None else float(rng.exponential(mean_uptime))

    workers = [(load, slot) for slot in range(slots)]
    fails_at = [uptime() for _ in range(slots)]
    heapq.heapify(workers)
    waiting = deque(work)
    end = lost = 0.0
    while waiting:
        piece = waiting.popleft()
        free, slot = heapq.heappop(workers)
        if fails_at[slot] < free + piece:
            failure = max(free, fails_at[slot])
            lost += failure - free
            fails_at[slot] = failure + uptime()
            waiting.appendleft(piece)
            heapq.heappush(workers, (failure + load, slot))
            continue
        end = max(end, free + piece)
        heapq.heappush(workers, (free + piece, slot))
    return Schedule(max(end, load if len(work) else 0.0), float(sum(work)), lost, slots)


def simulate_static(work: Sequence[float], slots: int, load: float = 0.0) -> Schedule:
    """Simulate a fixed distribution, the i-th piece to worker ``i % slots``, for comparison."""
    longest = max(sum(work[slot::slots]) for slot in range(slots))
    return Schedule(longest + load, float(sum(work)), 0.0, slots)


def pack_work(work: Sequence[float], seconds: float) -> list[float]:
    """Return the work of shards of at least so many seconds each, those with most work first (see ``units.pack``)."""
    shards: list[float] = []
    begun = 0.0
    for piece in sorted(work, reverse=True):
        begun += piece
        if begun >= seconds:
            shards.append(begun)
            begun = 0.0
    return sorted([*shards, begun] if begun else shards, reverse=True)


def example_table(seed: int = 4, runs: int = 20) -> list[tuple[str, list[Schedule]]]:
    """Simulate the schedules of docs/batch.md: 100,000 videos on 100 machines with 4 GPUs each.

    Lengths are lognormal (median 12 s, sigma 1.3); 24 frames a second in the videos, 80 on a worker; 2 s for each
    video, 20 s to load the model.

    Args:
        seed: Seed of the lengths.
        runs: Simulations of each row that has failures.

    Returns:
        A description of each row, and its schedules: one, or with failures several.
    """
    lengths = np.random.default_rng(seed).lognormal(np.log(12), 1.3, 100_000)
    work = list(lengths * 24 / 80 + 2)
    slots, load, day = 400, 20.0, 86_400.0
    rows = [
        ("static: video i to worker i % 400", [simulate_static(work, slots, load)]),
        ("queue in the manifest's order", [simulate(work, slots, load)]),
        ("queue, longest first, single videos", [simulate(sorted(work, reverse=True), slots, load)]),
    ]
    for seconds in (120, 900):
        shards = pack_work(work, seconds)
        name = f"shards of at least {seconds} s ({len(shards):,} files), longest first"
        rows.append((name, [simulate(shards, slots, load)]))
        failing = [simulate(shards, slots, load, day, run) for run in range(runs)]
        rows.append(("the same, each worker failing once in 24 hours", failing))
    return rows
