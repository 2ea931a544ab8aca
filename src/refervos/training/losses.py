"""Mask losses: focal and dice as published (SAMWISE paper, section 4.1), and their per-frame variants.

All are computed in at least float32, even if autocast gives logits in half precision: they sum over many pixels. The
loss of the conditional memory encoder is defined beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.training.step_means import Mean, mean_of_batch, ratio


def at_least_float32(values: Tensor) -> Tensor:
    """Convert values to float32 unless their type is more precise."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def dice_loss(logits: Tensor, targets: Tensor, count: float, void: Tensor | None = None) -> Tensor:
    """Compute the dice loss, summed over rows and divided by ``count``.

    Args:
        logits: (R, P) mask logits, one row for each mask (or clip of masks).
        targets: (R, P) in {0, 1}.
        count: Divisor of the sum, the number of clips.
        void: Pixels to ignore, bool (R, P), default none.

    Returns:
        A scalar.
    """
    return dice_of_rows(logits, targets, void).sum() / count


def dice_of_rows(logits: Tensor, targets: Tensor, void: Tensor | None = None) -> Tensor:
    """Compute the dice loss of each row.

    Args:
        logits: (R, P) mask logits.
        targets: (R, P) in {0, 1}.
        void: Pixels to ignore, bool (R, P), default none.

    Returns:
        (R,).
    """
    logits, targets = at_least_float32(logits), at_least_float32(targets)
    probability = logits.sigmoid()
    if void is not None:
        probability, targets = probability.masked_fill(void, 0), targets.masked_fill(void, 0)
    overlap = 2 * (probability * targets).sum(1)
    return 1 - (overlap + 1) / (probability.sum(1) + targets.sum(1) + 1)


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    count: float,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    void: Tensor | None = None,
) -> Tensor:
    """Compute the focal loss (Lin et al. 2017, equation 5): mean over a row's pixels, sum over rows over ``count``.

    Args:
        logits: (R, P) mask logits.
        targets: (R, P) in {0, 1}.
        count: Divisor of the sum, the number of clips.
        alpha: Weight of positive pixels, None for no weighting.
        gamma: Exponent that down-weights easy pixels.
        void: Pixels to ignore, bool (R, P), default none.

    Returns:
        A scalar.
    """
    return focal_of_rows(logits, targets, alpha, gamma, void).sum() / count


