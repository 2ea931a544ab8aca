"""Measure what a frame, a sentence and a video cost on this machine, by running a small job on a few of the videos."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np

from refervos.batch.job import Job, Options, plan_units
from refervos.batch.log import read_logs
from refervos.batch.manifest import Entry
from refervos.batch.run_local import run_local
from refervos.batch.storage import open_store
from refervos.batch.units import Cost, Unit
from refervos.batch.worker import WorkerSettings
from refervos.errors import DataError

LENGTH = 64
"""Frames of the measured parts of videos, if they are so long; a quarter of it separates the cost of a video from
that of a frame."""

_PER_WORKER = 4
"""Measured videos per worker, each of them in two lengths; with fewer videos, each in more lengths."""


def measure_cost(
    entries: Sequence[Entry],
    units: Sequence[Unit],
    options: Options,
    devices: Sequence[str | None],
) -> Cost:
    """Measure the cost of the work with as many workers as will run.

    Args:
        entries: The manifest.
        units: Its units, with their numbers of frames.
        options: Options of the masks.
        devices: Device of each worker.

    Returns:
        The cost.

    Raises:
        DataError: When too few frames could be read.
    """
    with measured_job(entries, units, options, devices) as job:
        return fit_cost(job)


@contextmanager
def measured_job(
    entries: Sequence[Entry], units: Sequence[Unit], options: Options, devices: Sequence[str | None]
) -> Iterator[Job]:
    """Segment the beginnings of some videos; see ``measure_cost``.

    Yields:
        The finished job, removed afterwards.
    """
    sample = _sample(entries, units, _PER_WORKER * len(devices))
    with tempfile.TemporaryDirectory(prefix="refervos-") as folder:
        fingerprint = options.load("cpu").fingerprint()
        job = Job(open_store(folder), options, fingerprint, shard_seconds=0.0).begin()
        job.add(plan_units(sample, job.stamp, job.cost))
        run_local(job, WorkerSettings(), devices)
        yield job


def _sample(entries: Sequence[Entry], units: Sequence[Unit], count: int) -> list[Entry]:
    """Choose parts of videos, short and long, with one sentence and with all."""
    length = min(LENGTH, max(unit.frames for unit in units))
    long = [entry for entry, unit in zip(entries, units, strict=True) if unit.frames >= length]
    chosen = [long[index] for index in np.linspace(0, len(long) - 1, min(count, len(long))).astype(int)]
    each = max(2, -(-2 * count // len(chosen)))
    lengths = sorted({int(frames) for frames in np.linspace(max(1, length // 4), length, each)})
    return [
        dataclasses.replace(
            entry,
            end=entry.start + frames,
            expressions=entry.expressions[:1] if number % 2 else entry.expressions,
            frames=None,
        )
        for number, entry in enumerate(chosen)
        for frames in lengths
    ]


def fit_cost(job: Job, clock: Literal["time", "cpu"] = "time") -> Cost:
    """Fit the cost to a finished job whose shards have one unit each.

    Everything between two commits of a worker counts: the time of the unit as its own, the rest as that of a shard. The
    first unit of a worker also warms it up, and counts as part of its start.

    Args:
        job: The job.
        clock: ``cpu`` for the processor time of the workers, which other load on the machine does not change.

    Returns:
        The cost.

    Raises:
        DataError: When too few frames could be read.
    """
    units = {shard.name: shard.units[0] for shard in job.shards()}
    records = {name: each[0] for name, each in job.records().items()}
    rows: list[tuple[float, float, float, float]] = []
    first: list[tuple[float, float, float]] = []
    between: list[float] = []
    for _, lines in read_logs(job.store):
        commits = [line for line in lines if line["event"] == "commit" and records[line["shard"]].status == "ok"]
        started = lines[0]["started"] if clock == "time" else 0.0  # before Python and the packages were loaded
        for before, line in zip([None, *commits], commits, strict=False):
            frames, sentences = records[line["shard"]].frames, len(units[line["shard"]].expressions)
            unit_seconds = line["segmented"][clock] - line["begun"][clock]
            if before is None:
                first.append((line[clock] - started, frames, sentences))
            else:
                rows.append((unit_seconds, 1.0, frames, frames * sentences))
                between.append(line[clock] - before[clock] - unit_seconds)
    if not rows:
        raise DataError("too few frames could be read to measure the speed; give --fps.")
    table = np.array(rows)
    overhead, shared, sentence = _fit(table[:, 1:], table[:, 0])
    if len({row[3] / row[2] for row in rows}) == 1:
        share = rows[0][3] / rows[0][2]  # all have the same number of sentences, so the two costs cannot be separated
        shared, sentence = (shared + sentence * share) / 2, (shared + sentence * share) / 2 / share
    cost = Cost(0.0, overhead, float(np.mean(between)), shared, sentence)
    loads = [seconds - cost.commit - cost.seconds(int(frames), int(count)) for seconds, frames, count in first]
    load = float(np.mean(loads))
    return dataclasses.replace(cost, load=max(0.0, load))


def _fit(columns: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """Fit non-negative coefficients by least squares, weighted so that short and long units count alike."""
    weights = 1 / seconds
    used = list(range(columns.shape[1]))
    while True:
        found = np.linalg.lstsq(columns[:, used] * weights[:, None], seconds * weights, rcond=None)[0]
        if (found >= 0).all() or len(used) == 1:
            break
        used.pop(int(found.argmin()))
    coefficients = np.zeros(columns.shape[1])
    coefficients[used] = np.maximum(found, 0)
    return float(coefficients[0]), float(coefficients[1]), float(coefficients[2])
