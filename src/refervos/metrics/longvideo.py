"""Temporal metrics of Long-RVOS: is the target predicted in the frames that show it, and only in those?

Liang et al. 2025 (arXiv 2505.12702), as their ``eval_long_rvos`` scripts compute them: one number for each expression,
then the mean over all expressions (``overall``) or those of one type (static, dynamic, hybrid).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refervos.metrics.region_boundary import Scores

FrameFlags = npt.NDArray[np.bool_]


def temporal_iou(visible: FrameFlags, predicted: FrameFlags) -> float:
    """Return the temporal IoU (tIoU): frames where both masks are non-empty, over frames where either is.

    Args:
        visible: bool (T,), frames with a non-empty ground-truth mask (``masks.any(axis=(1, 2))``).
        predicted: bool (T,), frames with a non-empty predicted mask.

    Returns:
        In [0, 1]; 1 when both are empty in every frame.
    """
    return video_iou(np.ones(len(visible)), visible, predicted)


def video_iou(j: Scores, visible: FrameFlags, predicted: FrameFlags) -> float:
    """Return the spatio-temporal IoU (vIoU): J summed over frames with both masks, over frames with either.

    Args:
        j: float (T,), J of every frame.
        visible: bool (T,), frames with a non-empty ground-truth mask.
        predicted: bool (T,), frames with a non-empty predicted mask.

    Returns:
        In [0, 1], at most tIoU; 1 when both are empty in every frame.
    """
    either = np.count_nonzero(visible | predicted)
    return float(j[visible & predicted].sum() / either) if either else 1.0
