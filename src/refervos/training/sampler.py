"""Which samples each process draws, and the loader that draws them."""

from __future__ import annotations

import gc
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from refervos.errors import RefervosError, TrainingError
from refervos.processes import sigint_blocked
from refervos.training.stage import Key, SampleSource

GRACE = 30.0
"""Seconds for which a worker that was told to end goes on, so that the trainer, which was perhaps told the same, can
make its last step."""


class ShareSampler(Sampler[list[tuple[int, int]]]):
    """The samples of one process: for each step its contiguous share of the batch, cut into accumulated batches.

    Args:
        steps: The optimiser steps to draw for; it is all the state a resumed run needs.
        batch: Samples in a step, over all processes and accumulated batches.
        accumulate: Batches whose gradients are added up to a step.
        process: Number of this process.
        processes: How many there are.

    Raises:
        TrainingError: When the batch cannot be shared out equally.
    """

    def __init__(self, steps: range, batch: int, accumulate: int = 1, process: int = 0, processes: int = 1) -> None:
        if batch % (processes * accumulate):
            raise TrainingError(
                f"a batch of {batch} cannot be shared out equally to {processes} processes with accumulate "
                f"{accumulate}; give a multiple of {processes * accumulate}."
            )
        self.steps = steps
        self.accumulate = accumulate
        self.size = batch // (processes * accumulate)
        self.first = process * self.size * accumulate

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields lists of (step, index), ``accumulate`` of them for each step."""
        for step in self.steps:
            for part in range(self.accumulate):
                first = self.first + part * self.size
                yield [(step, index) for index in range(first, first + self.size)]

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate


class DrawnSamples(Dataset[Any]):
    """What a source draws, addressed by (step, index).

    Args:
        source: The source.
        key: See ``refervos.training.stage.Key``.
    """

    def __init__(self, source: SampleSource, key: Key) -> None:
        self.source = source
        self.key = tuple(key)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """Draw sample number ``place[1]`` of the batch of step ``place[0]``."""
        try:
            return self.source.draw(*place, self.key)
        except RefervosError as error:
            return _Unreadable(error)


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a sample that cannot be drawn, and for its batch; a loader adds a worker's traceback to errors."""

    error: RefervosError


@dataclass(frozen=True)
class _Collate:
    """Makes a batch of samples."""

    source: SampleSource

    def __call__(self, samples: list[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, _Unreadable):
                return sample
        return self.source.collate(samples)


class _Batches(DataLoader[Any]):
    """A loader whose workers never see Ctrl-C, not even while they start."""

    def __iter__(self) -> Any:
        """Starts the workers."""
        with sigint_blocked():
            return super().__iter__()


def batches_of(
    source: SampleSource, key: Key, sampler: ShareSampler, *, workers: int, device: torch.device
) -> DataLoader[Any]:
    """Draw and collate batches, in worker processes if wanted.

    Args:
        source: What draws and collates.
        key: See ``refervos.training.stage.Key``.
        sampler: Which samples.
        workers: Worker processes, 0 to draw in this one.
        device: Where the batches will go; for a CUDA GPU they are placed in memory from which it can copy at once.

    Returns:
        An iterable of batches on the CPU, for ``drawn``.
    """
    if workers:
        # A video decoder that is garbage would be freed in the workers too, and wait there for its threads for ever.
        gc.collect()
    return _Batches(
        DrawnSamples(source, key),
        batch_sampler=sampler,
        collate_fn=_Collate(source),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        multiprocessing_context=_context(device, source) if workers else None,
        # The loader draws a seed for its workers; from a generator of its own, it does not disturb the global one.
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_trainer,
    )


@contextmanager
def drawn(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Draw the batches of a loader, whose worker processes have ended when this is left, however that comes.

    Args:
        loader: From ``batches_of``.

    Yields:
        The batches in order. Asked for one that cannot be drawn it raises the error of that sample.

    Raises:
        TrainingError: When a worker is lost, whatever is done at that moment.
    """
    batches = iter(loader)
    try:
        yield _readable(batches)
    except RuntimeError as error:  # torch raises it on the signal that a process has ended
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"a process that draws samples was lost ({str(error).splitlines()[0].rstrip('. ')}); memory, or the "
            "shared memory of a container (--shm-size), may be too small for so many: give fewer workers in the "
            "recipe, and the same command goes on from the last checkpoint."
        ) from error
    finally:
        _end_workers(batches)


def _readable(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, _Unreadable):
            raise batch.error
        yield batch


def _end_workers(batches: Any) -> None:
    """End a loader's workers. It does so when it is freed, but errors keep it alive, and Python waits for them."""
    shut_down = getattr(batches, "_shutdown_workers", None)
    if shut_down is None:  # there are none
        return
    shut_down()
    for worker in batches._workers:
        if worker.is_alive():
            worker.kill()


def start_method(device: torch.device) -> str:
    """How worker processes start.

    Args:
        device: What this process computes on.

    Returns:
        ``fork`` on Linux as long as no GPU is in use: its driver's threads and locks do not survive in a copy of the
        process. Else ``forkserver`` on Linux, where the copies are of a process that never saw a GPU, and elsewhere
        ``spawn``: a new process each.
    """
    if sys.platform != "linux":
        return "spawn"
    return "forkserver" if device.type != "cpu" or torch.cuda.is_initialized() else "fork"


def _context(device: torch.device, source: SampleSource) -> Any:
    """How the loader makes processes."""
    context: Any = multiprocessing.get_context(start_method(device))
    if context.get_start_method() == "forkserver":
        # Imported once, by the process that is copied: importing takes each worker of each validation seconds.
        context.set_forkserver_preload([type(source).__module__])
    return context


def moved(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device; dicts, lists and tuples are entered, anything else stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=device.type == "cuda")  # elsewhere nobody waits before it is read
    if isinstance(batch, Mapping):
        return {name: moved(part, device) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [moved(part, device) for part in batch]
        return parts if isinstance(batch, list) else tuple(parts)
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    """What stops a run reaches workers, too, but they must go on until its last step is made, and end with the trainer.

    Those that belong to no run any more, or are told twice, end nevertheless.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _end_after_a_while)


def _end_after_a_while(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, GRACE)
