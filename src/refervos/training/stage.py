"""Interface between the trainer and a stage of training, which alone knows about models, data and losses."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from refervos.errors import TrainingError
from refervos.training.devices import read_back
from refervos.training.history import Means
from refervos.training.step_means import StepMeans

STAGES: Mapping[str, str] = {
    "track": "refervos.training.stages.track:TrackStage",
    "sam": "refervos.training.stages.sam:SamStage",
    "language": "refervos.training.stages.language:LanguageStage",
    "images": "refervos.training.stages.samwise:ImagesStage",
    "video": "refervos.training.stages.samwise:VideoStage",
    "refsam": "refervos.training.stages.refsam:RefSamStage",
    "vision": "refervos.training.stages.vision:VisionStage",
    "conversation": "refervos.training.stages.videoglamm:ConversationStage",
}
"""Stage names that a recipe may use, with the classes they stand for; imported only when used."""

TRAIN, VALIDATION = 0, 1

Key = Sequence[int]
"""Key from which samples are drawn: (seed of the recipe, position of the stage, ``TRAIN`` or ``VALIDATION``)."""


class SampleSource(ABC):
    """Source of a stage's samples: draws and collates them without the weights.

    It is sent to every worker process, so it must be picklable, and small compared with a model.
    """

    @abstractmethod
    def draw(self, step: int, index: int, key: Key) -> Any:
        """Draw a sample without any global random state; may run in a worker process.

        Args:
            step: Number of optimiser steps made before, or the index of a validation batch.
            index: Position in that step's batch over all processes.
            key: See ``Key``. The sample is a pure function of (key, step, index); properties shared by all samples of a
                batch, such as the length of its clips, depend on (key, step) only.

        Returns:
            A sample for ``collate``.
        """

    @abstractmethod
    def collate(self, samples: list[Any]) -> Any:
        """Make a batch of samples; tensors nested in its dicts, lists and tuples are then moved to the device."""


class Stage(nn.Module, ABC):
    """Stage of training: a model, its data and its loss.

    Everything that learns is a submodule, auxiliary heads included: checkpoints hold the state dict of the stage.

    Attributes:
        name: Name in recipes.
        Settings: A frozen dataclass; the recipe's ``settings:`` are read into it.
        model: The model to save at the end.
        mean: Averages losses over items whose number varies between samples.
    """

    name: ClassVar[str]
    Settings: ClassVar[type]
    model: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.mean = StepMeans()

    @classmethod
    @abstractmethod
    def build(cls, settings: Any, init: Mapping[str, Path], seed: int) -> Stage:
        """Build the stage. Torch's generator, from which random weights are drawn, is seeded before the call.

        Args:
            settings: An instance of ``Settings``.
            init: Model folders to start from, by role; a single one has the role ``model``. Empty for random weights.
            seed: The recipe's seed.

        Returns:
            The stage, on the CPU.
        """

    def prepare_data(self, batch: int, validation_batches: int) -> int | None:
        """Prepare the data before the first sample is drawn. Default: nothing to prepare, an endless source.

        Args:
            batch: Samples in an optimiser step, over all processes and accumulated batches.
            validation_batches: Batches in a validation; 0 for no validation.

        Returns:
            Number of samples in an epoch; None for an endless source.

        Raises:
            TrainingError: When the data are not available.
        """
        return None

    @abstractmethod
    def source(self) -> SampleSource:
        """Return the source of samples, without the weights; called after ``prepare_data``."""

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        A loss should be a mean over samples, so that several processes and accumulated batches add up to the whole
        batch. For means over items whose number varies between samples use ``self.mean``.

        Args:
            batch: A batch from the source's ``collate``, on the device.

        Returns:
            ``loss``, the scalar to minimise, and any other scalars to log; those that are means over items whose number
            varies are a ``step_means.ratio``.
        """

    def counts(self, batch: Any) -> dict[str, Tensor] | None:
        """Count the items that ``self.mean`` averages over, if that takes no model. Default None, for not known.

        Gradients can be accumulated exactly only when the numbers of the whole step are known before its first
        batch. Where they are not known, the trainer computes the losses of every accumulated batch twice.

        Args:
            batch: A batch from the source's ``collate``, on the CPU.

        Returns:
            The number of items of this batch by the name of the mean, scalars; empty if ``loss`` has no such means.
        """
        return None

    def frozen_parts(self) -> Sequence[nn.Module]:
        """Return the modules that must never change, which the trainer checks. Default none."""
        return ()

    def trains_everything_always(self) -> bool:
        """Return whether every trainable parameter gets a gradient from every batch. Default True.

        Several processes then exchange each gradient as soon as it is computed; otherwise they must find out at each
        step which ones there are.
        """
        return True

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups. Default: one group of everything that requires gradients.

        Returns:
            Dicts with ``params`` and, optionally, ``rate_scale`` (a factor of the learning rate) and ``weight_decay``.
        """
        return [{"params": [parameter for parameter in self.parameters() if parameter.requires_grad]}]

    @torch.no_grad()
    def validate(self, batches: Iterable[Any]) -> Means:
        """Validate the stage in evaluation mode. Default: the means of the scalars of ``forward`` over the batches.

        Each of several processes gets an equal share of every batch, and the trainer merges their means.

        Args:
            batches: Batches of samples that training never draws, on the device, the same at each call.

        Returns:
            Means of scalars by name.
        """
        means = Means()
        for batch in batches:
            outputs = self(batch)
            for name, value in zip(outputs, read_back(list(outputs.values())), strict=True):
                means.add_output(name, value)
        return means

    def save(self, folder: Path) -> None:
        """Write the finished model.

        Args:
            folder: The folder to write; it does not exist yet.
        """
        save_pretrained: Any = self.model.save_pretrained
        save_pretrained(folder)


def stage_class(name: str) -> type[Stage]:
    """Find the class of a stage.

    Args:
        name: One of ``STAGES``, or ``package.module:Class`` for your own stage.

    Returns:
        The class.

    Raises:
        TrainingError: When no class has that name, or it is not a stage.
    """
    module_name, colon, class_name = STAGES.get(name, name).partition(":")
    if not colon:
        raise TrainingError(
            f"there is no stage {name!r}; known stages are {', '.join(STAGES)}, and package.module:Class names another."
        )
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # a user's module may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise TrainingError(f"the stage {name!r} cannot be imported from {module_name} ({reason}).") from error
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise TrainingError(f"{module_name}:{class_name} is no subclass of refervos.training.stage.Stage.")
    return found
