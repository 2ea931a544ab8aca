"""The published mask losses, focal and dice (SAMWISE paper, section 4.1); the CME's is beside the CME.

All are computed in float32 at least, also where autocast gives logits in half precision: they sum over many pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.training.distributed import mean_over_processes


def exact(values: Tensor) -> Tensor:
    """Values in float32, or as they are where they have more digits."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def dice_loss(logits: Tensor, targets: Tensor, count: float, void: Tensor | None = None) -> Tensor:
    """Dice loss, summed over rows and divided by ``count``.

    Args:
        logits: (R, P) mask logits, one row a mask (or a clip of masks).
        targets: (R, P) in {0, 1}.
        count: What the sum is divided by, the number of clips.
        void: Pixels that do not count, bool (R, P), default none.

    Returns:
        A scalar.
    """
    return dice_of_rows(logits, targets, void).sum() / count


def dice_of_rows(logits: Tensor, targets: Tensor, void: Tensor | None = None) -> Tensor:
    """Dice loss of each row: mask logits (R, P), targets (R, P) in {0, 1} and void pixels, bool (R, P) -> (R,)."""
    logits, targets = exact(logits), exact(targets)
    chance = logits.sigmoid()
    if void is not None:
        chance, targets = chance.masked_fill(void, 0), targets.masked_fill(void, 0)
    overlap = 2 * (chance * targets).sum(1)
    return 1 - (overlap + 1) / (chance.sum(1) + targets.sum(1) + 1)


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    count: float,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    void: Tensor | None = None,
) -> Tensor:
    """Focal loss (Lin et al. 2017, equation 5), mean over the pixels of a row, summed over rows, divided by ``count``.

    Args:
        logits: (R, P) mask logits.
        targets: (R, P) in {0, 1}.
        count: What the sum is divided by, the number of clips.
        alpha: Weight of positive pixels, None for no weighting.
        gamma: Exponent that turns down easy pixels.
        void: Pixels that do not count, bool (R, P), default none.

    Returns:
        A scalar.
    """
    return focal_of_rows(logits, targets, alpha, gamma, void).sum() / count


def focal_of_rows(
    logits: Tensor, targets: Tensor, alpha: float | None = 0.25, gamma: float = 2.0, void: Tensor | None = None
) -> Tensor:
    """Focal loss of each row, mean over its pixels that count: arguments as of ``sigmoid_focal_loss`` -> (R,)."""
    logits, targets = exact(logits), exact(targets)
    chance = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    wrong = chance * (1 - targets) + (1 - chance) * targets
    loss = entropy * wrong**gamma
    if alpha is not None:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    if void is not None:
        return loss.masked_fill(void, 0).sum(1) / (~void).sum(1).clamp(min=1)
    return loss.mean(1)


