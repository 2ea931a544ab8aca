"""Which samples each process draws, and the loader that draws them."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from refervos.errors import TrainingError
from refervos.training.stage import Key, Stage


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
    """What a stage draws, addressed by (step, index).

    Args:
        stage: The stage.
        key: See ``refervos.training.stage.Key``.
    """

    def __init__(self, stage: Stage, key: Key) -> None:
        self.stage = stage
        self.key = tuple(key)

    def __getitem__(self, place: tuple[int, int]) -> Any:
        """Draw sample number ``place[1]`` of the batch of step ``place[0]``."""
        return self.stage.draw(*place, self.key)


def batches_of(stage: Stage, key: Key, sampler: ShareSampler, *, workers: int, pin_memory: bool) -> DataLoader[Any]:
    """Draw and collate batches, in worker processes if wanted.

    Args:
        stage: What draws and collates.
        key: See ``refervos.training.stage.Key``.
        sampler: Which samples.
        workers: Worker processes, 0 to draw in this one.
        pin_memory: Whether to place batches in memory from which a GPU can copy at once.

    Returns:
        An iterable of batches on the CPU.
    """
    if workers:
        # A video decoder that is garbage would be freed in the workers too, and wait there for its threads for ever.
        gc.collect()
    return DataLoader(
        DrawnSamples(stage, key),
        batch_sampler=sampler,
        collate_fn=stage.collate,
        num_workers=workers,
        pin_memory=pin_memory,
        # The loader draws a seed for its workers; from a generator of its own, it does not disturb the global one.
        generator=torch.Generator(),
        worker_init_fn=_leave_signals_to_the_trainer,
    )


def moved(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device; dicts, lists and tuples are entered, anything else stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: moved(part, device) for name, part in batch.items()}
    if isinstance(batch, list | tuple):
        parts = [moved(part, device) for part in batch]
        return parts if isinstance(batch, list) else tuple(parts)
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C reaches workers, too, but they must go on until the last step is made; they end with the trainer."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
