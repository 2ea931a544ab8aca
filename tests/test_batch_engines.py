"""Runners of other engines start the same workers: submitit's executors of this machine, and Ray on one machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from batch_jobs import PATIENT, SENTENCES, begin, draw_videos, files, work, write_manifest
from refervos.batch.job import LEASES, Job
from refervos.batch.merging import check
from refervos.batch.run_ray import RayWorker, run_ray
from refervos.batch.run_slurm import SlurmWorker, run_slurm
from refervos.batch.worker import WorkerSettings

pytestmark = [pytest.mark.usefixtures("one_thread")]

FRAMES = (9, 4, 3, 2)

KILLS = 5
"""Of workers of Ray: each restart takes several seconds."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a manifest of four videos, and the folder of a run in this process."""
    root = tmp_path_factory.mktemp("engines")
    manifest = write_manifest(root / "m.jsonl", draw_videos(root / "videos", FRAMES), SENTENCES[:1], FRAMES)
    work(begin(root / "out", manifest, shard_seconds=0.4))
    return manifest, root / "out"


def test_submitit_runs_workers(calm: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, out = calm
    job = begin(tmp_path / "out", manifest, shard_seconds=0.4)
    jobs = run_slurm(job, PATIENT, workers=1, cluster="debug")
    assert [each.result() for each in jobs] == [True]
    assert files(tmp_path / "out") == files(out)


def test_a_slurm_job_at_its_time_limit_is_submitted_again() -> None:
    worker = SlurmWorker("/masks", WorkerSettings(part=(1, 2)))
    again = pickle.loads(pickle.dumps(worker.checkpoint()))
    assert (again.function._address, again.function._settings) == ("/masks", WorkerSettings(part=(1, 2)))


@pytest.mark.slow
def test_submitit_runs_workers_in_processes(calm: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, out = calm
    job = begin(tmp_path / "out", manifest, shard_seconds=0.4)
    run_slurm(job, PATIENT, workers=2, cluster="local")
    assert files(tmp_path / "out") == files(out)


def test_an_actor_of_ray_processes_the_shards_that_it_gets(calm: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, out = calm
    job = begin(tmp_path / "out", manifest, shard_seconds=0.4)
    names = [shard.name for shard in job.shards()]
    actor = RayWorker(job.store.address, PATIENT)
    done = actor({"shard": np.array(names)})
    assert done == {"shard": names, "finished": [True] * len(names)}
    assert files(tmp_path / "out") == files(out)
    assert actor({"shard": np.array(names[:1])})["finished"] == [True]  # repeated, as Ray does after a failure


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    """End the cluster of this machine that the first of the tests starts, after the last one."""
    ray = pytest.importorskip("ray", reason="the extra 'ray' installs it")
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("ray_cluster")
def test_ray_runs_workers(calm: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, out = calm
    job = begin(tmp_path / "out", manifest, shard_seconds=0.4)
    assert run_ray(job, PATIENT, workers=1) == len(job.shards())
    assert files(tmp_path / "out") == files(out)
    assert run_ray(job, PATIENT, workers=1) == 0


def kill_workers(job: Job, kills: int, draw: random.Random, stop: threading.Event) -> list[int]:
    """Kill the processes that hold leases at random moments; return their numbers when there are enough."""
    killed: list[int] = []
    while len(killed) < kills and not stop.wait(0.05):
        for name in job.store.names(LEASES):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                process = json.loads(job.store.read(f"{LEASES}/{name}"))["pid"]
                if process not in killed and not stop.wait(draw.uniform(0.0, 1.0)):
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
                break
    return killed


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("ray_cluster")
def test_kills_of_ray_s_workers_leave_the_files_of_an_undisturbed_run(tmp_path: Path) -> None:
    frames = [24] * 4 + [3] * 8
    manifest = write_manifest(tmp_path / "m.jsonl", draw_videos(tmp_path / "videos", frames), frames=frames)
    calm = begin(tmp_path / "calm", manifest, shard_seconds=0.4)
    work(calm)
    job = begin(tmp_path / "out", manifest, shard_seconds=0.4)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        killing = thread.submit(kill_workers, job, KILLS, random.Random(3), stop)
        try:
            finished = run_ray(job, dataclasses.replace(PATIENT, save_every=0.5), workers=2)
        finally:
            stop.set()
        killed = killing.result()
    assert len(killed) == KILLS, f"the job was done after {len(killed)} kills"
    assert finished == len(job.shards())
    job.write_missing_records()
    assert files(tmp_path / "out") == files(tmp_path / "calm")
    assert check(job) == check(calm) == sum(frames)
