"""Runners of other engines start the same workers: submitit's executors of this machine, and Ray on one machine."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest

from batch_jobs import PATIENT, SENTENCES, begin, draw_videos, files, work, write_manifest
from refervos.batch.job import Job
from refervos.batch.run_ray import RayWorker, run_ray
from refervos.batch.run_slurm import SlurmWorker, run_slurm
from refervos.batch.worker import WorkerSettings

pytestmark = [pytest.mark.usefixtures("one_thread")]

FRAMES = (9, 4, 3, 2)


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


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_ray_runs_workers(calm: tuple[Path, Path], tmp_path: Path) -> None:
    import ray

    manifest, out = calm
    job: Job = begin(tmp_path / "out", manifest, shard_seconds=0.4)
    try:
        assert run_ray(job, PATIENT, workers=1) == len(job.shards())
    finally:
        ray.shutdown()
    assert files(tmp_path / "out") == files(out)
    assert run_ray(job, PATIENT, workers=1) == 0