def mask_losses(
    mask_logits: Tensor | Sequence[Tensor],
    targets: Sequence[Tensor],
    voids: Sequence[Tensor] | None = None,
    *,
    published: bool = False,
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of a batch of clips, on logits brought to the targets' size.

    Args:
        mask_logits: (N, T, h, w), or N of (T, h, w), over the same field of view as the targets.
        targets: For each clip its masks (T, H, W) in {0, 1}; sizes may differ between clips.
        voids: For each clip the pixels that do not count, bool (T, H, W); default none. The released code
            knows none, so not with ``published``.
        published: Compute them as the released code does, which pads the targets to a common size and to multiples of
            32 but stretches the predictions over the padding; equal where nothing is padded.

    Returns:
        The focal and the dice loss, each the mean over the clips of a clip's loss (all its frames together).
    """
    count = len(targets)
    if published:
        height = max(-(-target.shape[1] // 32) * 32 for target in targets)
        width = max(-(-target.shape[2] // 32) * 32 for target in targets)
        targets = [F.pad(t, (0, width - t.shape[2], 0, height - t.shape[1])) for t in targets]
    focal = dice = exact(mask_logits[0].new_zeros(()))
    for number, (logits, target) in enumerate(zip(map(exact, mask_logits), targets, strict=True)):
        if logits.shape[-2:] != target.shape[-2:]:
            logits = F.interpolate(logits[None], size=target.shape[-2:], mode="bilinear", align_corners=False)[0]
        row, truth = logits.reshape(1, -1), target.to(logits.dtype).reshape(1, -1)  # (1, T*H*W)
        void = None if voids is None else voids[number].reshape(1, -1)
        focal = focal + sigmoid_focal_loss(row, truth, count, void=void)
        dice = dice + dice_loss(row, truth, count, void)
    return focal, dice


def visible(truth: Tensor, least_area: int) -> Tensor:
    """Where an object counts as visible: masks bool (..., H, W) -> bool (...)."""
    return truth.flatten(-2).sum(-1) >= least_area


def around_hiding(truth: Tensor, least_area: int, after: int = 4) -> Tensor:
    """Find the frames in which an object is hidden after it was seen, and the first ones after it comes back.

    Args:
        truth: Masks, bool (R, T, H, W).
        least_area: Pixels from which on an object counts as visible.
        after: How many frames count after it comes back.

    Returns:
        bool (R, T).
    """
    seen = visible(truth, least_area)
    hidden = ~seen & (seen.cumsum(1) > 0)
    late = F.pad(hidden, (after, 0)).unfold(1, after + 1, 1).any(-1)  # (R, T)
    return late


def frame_losses(
    mask_logits: Tensor,
    score: Tensor | None,
    truth: Tensor,
    least_area: int,
    weight: Tensor | None = None,
    gated_logits: Tensor | None = None,
    void: Tensor | None = None,
) -> dict[str, Tensor]:
    """Focal and dice loss with every frame a row of its own, and the object score's cross-entropy.

    The published losses take a clip for one row and leave the object score alone, whose head comes trained. Here a
    frame in which the object is small or absent counts as much as any other: where there is nothing to be seen only
    the focal loss speaks, because the dice of an empty mask is all or nothing.

    Args:
        mask_logits: (R, T, H, W).
        score: Object score logits (R, T), or None.
        truth: Masks, bool (R, T, H, W).
        least_area: Pixels from which on an object counts as visible; with fewer, but some, neither dice nor the score
            is taught.
        weight: How much each frame's mask counts, float (R, T); default all alike. The object score does not ask.
        gated_logits: Logits of the masks that the IoU is computed from (R, T, H, W); default ``mask_logits``.
        void: Pixels that do not count, bool (R, T, H, W), default none. Whether an object is visible is told by those
            that do.

    Returns:
        ``focal``, ``dice`` and ``presence`` (zero without score), scalars; without gradient ``ious`` (R, T),
        and ``iou``, their mean where the object is visible.
    """
    rows = exact(mask_logits).flatten(0, 1).flatten(1)  # (R*T, H*W)
    ignored = None if void is None else void.flatten(0, 1).flatten(1)
    truth = truth if void is None else truth & ~void
    target = truth.flatten(0, 1).flatten(1).to(rows.dtype)
    area = truth.flatten(-2).sum(-1).flatten()  # (R*T,)
    seen = visible(truth, least_area).flatten()
    weights = torch.ones_like(rows[:, 0]) if weight is None else weight.flatten().to(rows.dtype)  # (R*T,)
    asked = weights * seen
    losses = {
        "focal": mean_over_processes((focal_of_rows(rows, target, void=ignored) * weights).sum(), weights.sum()),
        # Not of rows[seen]: how many these are a GPU would have to be asked.
        "dice": mean_over_processes((dice_of_rows(rows, target, ignored) * asked).sum(), asked.sum()),
        "presence": rows.new_zeros(()),
    }
    if score is not None:
        taught = seen | (area == 0)
        scores = exact(score).flatten()
        wrong = F.binary_cross_entropy_with_logits(scores, seen.to(scores.dtype), reduction="none")
        losses["presence"] = mean_over_processes((wrong * taught).sum(), taught.sum())
    predicted = (mask_logits if gated_logits is None else gated_logits).detach() > 0
    ious = mask_ious(predicted if void is None else predicted & ~void, truth)
    return losses | {"ious": ious, "iou": (ious.flatten() * seen).sum() / seen.sum().clamp(min=1)}


def mask_ious(predicted: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of masks bool (..., H, W), 1 where both are empty: (...)."""
    union = (predicted | truth).flatten(-2).sum(-1)
    both = (predicted & truth).flatten(-2).sum(-1)
    return torch.where(union == 0, 1.0, both / union.clamp(min=1))
