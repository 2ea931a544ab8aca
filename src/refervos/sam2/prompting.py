"""Geometric prompts: placing clicks, boxes and masks in the square, and SAM2's predictions from them.

Shapes: n tracks in one batch, P points, C = ``hidden``, g = ``grid`` (S / 16), S = ``image_size``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.errors import PromptError
from refervos.placement import Placement
from refervos.prompts import Prompt
from refervos.sam2.tracker import FrameFeatures, Sam2Tracker, gate

BOX_LABELS = (2, 3)
"""Labels of a box's top-left and bottom-right corner among the points."""

MULTIMASK_POINTS = 1
"""Prompts of at most this many points are ambiguous: SAM2 then takes the best of three masks, as on tracked frames."""

MASK_LOGIT = 10.0
"""Logit of a mask prompt inside the object; outside it is the negative."""


@dataclass(frozen=True)
class GroupPrediction:
    """Prediction of one frame for a group of tracks, before it is stored in memory.

    Attributes:
        mask_logits: (n, 1, 4g, 4g), gated by the object score.
        memory_logits: Mask logits for the memory encoder, (n, 1, S, S).
        pointer: Object pointers (n, C).
        score: Object score logits (n,), or None.
        ungated: (n, 1, 4g, 4g), the mask logits before gating; None for mask prompts, whose score is not predicted
            either.
    """

    mask_logits: Tensor
    memory_logits: Tensor
    pointer: Tensor
    score: Tensor | None
    ungated: Tensor | None = None


def predict_best(
    tracker: Sam2Tracker, conditioned: Tensor, features: FrameFeatures, sparse: Tensor, *, multimask: bool
) -> GroupPrediction:
    """Decode and keep the candidate with the best predicted quality.

    Args:
        tracker: The weights.
        conditioned: Features with memory, or plus the "no memory" embedding (n, C, g, g).
        features: The frame's features (n, ...).
        sparse: Prompt tokens (n, K, C).
        multimask: Choose among the three ambiguity masks instead of using the single one.
    """
    decoded = tracker.decode(conditioned, features, sparse, multimask=multimask)
    best = decoded.ious.argmax(dim=1)  # (n,), 0 where there is one candidate only
    rows = torch.arange(len(best), device=best.device)
    ungated = decoded.mask_logits[rows, best].unsqueeze(1)  # (n, 1, 4g, 4g)
    logits = gate(ungated, decoded.score)
    pointer = tracker.pointer(decoded.tokens[rows, best], decoded.score)
    return GroupPrediction(logits, tracker.upsample(logits), pointer, decoded.score, ungated)


def predict_from_points(
    tracker: Sam2Tracker, features: FrameFeatures, prompts: Sequence[Prompt], placement: Placement
) -> GroupPrediction:
    """Predict masks from clicks and boxes, without memory.

    Args:
        tracker: The weights.
        features: The frame's features (n, ...).
        prompts: n prompts with equally many points each.
        placement: Placement of the frame in the square.
    """
    points, labels = zip(*(place_points(prompt, placement) for prompt in prompts), strict=True)
    weights = tracker.sine_top  # on the weights' device, in the type of positions
    sparse = tracker.embed_points(torch.stack(points).to(weights), torch.stack(labels).to(weights.device))
    multimask = len(labels[0]) <= MULTIMASK_POINTS
    return predict_best(tracker, tracker.without_memory(features.top), features, sparse, multimask=multimask)


def predict_from_masks(
    tracker: Sam2Tracker, features: FrameFeatures, prompts: Sequence[Prompt], placement: Placement
) -> GroupPrediction:
    """Return mask prompts as the prediction; the decoder computes only the object pointers.

    Args:
        tracker: The weights.
        features: The frame's features (n, ...).
        prompts: n prompts with a mask each.
        placement: Placement of the frame in the square.
    """
    masks = torch.stack([place_mask(prompt.mask, placement) for prompt in prompts])  # (n, 1, S, S)
    masks = masks.to(tracker.sine_top)
    logits = masks * (2 * MASK_LOGIT) - MASK_LOGIT
    size = tracker.config.mask_size
    small = F.interpolate(logits, (size, size), mode="bilinear", antialias=True, align_corners=False)
    # The pointer comes from the single-mask token, as in Meta's code, with which the weights were trained
    # (transformers takes the best of the three others), and the "no memory" embedding is not added.
    sparse, dense = tracker.padding_points(len(masks)), tracker.embed_mask(masks)
    decoded = tracker.decode(features.top, features, sparse, dense=dense)
    if decoded.score is None:
        return GroupPrediction(small, logits, tracker.pointer(decoded.tokens[:, 0], None), None)
    # A mask of a few pixels can vanish when resized.
    present = masks.flatten(1).amax(dim=1)  # (n,), 0 or 1
    score = present * (2 * MASK_LOGIT) - MASK_LOGIT
    pointer = tracker.pointer(decoded.tokens[:, 0], torch.minimum(decoded.score, score))
    return GroupPrediction(small, logits, pointer, score)


