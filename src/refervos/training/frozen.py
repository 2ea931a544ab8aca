"""Guard that detects changes of frozen weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import TrainingError
from refervos.training.stage import Stage

WORD = 8
"""Bytes mixed at a time, those of an int64."""

WORDS_AT_ONCE = {"cpu": 2**15}
"""Words mixed at once, few enough to stay in a processor's cache; on other devices ``WORDS_ON_DEVICE``."""

WORDS_ON_DEVICE = 2**22
"""Words mixed at once on a GPU, where they bound the memory used (about 100 MB)."""

# Constants of SplitMix64 (Steele et al. 2014), as signed 64-bit integers.
STRIDE, FIRST, SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class FrozenGuard:
    """Checksums of a stage's frozen parts at the start of training.

    Args:
        stage: The stage.
        optimiser: The stage's optimiser.

    Attributes:
        checksums: Checksum of each frozen parameter and saved buffer, by its name in the stage's state dict.

    Raises:
        TrainingError: When a frozen parameter requires gradients or is given to the optimiser.
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
        """Compare the frozen parts with their checksums from the start.

        Args:
            step: Number of steps made, for the error message.

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
    """Return the frozen parts' parameters and saved buffers, under every name they have in the stage's state dict."""
    frozen = {id(tensor) for part in stage.frozen_parts() for tensor in part.state_dict(keep_vars=True).values()}
    return {name: tensor for name, tensor in stage.state_dict(keep_vars=True).items() if id(tensor) in frozen}


def checksums_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Compute checksums of tensors on their device and read them all back in one copy.

    A checksum is exact integer arithmetic, so it is the same on every device and for every memory layout. A change of
    one word always changes it; changes of several go undetected with a probability of about 2^-64.

    Args:
        tensors: Tensors of any type, by name; all on one device.

    Returns:
        A signed 64-bit integer for each name.
    """
    sums: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if id(tensor) not in sums:  # the same tensor may have several names
            sums[id(tensor)] = _checksum(tensor.detach())
    if not sums:
        return {}
    values = torch.stack(list(sums.values())).tolist()  # the only copy from the device
    found = dict(zip(sums, values, strict=True))
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def _checksum(tensor: Tensor) -> Tensor:
    """Mix each word with its position and sum the results modulo 2^64.

    Without the mixing, changes that cancel in a sum, such as two flipped signs, would go undetected.

    Args:
        tensor: A tensor of any type and shape.

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
        chunk = words[start : start + size]
        mixed = torch.arange(start + 1, start + 1 + len(chunk), device=words.device).mul_(STRIDE).add_(chunk)
        for shift, factor in ((30, FIRST), (27, SECOND)):
            mixed.bitwise_xor_(_shift_right(mixed, shift)).mul_(factor)
        total += mixed.bitwise_xor_(_shift_right(mixed, 31)).sum()
    return total


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch fills with the sign bit."""
    return (words >> bits).bitwise_and_(2 ** (64 - bits) - 1)
