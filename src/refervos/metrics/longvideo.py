"""Temporal metrics of Long-RVOS: whether the target was found when it shows, and only then.

Liang et al. 2025 (arXiv 2505.12702), as their ``eval_long_rvos`` scripts compute them: one number for each expression,
then the mean over all expressions (``overall``) or those of one type (static, dynamic, hybrid).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refervos.metrics.region_boundary import Scores

Shown = npt.NDArray[np.bool_]


def temporal_iou(shown: Shown, answered: Shown) -> float:
    """Temporal IoU (tIoU): frames where both truth and prediction have a pixel, over frames where either has.

    Args:
        shown: bool (T,), frames whose true mask is not empty (``truth.any(axis=(1, 2))``).
        answered: bool (T,), frames whose predicted mask is not empty.

    Returns:
        In [0, 1]; 1 when the target never shows and nothing is ever predicted.
    """
    return video_iou(np.ones(len(shown)), shown, answered)


def video_iou(j: Scores, shown: Shown, answered: Shown) -> float:
    """Spatio-temporal IoU (vIoU): J summed over the frames where both have a pixel, over frames where either has.

    Args:
        j: float (T,), J of every frame.
        shown: bool (T,), frames whose true mask is not empty.
        answered: bool (T,), frames whose predicted mask is not empty.

    Returns:
        In [0, 1], at most tIoU; 1 when the target never shows and nothing is ever predicted.
    """
    either = np.count_nonzero(shown | answered)
    return float(j[shown & answered].sum() / either) if either else 1.0
