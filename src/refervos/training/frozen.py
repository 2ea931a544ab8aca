"""Frozen means frozen: a guard that notices when a weight changes that must not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import TrainingError
from refervos.training.stage import Stage

WORD = 8
"""Bytes that are mixed together, those of an int64."""

WORDS_AT_ONCE = {"cpu": 2**15}
"""How many words are mixed at once, so that they stay in a processor's cache; elsewhere ``WORDS_ON_DEVICE``."""

WORDS_ON_DEVICE = 2**22
"""Likewise on a GPU, where it bounds the memory that mixing takes (about 100 MB)."""

# Constants of SplitMix64 (Steele et al. 2014), as int64 has them.
STRIDE, FIRST, SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


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
        self.checksums = checksums_of(frozen_tensors(stage))

    def check(self, step: int) -> None:
        """Compare with what was there at the start.

        Args:
            step: Steps made, for the error message.

        Raises:
            TrainingError: Names the first tensor that changed: a parameter, or a buffer such as running statistics.
        """
        now = checksums_of(frozen_tensors(self.stage))
        for name, checksum in self.checksums.items():
            if now.get(name) != checksum:
                raise TrainingError(
                    f"{name} is in a frozen part but changed before step {step}; "
                    "nothing may write to it (does a batch norm update its running statistics?)."
                )


def frozen_tensors(stage: Stage) -> dict[str, Tensor]:
    """Parameters and saved buffers of the frozen parts, under every name that they have in the stage's state dict."""
    frozen = {id(tensor) for part in stage.frozen_parts() for tensor in part.state_dict(keep_vars=True).values()}
    return {name: tensor for name, tensor in stage.state_dict(keep_vars=True).items() if id(tensor) in frozen}


def checksums_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Sum up the bits of tensors where they are, and read all sums back together.

    A tensor's sum is exact integer arithmetic, so it is the same on every device and whatever the memory layout. One
    word that changes always changes it; several go unnoticed with a probability of about 2^-64.

    Args:
        tensors: Of any type, by name; all on one device.

    Returns:
        A number of 64 bits, with a sign, for each name.
    """
    sums: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in sums:  # the same tensor may have several names
            sums[id(tensor)] = _sum_of_bits(tensor.detach())
    if not sums:
        return {}
    values = torch.stack(list(sums.values())).tolist()  # the only copy from the device
    found = dict(zip(sums, values, strict=True))
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Mix each word with its position and sum the results modulo 2^64.

    Without the mixing, changes that undo each other in a sum, such as two signs that flip, would go unnoticed.

    Args:
        tensor: Of any type and shape.

    Returns:
        A scalar, int64, on the tensor's device.
    """
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    if len(raw) % WORD:
        raw = F.pad(raw, (0, -len(raw) % WORD))
    elif raw.storage_offset() % WORD:  # a view into another tensor, which cannot be read as words
        raw = raw.clone()
    words = raw.view(torch.int64)
    size = WORDS_AT_ONCE.get(words.device.type, WORDS_ON_DEVICE)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, len(words), size):
        some = words[start : start + size]
        mixed = torch.arange(start + 1, start + 1 + len(some), device=words.device).mul_(STRIDE).add_(some)
        for shift, factor in ((30, FIRST), (27, SECOND)):
            mixed.bitwise_xor_(_shifted(mixed, shift)).mul_(factor)
        total += mixed.bitwise_xor_(_shifted(mixed, 31)).sum()
    return total


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill up with zeros; torch fills up with the sign."""
    return (words >> bits).bitwise_and_(2 ** (64 - bits) - 1)
