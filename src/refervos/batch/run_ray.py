"""Runner of Ray Data: shards are the rows of a dataset, workers the actors of a pool.

Ray decides which actor gets which shard, starts actors as machines come and go, and starts dead ones again. Leases,
attempts and commits are ours, as everywhere: Ray repeats the tasks of a dead actor without end.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from refervos.batch.job import Job
from refervos.batch.storage import open_store
from refervos.batch.worker import Worker, WorkerSettings

_CPUS = 2
"""CPUs of an actor on a GPU: one for the model, one for its decoder."""


class RayWorker:
    """Actor with a loaded model, which processes the shards that Ray gives it.

    Args:
        address: Folder of results that all machines reach.
        settings: Settings of the worker.
    """

    def __init__(self, address: str, settings: WorkerSettings) -> None:
        self._worker = Worker(Job.open(open_store(address)), settings)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Process shards.

        Args:
            batch: Column ``shard`` with names of shards.

        Returns:
            The names, and in ``finished`` whether each is finished.
        """
        names = [str(name) for name in batch["shard"]]
        return {"shard": names, "finished": [self._worker.process_named(name) for name in names]}


def run_ray(job: Job, settings: WorkerSettings, *, workers: int, per_gpu: int = 1, address: str | None = None) -> int:
    """Process a job on a Ray cluster.

    Args:
        job: The job.
        settings: Settings of each worker.
        workers: Largest number of actors; Ray starts as many as there is work and room for.
        per_gpu: Actors that share a GPU.
        address: Address of a cluster, such as ``auto``; None for a new one on this machine.

    Returns:
        Number of shards that were finished.
    """
    import ray
    import ray.data

    if not ray.is_initialized():
        if address is None:
            # Ray 2.60 would write a token into the home folder; this cluster is reached from this machine only.
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", log_to_driver=False)
        else:
            ray.init(address=address)
    finished = job.finished()
    left = [{"shard": shard.name} for shard in job.shards() if shard.name not in finished]
    if not left:
        return 0
    on_gpu = settings.device is None and ray.cluster_resources().get("GPU", 0) > 0
    resources: dict[str, Any] = {"num_gpus": 1 / per_gpu, "num_cpus": _CPUS} if on_gpu else {"num_cpus": 1}
    done = ray.data.from_items(left, override_num_blocks=len(left)).map_batches(
        RayWorker,
        fn_constructor_args=(job.store.address, settings),
        batch_size=1,
        # One shard at a time: a shard must not wait behind a long one while another actor is idle.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, max_tasks_in_flight_per_actor=1),
        **resources,
    )
    return sum(row["finished"] for row in done.take_all())
