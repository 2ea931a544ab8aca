"""Robustness R of ReVOS: a penalty for segmenting objects that the expression does not refer to.

Yan et al. 2024 (VISA, arXiv 2407.11325), as ``tools/metrics.py`` of VISA computes it. The script works on uint8 and so
counts wrongly where ground-truth masks overlap (1 + 1 = 2) or predictions are stored as 255; here masks are bool.
"""

from __future__ import annotations

import numpy as np

from refervos.metrics.region_boundary import Mask


def robustness(ground_truth: Mask, predicted: Mask, foreground: Mask) -> float:
    """Return R of a frame: 1 - |P outside G| / |FG|, at least 0 (``get_r2vos_robustness``, after Li et al. 2023).

    Args:
        ground_truth: bool (H, W), G; empty for an expression without target.
        predicted: bool (H, W), P.
        foreground: bool (H, W), FG: the union of all objects that any expression about the video refers to.

    Returns:
        In [0, 1]; with an empty foreground, 1 when nothing is predicted outside the ground truth, else 0.
    """
    wrong = np.count_nonzero(predicted & ~ground_truth)
    return max(1 - wrong / (np.count_nonzero(foreground) + 1e-6), 0.0)  # 1e-6 is that of the scripts