def predict_from_geometry(
    tracker: Sam2Tracker, features: FrameFeatures, prompts: Sequence[Prompt], placement: Placement
) -> GroupPrediction:
    """Predict masks from clicks, boxes or masks, without memory.

    Args:
        tracker: The weights.
        features: The frame's features (n, ...).
        prompts: n prompts of the same ``geometry_kind``.
        placement: Placement of the frame in the square.
    """
    predict = predict_from_points if prompts[0].mask is None else predict_from_masks
    return predict(tracker, features, prompts, placement)


def geometry_kind(prompt: Prompt) -> str | int:
    """Return a key that is equal for clicks, boxes and masks that can be predicted in one batch."""
    if prompt.mask is not None:
        return "mask"
    return 2 * (prompt.box is not None) + (0 if prompt.points is None else len(prompt.points))


# From the frame into the square.


def check_geometry(prompt: Prompt) -> None:
    """Check a prompt before its frame is known.

    Raises:
        PromptError: When the prompt's mask is empty.
    """
    if prompt.mask is not None and not np.any(prompt.mask):
        raise PromptError("the mask prompt is empty; mark at least one pixel of the object.")


def check_within(prompt: Prompt, frame_size: tuple[int, int]) -> None:
    """Check that a prompt lies within its frame.

    Args:
        prompt: Clicks, a box or a mask.
        frame_size: Height and width in pixels.

    Raises:
        PromptError: When a click or the box lies outside the frame, or the mask has another size.
    """
    height, width = frame_size
    for x, y in () if prompt.points is None else prompt.points:
        if not (0 <= x < width and 0 <= y < height):
            raise PromptError(
                f"the click at x {x:g}, y {y:g} lies outside the frame; "
                f"x must be from 0 to {width - 1} and y from 0 to {height - 1}."
            )
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        if not (x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height):
            raise PromptError(
                f"the box from x {x0:g}, y {y0:g} to x {x1:g}, y {y1:g} reaches outside the frame; "
                f"x must be from 0 to {width} and y from 0 to {height}."
            )
    if prompt.mask is not None and prompt.mask.shape != (height, width):
        rows, columns = prompt.mask.shape
        raise PromptError(
            f"the mask prompt is {columns} x {rows} pixels and the frame {width} x {height}; "
            "give a mask of the frame's size."
        )


def place_points(prompt: Prompt, placement: Placement) -> tuple[Tensor, Tensor]:
    """Convert a prompt to points in pixels of the square, the corners of its box before its clicks.

    Args:
        prompt: Clicks, a box or both.
        placement: Placement of the frame in the square.

    Returns:
        float32 x, y (P, 2) and int64 labels (P,).
    """
    points: list[Sequence[float]] = []
    labels: list[int] = []
    if prompt.box is not None:
        points += [prompt.box[:2], prompt.box[2:]]
        labels += BOX_LABELS
    if prompt.points is not None:
        points += prompt.points
        labels += [1] * len(prompt.points) if prompt.labels is None else prompt.labels
    down, across = (new / old for new, old in zip(placement.resized, placement.frame_size, strict=True))
    placed = torch.tensor([(x * across, y * down) for x, y in points], dtype=torch.float32)
    return placed, torch.tensor(labels, dtype=torch.int64)


def place_mask(mask: Any, placement: Placement) -> Tensor:
    """Resize and pad a mask prompt to the square.

    Args:
        mask: bool (H, W), at the frame's size.
        placement: Placement of the frame in the square.

    Returns:
        float32 (1, S, S), zeros and ones.
    """
    placed = torch.from_numpy(np.array(mask, dtype=bool)).float()[None, None]  # (1, 1, H, W)
    if placement.resized != placement.frame_size:
        placed = F.interpolate(placed, placement.resized, mode="bilinear", antialias=True, align_corners=False)
        placed = (placed >= 0.5).float()
    height, width = placement.resized
    return F.pad(placed, (0, placement.image_size - width, 0, placement.image_size - height))[0]  # (1, S, S)
