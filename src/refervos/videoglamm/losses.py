"""The losses of VideoGLaMM: cross-entropy of the answer, binary cross-entropy and dice loss of the masks.

Shapes: M masks, one for each phrase and frame, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import ConfigError

IGNORED_PIXEL = -1
"""Value of ignored ground-truth pixels."""

_DICE_SCALE = 1000.0
_DICE_SMOOTH = 1e-6
_COUNT_SMOOTH = 1e-8


Mean = Callable[[str, Tensor, Tensor], Tensor]
"""Divides a sum by a number of items, in distributed training over all processes. Arguments: the name of the mean, the
sum and the number, both scalars."""


def own_mean(name: str, total: Tensor, count: Tensor) -> Tensor:
    """Average over the items of one batch; zero without any."""
    return total / count.clamp(min=1)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses. Defaults: published.

    Attributes:
        text: Weight of the cross-entropy of the answer's tokens.
        bce: Weight of the masks' binary cross-entropy.
        dice: Weight of the masks' dice loss.
        padded_masks: Truncate and pad the masks of each video to this number, as the released code does with 4. Padded
            masks add 0 to the sum but count in the mean, which reduces the mask losses of videos with few masks. None
            for the mean over the actual masks.
    """

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    padded_masks: int | None = None

    def __post_init__(self) -> None:
        if self.padded_masks is not None and self.padded_masks < 1:
            raise ConfigError(f"padded_masks is {self.padded_masks}; it must be at least 1, or null.")


PUBLISHED_WEIGHTS = LossWeights(padded_masks=4)
"""The weights of the released code, including its padding of masks."""


@dataclass(frozen=True)
class Losses:
    """Losses of a training step, scalars; the parts are already weighted.

    Attributes:
        total: Sum of the parts.
        text: Cross-entropy of the answers.
        bce: Binary cross-entropy of the masks.
        dice: Dice loss of the masks.
    """

    total: Tensor
    text: Tensor
    bce: Tensor
    dice: Tensor


def sigmoid_bce_loss(logits: Tensor, targets: Tensor, count: float) -> Tensor:
    """Compute the binary cross-entropy, averaged over the pixels of each mask.

    Args:
        logits: (M, H, W).
        targets: 0, 1 or ``IGNORED_PIXEL``, (M, H, W).
        count: Divisor of the sum over masks.

    Returns:
        Scalar.
    """
    counted = targets != IGNORED_PIXEL
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none") * counted
    return loss.flatten(1).mean(1).sum() / (count + _COUNT_SMOOTH)


def sigmoid_dice_loss(logits: Tensor, targets: Tensor, count: float) -> Tensor:
    """Compute the dice loss of each mask: one minus twice the intersection over the sum of both areas.

    Args:
        logits: (M, H, W).
        targets: 0, 1 or ``IGNORED_PIXEL``, (M, H, W).
        count: Divisor of the sum over masks.

    Returns:
        Scalar.
    """
    counted = (targets != IGNORED_PIXEL).to(logits.dtype)
    predicted = (logits.sigmoid() * counted).flatten(1)
    wanted = (targets * counted).flatten(1)
    shared = 2 * (predicted / _DICE_SCALE * wanted).sum(1)
    areas = (predicted / _DICE_SCALE).sum(1) + (wanted / _DICE_SCALE).sum(1)
    return (1 - (shared + _DICE_SMOOTH) / (areas + _DICE_SMOOTH)).sum() / (count + _COUNT_SMOOTH)


def pad_masks(masks: Tensor, count: int) -> Tensor:
    """Truncate or pad the masks of a video to a number of phrases; padded masks are ignored in the losses.

    Args:
        masks: (K, T, H, W).
        count: Number of phrases.

    Returns:
        (count, T, H, W).
    """
    kept = masks[:count]
    missing = kept.new_full((count - len(kept), *masks.shape[1:]), IGNORED_PIXEL)
    return torch.cat([kept, missing])
