"""Runner of Slurm: an array of jobs through submitit, each of them one worker."""

from __future__ import annotations

import sys
from typing import Any

from refervos.batch.job import LOGS, Job
from refervos.batch.storage import LocalStore, open_store
from refervos.batch.worker import StopFlag, Worker, WorkerSettings
from refervos.errors import OutputError


class SlurmWorker:
    """Work of one Slurm job: shards until none is left.

    Args:
        address: Folder of results, on a file system that all machines share, or on an object store.
        settings: Settings of the worker.
    """

    def __init__(self, address: str, settings: WorkerSettings) -> None:
        self._address, self._settings = address, settings

    def __call__(self) -> bool:
        """Process shards; return whether none is left.

        When Slurm preempts the job, it sends SIGTERM first: the session is saved, and the requeued job goes on.
        """
        import signal

        with StopFlag(signal.SIGTERM) as stop:
            Worker(Job.open(open_store(self._address)), self._settings, stop).run()
        return stop.received is None

    def checkpoint(self) -> Any:
        """Be submitted again at the time limit; the next job goes on from the states that were saved last."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_slurm(
    job: Job,
    settings: WorkerSettings,
    *,
    workers: int,
    hours: float = 24.0,
    partition: str | None = None,
    cluster: str | None = None,
    wait: bool = True,
) -> list[Any]:
    """Submit an array of jobs.

    Args:
        job: The job.
        settings: Settings of each worker.
        workers: Number of Slurm jobs.
        hours: Time limit of each.
        partition: Slurm partition.
        cluster: submitit's executor: None for Slurm if available, ``local`` for processes of this machine, ``debug``
            for this process.
        wait: Whether to wait until all have ended.

    Returns:
        The jobs of submitit.

    Raises:
        OutputError: When the folder of results is neither on a file system nor on an object store.
    """
    import submitit

    folder = f"{job.store.address}/{LOGS}/slurm" if isinstance(job.store, LocalStore) else "refervos_slurm"
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    on_gpu = settings.device is None or settings.device.startswith("cuda")
    executor.update_parameters(
        name="refervos-batch", timeout_min=round(60 * hours), cpus_per_task=2, slurm_signal_delay_s=120
    )
    if executor.cluster == "slurm":
        executor.update_parameters(gpus_per_node=1 if on_gpu else 0, slurm_array_parallelism=workers)
        if partition is not None:
            executor.update_parameters(slurm_partition=partition)
    with executor.batch():
        jobs = [executor.submit(SlurmWorker(job.store.address, settings)) for _ in range(workers)]
    if wait:
        for each in jobs:
            try:
                each.result()
            except Exception as error:
                raise OutputError(
                    f"the Slurm job {each.job_id} has failed ({type(error).__name__}); its log is in {folder}."
                ) from error
    print(f"Slurm jobs {', '.join(each.job_id for each in jobs)}; logs in {folder}", file=sys.stderr)
    return jobs
