"""What the trainer asks of a stage of training: nothing else is known about models, data and losses."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from refervos.errors import TrainingError
from refervos.training.devices import read_back

STAGES: Mapping[str, str] = {
    "track": "refervos.training.stages.track:TrackStage",
    "sam": "refervos.training.stages.sam:SamStage",
    "language": "refervos.training.stages.language:LanguageStage",
    "images": "refervos.training.stages.samwise:ImagesStage",
    "video": "refervos.training.stages.samwise:VideoStage",
    "refsam": "refervos.training.stages.refsam:RefSamStage",
}
"""Names that a recipe may use, and where their classes are; imported only when asked for."""

TRAIN, VALIDATION = 0, 1

Key = Sequence[int]
"""What samples are drawn from: (seed of the recipe, number of the stage, ``TRAIN`` or ``VALIDATION``)."""


class SampleSource(ABC):
    """Where a stage's samples come from: all that drawing and collating takes, and none of the weights.

    It is sent to every worker process, so it must be picklable, and small beside a model.
    """

    @abstractmethod
    def draw(self, step: int, index: int, key: Key) -> Any:
        """Draw a sample, without any random state; it may run in a worker process.

        Args:
            step: Optimiser steps made before the one that it is for, or the number of a validation batch.
            index: Its number in the batch of that step over all processes.
            key: See ``Key``. The sample is a pure function of (key, step, index), and what all samples of a batch
                share, such as the length of its clips, of (key, step).

        Returns:
            What ``collate`` takes.
        """

    @abstractmethod
    def collate(self, samples: list[Any]) -> Any:
        """Make a batch of samples: tensors in dicts, lists and tuples; tensors are then moved to the device."""


class Stage(nn.Module, ABC):
    """One stage of training: what is learnt, from what, by which loss.

    Everything that learns is a submodule, auxiliary heads included: checkpoints hold the state dict of the stage.

    Attributes:
        name: What recipes call it.
        Settings: A frozen dataclass; the recipe's ``settings:`` are read into it.
        model: What is saved at the end.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    model: nn.Module

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, init: Mapping[str, Path], seed: int) -> Stage:
        """Make the stage. Random weights are drawn from torch's generator, which is seeded before the call.

        Args:
            settings: An instance of ``Settings``.
            init: Model folders to begin from, by role: a single one is called ``model``; empty for random weights.
            seed: The recipe's seed.

        Returns:
            The stage, on the CPU.
        """

    def expect(self, batch: int, validation_batches: int) -> int | None:
        """Be told, before the first sample is drawn, what will be asked for. Default: nothing to prepare.

        Args:
            batch: Samples in an optimiser step, over all processes and accumulated batches.
            validation_batches: Batches in a validation; 0 when there is none.

        Returns:
            Samples in an epoch; None where samples never end.

        Raises:
            TrainingError: When it cannot be had.
        """
        return None

    @abstractmethod
    def source(self) -> SampleSource:
        """What is drawn and collated, without the weights; asked for once ``expect`` was called."""

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        A loss should be a mean over samples, so that several processes and accumulated batches add up to the whole
        batch; for a mean over something whose number varies there is ``distributed.mean_over_processes``.

        Args:
            batch: What the source's ``collate`` made, on the device.

        Returns:
            ``loss``, the scalar to minimise, and any other scalars to log.
        """

    def frozen_parts(self) -> Sequence[nn.Module]:
        """Modules that must never change; the trainer checks that they do not. Default none."""
        return ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser, default one of everything that requires gradients.

        Returns:
            Dicts with ``params`` and, optionally, ``rate_scale`` (what the learning rate is multiplied by) and
            ``weight_decay``.
        """
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    @torch.no_grad()
    def validate(self, batches: Iterable[Any]) -> dict[str, float]:
        """Measure the stage as it is, in evaluation mode. Default: the mean over the batches of what ``forward`` gives.

        With several processes each gets its share of every batch, all equally many, and the trainer averages what they
        return.

        Args:
            batches: Batches of samples that training never draws, on the device, the same at each call.

        Returns:
            Scalars by name.
        """
        found: dict[str, list[float]] = defaultdict(list)
        for batch in batches:
            measured = self(batch)
            for name, value in zip(measured, read_back(list(measured.values())), strict=True):
                found[name].append(float(value))
        return {name: sum(values) / len(values) for name, values in found.items()}

    def save(self, folder: Path) -> None:
        """Write the finished model.

        Args:
            folder: Does not exist yet.
        """
        save_pretrained: Any = self.model.save_pretrained
        save_pretrained(folder)


def stage_class(name: str) -> type[Stage]:
    """Find the class of a stage.

    Args:
        name: One of ``STAGES``, or ``package.module:Class`` for a stage of one's own.

    Returns:
        The class.

    Raises:
        TrainingError: When there is none of that name, or it is not a stage.
    """
    module_name, colon, class_name = STAGES.get(name, name).partition(":")
    if not colon:
        raise TrainingError(
            f"there is no stage {name!r}; known stages are {', '.join(STAGES)}, and package.module:Class names another."
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # whatever the module does when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise TrainingError(f"the stage {name!r} cannot be imported from {module_name} ({reason}).") from error
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise TrainingError(f"{module_name}:{class_name} is no subclass of refervos.training.stage.Stage.")
    return found
