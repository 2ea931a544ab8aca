"""Means of losses over an optimiser step whose samples are spread over processes and accumulated batches.

A loss that is a mean over items, such as visible objects or tokens, must be divided by the number of items of the whole
step. The mean of the batches' own means would give the items of a batch with few of them a greater weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from refervos.errors import TrainingError
from refervos.training.distributed import mean_over_processes, process_count, sum_over_processes

Mean = Callable[[str, Tensor, Tensor], Tensor]
"""Divides a sum by a number of items. Arguments: the name of the mean, the sum and the number, both scalars."""


def mean_of_batch(name: str, total: Tensor, count: Tensor) -> Tensor:
    """Average over the items of one batch, which all processes share; a ``Mean`` for steps of a single batch."""
    return mean_over_processes(total, count)


def within(mean: Mean, name: str) -> Mean:
    """Return the same mean with a prefix to its names, for a function that is called several times for a batch."""
    return lambda own, total, count: mean(f"{name} {own}".strip(), total, count)


class StepMeans:
    """Means over all items of an optimiser step; an instance belongs to a stage, which calls it in ``forward``.

    Outside of ``over``, a step is one batch, which all processes share.
    """

    def __init__(self) -> None:
        self._recorded: dict[str, Tensor] | None = None
        self._whole: Mapping[str, Tensor] = {}

    def __call__(self, name: str, total: Tensor, count: Tensor) -> Tensor:
        """Average over the items of the whole step.

        Args:
            name: Name of the mean, different from all others of the same ``forward``.
            total: A scalar, the sum over the items of this batch. Without items it must still be computed from the
                model's outputs (times zero), because DDP needs a gradient from every process.
            count: A scalar, the number of items (or the sum of their weights).

        Returns:
            A scalar. The average of its values, and of its gradients, over the processes and accumulated batches of the
            step is the mean over all items; zero without any.
        """
        if self._recorded is not None:
            if name in self._recorded:
                raise TrainingError(f"two means of one batch are called {name!r}; give each its own name.")
            self._recorded[name] = count.detach().float()
            return total * 0.0
        if name not in self._whole:
            return mean_over_processes(total, count)
        total = total.to(torch.promote_types(total.dtype, torch.float32))
        return total / self._whole[name].to(total.dtype).clamp(min=torch.finfo(total.dtype).tiny)

    @contextmanager
    def recording(self) -> Iterator[dict[str, Tensor]]:
        """Record the numbers of items of one batch instead of averaging.

        Yields:
            Numbers by name, float32 scalars, once ``forward`` has been called in the block.
        """
        self._recorded = {}
        try:
            yield self._recorded
        finally:
            self._recorded = None

    @contextmanager
    def over(self, counts: Sequence[Mapping[str, Tensor]]) -> Iterator[None]:
        """Average over several accumulated batches inside the block.

        Args:
            counts: Numbers of items of each of this process's batches, by name.

        Raises:
            TrainingError: When the batches have different means.
        """
        names = list(counts[0])
        if any(set(other) != set(names) for other in counts):
            raise TrainingError(
                f"the losses of accumulated batches are means over different items ({', '.join(names)}); "
                "a stage must compute the same means for every batch."
            )
        if names:
            own = torch.stack([torch.stack([batch[name] for name in names]) for batch in counts]).sum(0)
            # Divided by the number of batches, over which the trainer and DDP average.
            whole = sum_over_processes(own) / (len(counts) * process_count())
            self._whole = dict(zip(names, whole, strict=True))
        try:
            yield
        finally:
            self._whole = {}


def as_ratio(output: Tensor, share: float) -> Tensor:
    """Return an output of ``forward`` as a ``ratio``; a scalar has the weight of its batch, its share in the step."""
    output = output.detach().float()
    return output if output.ndim else torch.stack([output * share, torch.full_like(output, share)])


def ratio(total: Tensor, count: Tensor) -> Tensor:
    """Make a scalar to log that is a mean over items whose number varies; batches are weighted by their numbers.

    Args:
        total: A scalar, the sum over the items of a batch.
        count: A scalar, the number of items.

    Returns:
        Both, float32 (2,), for the outputs of a stage's ``forward``.
    """
    return torch.stack([total.detach().float(), count.detach().float()])
