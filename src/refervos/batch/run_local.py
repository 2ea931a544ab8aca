"""Runner of local processes: starts workers, watches them, and replaces those that die."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from refervos.batch.job import Job
from refervos.batch.worker import STOPPED, WorkerSettings, worker_command
from refervos.errors import EvaluationError, RefervosError
from refervos.processes import usable_cpus

_POLL = 0.2
_STOPPED_WITHIN = 120.0
"""Seconds that workers have to finish a clip and save their work."""

_DEATHS_LIMIT = 20
"""Deaths of workers without a finished shard in between after which the run ends."""


def run_local(
    job: Job, settings: WorkerSettings, devices: Sequence[str | None], watch: Callable[[], None] = lambda: None
) -> None:
    """Process a job in processes of this machine until no shard is left.

    Args:
        job: The job.
        settings: Settings of all workers, apart from the device.
        devices: Device of each worker; None for a GPU if available.
        watch: Called several times per second.

    Raises:
        RefervosError: When a worker cannot run; its own sentence is on standard error.
        KeyboardInterrupt: The same, after the workers have saved their work.
    """
    chosen = [dataclasses.replace(settings, device=device) for device in devices]
    workers = [_start(job, each) for each in chosen]
    finished, deaths = len(job.finished()), 0
    try:
        while any(worker.poll() is None for worker in workers):
            time.sleep(_POLL)
            watch()
            for place, worker in enumerate(workers):
                code = worker.poll()
                if code in (None, 0):
                    continue
                if code == STOPPED:
                    raise KeyboardInterrupt
                if code > 0:
                    raise RefervosError("a worker could not go on, as said above; nothing that was finished is lost.")
                now = len(job.finished())
                deaths, finished = 1 if now > finished else deaths + 1, now
                if deaths > _DEATHS_LIMIT:
                    raise EvaluationError(
                        f"{deaths} workers died in a row ({signal.Signals(-code).name}), perhaps for lack of memory; "
                        "the same command with fewer --workers continues."
                    )
                workers[place] = _start(job, chosen[place])
    finally:
        _stop(workers)


def _start(job: Job, settings: WorkerSettings) -> subprocess.Popen[bytes]:
    command = worker_command(job.store.address, dataclasses.replace(settings, started=time.time()))
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def _stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Let workers save their work; kill those that take too long."""
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.terminate()
    deadline = time.monotonic() + _STOPPED_WITHIN
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(max(0.0, deadline - time.monotonic()))
        if worker.poll() is None:
            worker.kill()
            worker.wait()
        if worker.stdin is not None:
            with contextlib.suppress(OSError):
                worker.stdin.close()


def worker_devices(device: str | None, workers: int | None, per_gpu: int) -> list[str | None]:
    """Choose the device of each worker.

    Args:
        device: Device that the user has chosen; None for GPUs if available.
        workers: Number of workers that the user has chosen.
        per_gpu: Workers that share a GPU.

    Returns:
        One device for each worker: GPUs in turn, or the CPU, one worker per usable CPU.

    Raises:
        ConfigError: When the device is not available.
    """
    import torch

    from refervos.loading import find_device

    chosen = find_device(device)
    if chosen.type == "cuda" and chosen.index is None:
        gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        count = workers or per_gpu * len(gpus)
        return [gpus[index % len(gpus)] for index in range(count)]
    return [str(chosen)] * (workers or (usable_cpus() if chosen.type == "cpu" else per_gpu))
