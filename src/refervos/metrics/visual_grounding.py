"""Visual grounding: boxes around masks against ground-truth boxes, frame by frame.

VidSTG (Zhang et al. 2020) and HC-STVG (Tang et al. 2021) annotate the box of one object in each frame of a moment. The
score of a video is the mean IoU of boxes over its annotated frames; that of a benchmark is the mean over videos (mIoU,
``gt_vIoU`` in TubeDETR's and VideoGLaMM's scripts), and the fraction of videos whose score is greater than 0.3 and 0.5.
Boxes are ``(left, top, right, bottom)`` in pixels, where pixel (x, y) covers x to x + 1 and y to y + 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from refervos.errors import EvaluationError, MissingDependencyError

Boxes = npt.NDArray[np.float64]
"""float64 (..., 4): left, top, right, bottom; NaN for a missing box."""

Choice = Literal["first", "last", "union"]
"""Box of a prediction with several objects: that of the first or last one, or that around all."""

THRESHOLDS = (0.3, 0.5)
"""Thresholds R of @R."""

SMALLEST_BLOB = 20
"""Minimum number of connected pixels that the released scripts keep in a prediction."""


def boxes_around(masks: npt.NDArray[np.bool_], *, published: bool = False) -> Boxes:
    """Return the tight box around each mask.

    Args:
        masks: bool (..., H, W).
        published: Reproduce the released scripts, whose boxes end at the index of the last row and column, one pixel
            short of the mask's edge.

    Returns:
        float64 (..., 4), NaN for masks without a pixel.
    """
    edge = 0 if published else 1
    boxes = np.full((*masks.shape[:-2], 4), np.nan)
    for index in np.ndindex(masks.shape[:-2]):
        rows, columns = np.flatnonzero(masks[index].any(axis=1)), np.flatnonzero(masks[index].any(axis=0))
        if rows.size:
            boxes[index] = columns[0], rows[0], columns[-1] + edge, rows[-1] + edge
    return boxes


def box_iou(one: Boxes, other: Boxes) -> npt.NDArray[np.float64]:
    """Return the IoU of boxes, pair by pair.

    Args:
        one: float64 (..., 4).
        other: float64 (..., 4).

    Returns:
        float64 (...) in [0, 1]; 0 where either is missing (NaN) or neither has an area.
    """
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = sum(np.prod(np.clip(boxes[..., 2:] - boxes[..., :2], 0, None), axis=-1) for boxes in (one, other))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(shared / (areas - shared), nan=0.0)


def chosen_boxes(masks: npt.NDArray[np.bool_], choice: Choice = "first", *, published: bool = False) -> Boxes:
    """Return one box per frame for a prediction with several objects.

    Args:
        masks: bool (N, T, H, W), objects in the order in which they were predicted.
        choice: ``last`` reproduces the released script of VideoGLaMM, where each object's box overwrites the previous
            one in every frame, even if the last object is not visible.
        published: See ``boxes_around``.

    Returns:
        float64 (T, 4), NaN in frames without a box.

    Raises:
        EvaluationError: When the masks do not have four dimensions.
    """
    if masks.ndim != 4:
        raise EvaluationError(f"the masks have shape {masks.shape}; give (objects, frames, height, width).")
    if not len(masks):
        return np.full((masks.shape[1], 4), np.nan)
    chosen = np.any(masks, axis=0) if choice == "union" else masks[0 if choice == "first" else -1]  # (T, H, W)
    return boxes_around(chosen, published=published)


def grounding_iou(ground_truth: Boxes, predicted: Boxes) -> float:
    """Return the score of a video: the mean IoU of boxes over its annotated frames.

    Args:
        ground_truth: float64 (T, 4), a box in each annotated frame.
        predicted: float64 (T, 4), NaN for a missing box, which counts 0.

    Returns:
        In [0, 1].

    Raises:
        EvaluationError: When the shapes differ or there are no frames.
    """
    if ground_truth.shape != predicted.shape or ground_truth.ndim != 2 or not len(ground_truth):
        raise EvaluationError(
            f"the ground-truth boxes have shape {ground_truth.shape} and the predicted ones {predicted.shape}; give "
            "one of each for every annotated frame, and at least one."
        )
    return float(box_iou(ground_truth, predicted).mean())


def share_above(scores: Sequence[float], threshold: float) -> float:
    """Return the fraction of videos whose score is greater than a threshold, as in @0.3 and @0.5.

    Args:
        scores: ``grounding_iou`` of each video, at least one.
        threshold: A score equal to it does not count.

    Raises:
        EvaluationError: When there are no scores.
    """
    if not scores:
        raise EvaluationError("there are no scores; at least one is needed.")
    return sum(score > threshold for score in scores) / len(scores)


def without_small_blobs(mask: npt.NDArray[np.bool_], smallest: int = SMALLEST_BLOB) -> npt.NDArray[np.bool_]:
    """Remove small connected areas from a predicted mask, as the released scripts do before scoring.

    Args:
        mask: bool (H, W).
        smallest: Minimum number of pixels of an area, connected by edges and not by corners.

    Returns:
        bool (H, W).

    Raises:
        MissingDependencyError: When SciPy is not installed.
    """
    try:
        from scipy import ndimage
    except ImportError as error:
        raise MissingDependencyError("removing small blobs needs SciPy: pip install 'refervos[eval]'.") from error
    areas, _ = ndimage.label(mask)
    sizes = np.bincount(areas.ravel())
    kept = sizes >= smallest
    kept[0] = False  # the background
    return kept[areas]
