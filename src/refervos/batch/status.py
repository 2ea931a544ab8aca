"""Progress of a job, from its folder alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from refervos.batch.job import Job, latest_records
from refervos.batch.log import read_logs
from refervos.batch.shard_files import UnitRecord

SLOWEST = 10

_RECENT = 120.0
"""Seconds without a line in its log after which a worker no longer counts as running."""

_WINDOW = 600.0
"""Seconds over which the present speed is measured."""


@dataclass(frozen=True)
class Status:
    """Progress of a job.

    Attributes:
        done: Units that are finished.
        failed: Units that have failed and are not tried again.
        left: Units that are not finished.
        shards: Shards in total.
        shards_done: Finished shards.
        frames: Frames of finished units.
        workers: Workers that are running.
        frames_per_second: Speed of all running workers together over the last minutes; None if none is running.
        seconds_left: Estimated seconds until the end; None if none is running.
        worker_hours: Hours of all workers so far.
        slowest: The units that took longest, with their videos.
        failures: The failed units, with their videos.
    """

    done: int
    failed: int
    left: int
    shards: int
    shards_done: int
    frames: int
    workers: int
    frames_per_second: float | None
    seconds_left: float | None
    worker_hours: float
    slowest: Sequence[tuple[UnitRecord, str]]
    failures: Sequence[tuple[UnitRecord, str]]

    def cost(self, price: float) -> float:
        """Return the cost so far at a price for an hour of one worker."""
        return self.worker_hours * price


def status_of(job: Job, now: float | None = None) -> Status:
    """Return the progress of a job.

    Args:
        job: The job.
        now: The time, in seconds since 1970; default the present.

    Returns:
        The progress.
    """
    now = time.time() if now is None else now
    shards = job.shards()
    records = job.records()
    latest = latest_records(shards, records)
    videos = {unit.name: unit.uri for shard in shards for unit in shard.units}
    everything = [record for record, _ in latest.values()]
    failed = [record for record in everything if record.status == "failed"]
    workers, speed, hours = _speed(job, now)
    # Work of shards in the works counts as left, so the estimate is rather too long.
    left = {unit.name: unit for shard in shards if shard.name not in records for unit in shard.units}
    frames_left = sum(unit.frames for unit in left.values())
    timed = sorted((record for record in everything if record.seconds), key=lambda record: -(record.seconds or 0.0))
    return Status(
        done=len(everything) - len(failed),
        failed=len(failed),
        left=len(videos) - len(everything),
        shards=len(shards),
        shards_done=len(records),
        frames=sum(record.frames for record in everything),
        workers=workers,
        frames_per_second=speed,
        seconds_left=frames_left / speed if speed else None,
        worker_hours=hours,
        slowest=[(record, videos[record.unit]) for record in timed[:SLOWEST]],
        failures=[(record, videos[record.unit]) for record in failed],
    )


def _speed(job: Job, now: float) -> tuple[int, float | None, float]:
    """Return the number of running workers, their frames per second, and the hours of all workers."""
    running, speed, seconds = 0, 0.0, 0.0
    for _, lines in read_logs(job.store):
        if not lines:
            continue
        last = lines[-1]
        seconds += last["time"] - lines[0].get("started", lines[0]["time"])
        if last["event"] == "stop" or now - last["time"] > _RECENT:
            continue
        running += 1
        recent = _recent(lines, now)
        elapsed = last["time"] - recent["time"]
        if elapsed > 0:
            speed += (last["frames"] - recent["frames"]) / elapsed
    return running, speed or None, seconds / 3600


def _recent(lines: Sequence[dict[str, Any]], now: float) -> dict[str, Any]:
    """Return the first line within the window in which the speed is measured."""
    ready = [line for line in lines if line["event"] != "start"] or list(lines)
    return next((line for line in ready if now - line["time"] <= _WINDOW), ready[-1])
