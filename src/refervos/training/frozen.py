"""Frozen means frozen: a guard that notices when a weight changes that must not."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from refervos.errors import TrainingError
from refervos.training.stage import Stage


class FrozenGuard:
    """Remembers what a stage's frozen parts held at the start.

    Args:
        stage: The stage.
        optimiser: What updates it.

    Attributes:
        checksums: Of each frozen parameter and saved buffer, by its name in the stage's state dict.

    Raises:
        TrainingError: When a frozen parameter requires gradients or is handed to the optimiser.
    """

    def __init__(self, stage: Stage, optimiser: torch.optim.Optimizer) -> None:
        self.stage = stage
        updated = {id(parameter) for group in optimiser.param_groups for parameter in group["params"]}
        for name, tensor in frozen_tensors(stage).items():
            if tensor.requires_grad:
                raise TrainingError(f"{name} is in a frozen part but requires gradients; freeze it in the stage.")
            if id(tensor) in updated:
                raise TrainingError(f"{name} is in a frozen part but is given to the optimiser; leave it out.")
        self.checksums = self._checksums()

    def check(self, step: int) -> None:
        """Compare with what was there at the start.

        Args:
            step: Steps made, for the error message.

        Raises:
            TrainingError: Names the first tensor that changed: a parameter, or a buffer such as running statistics.
        """
        now = self._checksums()
        for name, checksum in self.checksums.items():
            if now.get(name) != checksum:
                raise TrainingError(
                    f"{name} is in a frozen part but changed before step {step}; "
                    "nothing may write to it (does a batch norm update its running statistics?)."
                )

    def _checksums(self) -> dict[str, int]:
        return {name: _checksum(tensor) for name, tensor in frozen_tensors(self.stage).items()}


def frozen_tensors(stage: Stage) -> dict[str, Tensor]:
    """Parameters and saved buffers of the frozen parts, under every name that they have in the stage's state dict."""
    frozen = {id(tensor) for part in stage.frozen_parts() for tensor in part.state_dict(keep_vars=True).values()}
    return {name: tensor for name, tensor in stage.state_dict(keep_vars=True).items() if id(tensor) in frozen}


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
