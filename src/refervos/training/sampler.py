"""Sampler that shares batches out to processes, and the loader that draws the samples."""

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

GRACE_PERIOD = 30.0
"""Seconds between SIGTERM and the end of a worker, so that the trainer, which may have got the signal too, can finish
its last step."""


class ShareSampler(Sampler[list[tuple[int, int]]]):
    """Samples of one process: for each step its contiguous share of each of the accumulated batches.

    An accumulated batch has the same samples whatever the number of processes.

    Args:
        steps: Optimiser steps to draw for; a resumed run needs no other state.
        batch: Samples in a step, over all processes and accumulated batches.
        accumulate: Number of batches whose gradients are accumulated in a step.
        process: Index of this process.
        processes: Number of processes.

    Raises:
        TrainingError: When the batch cannot be split equally.
    """

    def __init__(self, steps: range, batch: int, accumulate: int = 1, process: int = 0, processes: int = 1) -> None:
        if batch % (processes * accumulate):
            raise TrainingError(
                f"a batch of {batch} cannot be split equally over {processes} processes with accumulate {accumulate}; "
                f"give a multiple of {processes * accumulate}."
            )
        self.steps = steps
        self.accumulate = accumulate
        self.size = batch // (processes * accumulate)
        self.first = process * self.size
        self.together = processes * self.size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (step, index), ``accumulate`` of them for each step."""
        for step in self.steps:
            for part in range(self.accumulate):
                first = self.first + part * self.together
                yield [(step, index) for index in range(first, first + self.size)]

    def __len__(self) -> int:
        return len(self.steps) * self.accumulate


class DrawnSamples(Dataset[Any]):
    """Samples of a source, addressed by (step, index).

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
            return _FailedSample(error)


@dataclass(frozen=True)
class _FailedSample:
    """Placeholder for a sample that cannot be drawn, and for its batch.

    A loader would add the worker's traceback to an exception raised there.
    """

    error: RefervosError


@dataclass(frozen=True)
class _Collate:
    """Picklable function that makes a batch of samples."""

    source: SampleSource

    def __call__(self, samples: list[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, _FailedSample):
                return sample
        return self.source.collate(samples)


class _Loader(DataLoader[Any]):
    """Loader whose workers never receive Ctrl-C, not even while they start."""

    def __iter__(self) -> Any:
        """Start the workers."""
        with sigint_blocked():
            return super().__iter__()


def make_loader(
    source: SampleSource, key: Key, sampler: ShareSampler, *, workers: int, device: torch.device
) -> DataLoader[Any]:
    """Make a loader of batches, optionally with worker processes.

    Args:
        source: Draws and collates the samples.
        key: See ``refervos.training.stage.Key``.
        sampler: Selects the samples.
        workers: Number of worker processes, 0 to draw in this one.
        device: Destination of the batches; for a CUDA GPU they are placed in pinned memory.

    Returns:
        An iterable of batches on the CPU, for ``iterate_batches``.
    """
    if workers:
        # Unreachable video decoders would be freed in the workers, too, and wait there forever for their threads.
        gc.collect()
    return _Loader(
        DrawnSamples(source, key),
        batch_sampler=sampler,
        collate_fn=_Collate(source),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        multiprocessing_context=_context(device, source) if workers else None,
        # The loader draws a seed for its workers; its own generator leaves the global one untouched.
        generator=torch.Generator(),
        worker_init_fn=_ignore_signals,
    )


@contextmanager
def iterate_batches(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """Iterate over a loader's batches, and end its worker processes on exit, even after an error.

    Args:
        loader: From ``make_loader``.

    Yields:
        An iterator over the batches in order. It raises the error of a sample that cannot be drawn.

    Raises:
        TrainingError: When a worker process is lost.
    """
    batches = iter(loader)
    try:
        yield _checked(batches)
    except RuntimeError as error:  # torch raises it from its handler of SIGCHLD
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainingError(
            f"a data worker process was lost ({str(error).splitlines()[0].rstrip('. ')}); memory, or the shared "
            "memory of a container (--shm-size), may be too small for so many workers: set fewer in the recipe, and "
            "the same command resumes from the last checkpoint."
        ) from error
    finally:
        _end_workers(batches)


def _checked(batches: Iterator[Any]) -> Iterator[Any]:
    for batch in batches:
        if isinstance(batch, _FailedSample):
            raise batch.error
        yield batch


def _end_workers(batches: Any) -> None:
    """End a loader's workers. It does so when freed, but errors keep it alive, and Python would wait for them."""
    shut_down = getattr(batches, "_shutdown_workers", None)
    if shut_down is None:  # no workers
        return
    shut_down()
    for worker in batches._workers:
        if worker.is_alive():
            worker.kill()


def start_method(device: torch.device) -> str:
    """Choose the start method of worker processes.

    Args:
        device: Device of this process.

    Returns:
        On Linux ``fork`` if no GPU is in use, because a driver's threads and locks do not survive a fork, otherwise
        ``forkserver``, which forks a process that never used a GPU. On other systems ``spawn``.
    """
    if sys.platform != "linux":
        return "spawn"
    return "forkserver" if device.type != "cpu" or torch.cuda.is_initialized() else "fork"


def _context(device: torch.device, source: SampleSource) -> Any:
    """Make the loader's multiprocessing context."""
    context: Any = multiprocessing.get_context(start_method(device))
    if context.get_start_method() == "forkserver":
        # Imported once, by the process that is forked: importing would take each worker of each validation seconds.
        context.set_forkserver_preload([type(source).__module__])
    return context


def to_device(batch: Any, device: torch.device) -> Any:
    """Move the tensors of a batch, nested in dicts, lists and tuples, to a device; other values stay unchanged."""
    if isinstance(batch, Tensor):
        # Only CUDA orders the copy before its use on the stream.
        return batch.to(device, non_blocking=device.type == "cuda")
    if isinstance(batch, Mapping):
        return {name: to_device(part, device) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [to_device(part, device) for part in batch]
        return parts if isinstance(batch, list) else tuple(parts)
    return batch


def _ignore_signals(worker: int) -> None:
    """Let a worker survive the signals that stop a run, so that the trainer can finish its last step and end it.

    Orphaned workers, and those signalled twice, still end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _end_after_grace_period)


def _end_after_grace_period(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, GRACE_PERIOD)
