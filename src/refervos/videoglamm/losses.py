"""The losses of VideoGLaMM: cross-entropy of the answer, binary cross-entropy and dice of its masks.

Shapes: M masks, each of one phrase in one frame, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import ConfigError

IGNORED_PIXEL = -1
"""Value of ground-truth pixels that do not count."""

_DICE_SCALE = 1000.0
_DICE_SMOOTH = 1e-6
_COUNT_SMOOTH = 1e-8


@dataclass(frozen=True)
class LossWeights:
    """How the losses are added up. Defaults: published.

    Attributes:
        text: Weight of the cross-entropy of the answer's tokens.
        bce: Weight of the masks' binary cross-entropy.
        dice: Weight of the masks' dice loss.
        padded_masks: The released code cuts and pads the masks of each video to 4; the padding adds nothing to the sum
            but counts in the mean, so that few masks weigh less. None for the mean over the masks that there are.
    """

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5
    padded_masks: int | None = None

    def __post_init__(self) -> None:
        if self.padded_masks is not None and self.padded_masks < 1:
            raise ConfigError(f"padded_masks is {self.padded_masks}; it must be at least 1, or null.")


PUBLISHED_WEIGHTS = LossWeights(padded_masks=4)
"""The losses as the released code adds them up."""


@dataclass(frozen=True)
class Losses:
    """A training step's losses, scalars. The parts are weighted already.

    Attributes:
        total: Their sum.
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
        count: The sum over masks is divided by this.

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
        count: The sum over masks is divided by this.

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
    """Cut or pad the masks of a video to a number of phrases, as the released code does; added ones do not count.

    Args:
        masks: (K, T, H, W).
        count: How many phrases remain.

    Returns:
        (count, T, H, W).
    """
    kept = masks[:count]
    missing = kept.new_full((count - len(kept), *masks.shape[1:]), IGNORED_PIXEL)
    return torch.cat([kept, missing])
