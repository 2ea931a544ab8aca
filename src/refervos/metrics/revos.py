"""What ReVOS reports beside J and F: robustness R against answering what is not meant.

Yan et al. 2024 (VISA, arXiv 2407.11325), as ``tools/metrics.py`` of VISA computes it. The script works on uint8 and so
counts wrongly where true masks overlap (1 + 1 = 2) or predictions are stored as 255; here masks are bool.
"""

from __future__ import annotations

import numpy as np

from refervos.metrics.region_boundary import Mask


def robustness(truth: Mask, predicted: Mask, foreground: Mask) -> float:
    """R of one frame: 1 - |P outside G| / |FG|, not below 0 (``get_r2vos_robustness``, after Li et al. 2023, R2-VOS).

    Args:
        truth: bool (H, W), G; without a pixel for an expression that means nothing.
        predicted: bool (H, W), P.
        foreground: bool (H, W), FG: the union of all objects that any expression about the video means.

    Returns:
        In [0, 1]; without foreground 1 when nothing is predicted outside the truth, else 0.
    """
    wrong = np.count_nonzero(predicted & ~truth)
    return max(1 - wrong / (np.count_nonzero(foreground) + 1e-6), 0.0)  # the scripts' 1e-6 against division by zero
