"""Plans: duration, cost and number of files of a job before anything is spent."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from refervos.batch.schedule import Schedule, simulate
from refervos.batch.units import Cost, Unit, pack


@dataclass(frozen=True)
class JobPlan:
    """Plan of a job.

    Attributes:
        videos: Number of videos.
        frames: Number of frames to segment, in part estimated.
        files: Number of shards, each a file of masks.
        longest: Seconds of the longest video.
        schedule: The simulated run.
        cost: Cost of the work.
        packing: Cost by which shards are packed: the measured one as ``refervos batch`` knows it from its options.
        shard_seconds: Least work of a shard.
    """

    videos: int
    frames: int
    files: int
    longest: float
    schedule: Schedule
    cost: Cost
    packing: Cost
    shard_seconds: float

    def money(self, price: float | None) -> float | None:
        """Return what all workers cost at a price for an hour of one; None without a price."""
        return None if price is None else self.schedule.slot_hours * price

    def options(self) -> list[str]:
        """Return the options with which ``refervos batch`` packs the shards of this plan."""
        values = {"fps": self.packing.fps, "overhead": self.packing.overhead, "shard-seconds": self.shard_seconds}
        return [word for name, value in values.items() for word in (f"--{name}", f"{value:.10g}")]

    def as_json(self, price: float | None) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {
            "videos": self.videos,
            "frames": self.frames,
            "files": self.files,
            "workers": self.schedule.slots,
            "work_hours": self.schedule.work / 3600,
            "makespan_seconds": self.schedule.seconds,
            "longest_seconds": self.longest,
            "utilisation": self.schedule.utilisation,
            "worker_hours": self.schedule.slot_hours,
            "money": self.money(price),
            "fps": self.packing.fps,
            "overhead": self.packing.overhead,
            "cost": dataclasses.asdict(self.cost),
        }


def plan_job(units: Sequence[Unit], cost: Cost, workers: int, shard_seconds: float) -> JobPlan:
    """Plan a job.

    Shards are packed as ``refervos batch`` does with the frame rate and overhead of this cost, both of three digits,
    and take the time of this cost.

    Args:
        units: The units.
        cost: Cost of the work.
        workers: Number of workers.
        shard_seconds: Least work of a shard.

    Returns:
        The plan.
    """
    packing = Cost.from_fps(_three_digits(cost.fps), overhead=_three_digits(cost.overhead))
    estimated = [dataclasses.replace(unit, work=packing.seconds(unit.frames, len(unit.expressions))) for unit in units]
    shards = pack(estimated, shard_seconds)
    work = [cost.commit + sum(cost.seconds(unit.frames, len(unit.expressions)) for unit in shard) for shard in shards]
    return JobPlan(
        videos=len(units),
        frames=sum(unit.frames for unit in units),
        files=len(shards),
        longest=max(cost.seconds(unit.frames, len(unit.expressions)) for unit in units),
        schedule=simulate(work, workers, cost.load),
        cost=cost,
        packing=packing,
        shard_seconds=shard_seconds,
    )


def _three_digits(number: float) -> float:
    return float(f"{number:.3g}")