def focal_of_rows(
    logits: Tensor, targets: Tensor, alpha: float | None = 0.25, gamma: float = 2.0, void: Tensor | None = None
) -> Tensor:
    """Compute the focal loss of each row, mean over its pixels outside ``void``; see ``sigmoid_focal_loss``.

    Returns:
        (R,).
    """
    logits, targets = at_least_float32(logits), at_least_float32(targets)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    error = probability * (1 - targets) + (1 - probability) * targets
    loss = entropy * error**gamma
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
    """Compute the focal and dice loss of a batch of clips, on logits resized to the targets' size.

    Args:
        mask_logits: (N, T, h, w), or N of (T, h, w), over the same field of view as the targets.
        targets: Masks of each clip (T, H, W) in {0, 1}; sizes may differ between clips.
        voids: Pixels of each clip to ignore, bool (T, H, W); default none. Not with ``published``: the released code
            has none.
        published: Reproduce the released code, which pads the targets to a common size and to multiples of 32 but
            stretches the predictions over the padding; equal where nothing is padded.

    Returns:
        The focal and the dice loss, each the mean over clips, where all frames of a clip form one row.
    """
    count = len(targets)
    if published:
        height = max(-(-target.shape[1] // 32) * 32 for target in targets)
        width = max(-(-target.shape[2] // 32) * 32 for target in targets)
        targets = [F.pad(t, (0, width - t.shape[2], 0, height - t.shape[1])) for t in targets]
    focal = dice = at_least_float32(mask_logits[0].new_zeros(()))
    for number, (logits, target) in enumerate(zip(map(at_least_float32, mask_logits), targets, strict=True)):
        if logits.shape[-2:] != target.shape[-2:]:
            logits = F.interpolate(logits[None], size=target.shape[-2:], mode="bilinear", align_corners=False)[0]
        logits, target = logits.reshape(1, -1), target.to(logits.dtype).reshape(1, -1)  # (1, T*H*W)
        void = None if voids is None else voids[number].reshape(1, -1)
        focal = focal + sigmoid_focal_loss(logits, target, count, void=void)
        dice = dice + dice_loss(logits, target, count, void)
    return focal, dice


def visible(masks: Tensor, least_area: int) -> Tensor:
    """Mark the frames in which an object has at least ``least_area`` pixels: bool (..., H, W) -> bool (...)."""
    return masks.flatten(-2).sum(-1) >= least_area


def around_occlusions(masks: Tensor, least_area: int, after: int = 4) -> Tensor:
    """Mark the frames in which an object is hidden after it was seen, and the first frames after it reappears.

    Args:
        masks: Ground truth, bool (R, T, H, W).
        least_area: Least number of pixels of a visible object.
        after: Number of frames to mark after it reappears.

    Returns:
        bool (R, T).
    """
    seen = visible(masks, least_area)
    hidden = ~seen & (seen.cumsum(1) > 0)
    return F.pad(hidden, (after, 0)).unfold(1, after + 1, 1).any(-1)  # (R, T)


def frame_losses(
    mask_logits: Tensor,
    score: Tensor | None,
    ground_truth: Tensor,
    least_area: int,
    weight: Tensor | None = None,
    gated_logits: Tensor | None = None,
    void: Tensor | None = None,
    mean: Mean = mean_of_batch,
) -> dict[str, Tensor]:
    """Compute focal and dice loss with every frame a row of its own, and the object score's cross-entropy.

    The published losses treat a clip as one row and do not train the object score, whose head is pretrained. Here a
    frame in which the object is small or absent counts as much as any other; without a visible object only the focal
    loss applies, because the dice of an empty mask is all or nothing.

    Args:
        mask_logits: (R, T, H, W).
        score: Object score logits (R, T), or None.
        ground_truth: Masks, bool (R, T, H, W).
        least_area: Least number of pixels of a visible object; with fewer, but some, neither dice nor the score is
            trained.
        weight: Weight of each frame's mask, float (R, T), default 1; it does not apply to the object score.
        gated_logits: Logits of the masks that the IoU is computed from (R, T, H, W); default ``mask_logits``.
        void: Pixels to ignore, bool (R, T, H, W), default none; also ignored in deciding whether an object is visible.
        mean: Averages over frames; called with ``focal``, ``dice`` and, with a score, ``presence``.

    Returns:
        ``focal``, ``dice`` and ``presence`` (zero without score), scalars; without gradient ``ious`` (R, T),
        and ``iou``, the ``ratio`` of their mean where the object is visible.
    """
    rows = at_least_float32(mask_logits).flatten(0, 1).flatten(1)  # (R*T, H*W)
    ignored = None if void is None else void.flatten(0, 1).flatten(1)
    masks = ground_truth if void is None else ground_truth & ~void
    target = masks.flatten(0, 1).flatten(1).to(rows.dtype)
    area = masks.flatten(-2).sum(-1).flatten()  # (R*T,)
    seen = visible(masks, least_area).flatten()
    weights = torch.ones_like(rows[:, 0]) if weight is None else weight.flatten().to(rows.dtype)  # (R*T,)
    dice_weights = weights * seen
    losses = {
        "focal": mean("focal", (focal_of_rows(rows, target, void=ignored) * weights).sum(), weights.sum()),
        # Weighted instead of rows[seen], whose size would have to be read back from a GPU.
        "dice": mean("dice", (dice_of_rows(rows, target, ignored) * dice_weights).sum(), dice_weights.sum()),
        "presence": rows.new_zeros(()),
    }
    if score is not None:
        labelled = seen | (area == 0)
        scores = at_least_float32(score).flatten()
        entropy = F.binary_cross_entropy_with_logits(scores, seen.to(scores.dtype), reduction="none")
        losses["presence"] = mean("presence", (entropy * labelled).sum(), labelled.sum())
    predicted = (mask_logits if gated_logits is None else gated_logits).detach() > 0
    ious = mask_ious(predicted if void is None else predicted & ~void, masks)
    return losses | {"ious": ious, "iou": ratio((ious.flatten() * seen).sum(), seen.sum())}


def mask_ious(predicted: Tensor, ground_truth: Tensor) -> Tensor:
    """Compute the intersection over union of masks, bool (..., H, W) -> (...); 1 where both are empty."""
    union = (predicted | ground_truth).flatten(-2).sum(-1)
    intersection = (predicted & ground_truth).flatten(-2).sum(-1)
    return torch.where(union == 0, 1.0, intersection / union.clamp(min=1))
