"""Region similarity J and boundary accuracy F, as the DAVIS 2017 toolkit defines them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refervos.errors import MissingDependencyError

Mask = npt.NDArray[np.bool_]

BOUNDARY_TOLERANCE = 0.008
"""How far two boundaries may lie apart to match, as a share of the image diagonal."""


def region_similarity(truth: Mask, predicted: Mask, void: Mask | None = None) -> float:
    """J: intersection over union (Perazzi et al. 2016, section 4.1).

    Args:
        truth: bool (H, W).
        predicted: bool (H, W).
        void: bool (H, W), pixels that do not count, default none.

    Returns:
        J in [0, 1]; 1 when both masks are empty.
    """
    if void is not None:
        truth, predicted = truth & ~void, predicted & ~void
    union = np.count_nonzero(truth | predicted)
    return np.count_nonzero(truth & predicted) / union if union else 1.0


def boundary_accuracy(
    truth: Mask, predicted: Mask, void: Mask | None = None, tolerance: float = BOUNDARY_TOLERANCE
) -> float:
    """F: F-measure of the mask boundaries (Perazzi et al. 2016, section 4.1).

    Args:
        truth: bool (H, W).
        predicted: bool (H, W).
        void: bool (H, W), pixels that do not count, default none.
        tolerance: Distance at which boundaries match, in pixels when at least 1, else as a share of the diagonal
            (rounded up).

    Returns:
        F in [0, 1]; 1 when both masks are without boundary.

    Raises:
        MissingDependencyError: When SciPy is not installed.
    """
    if void is not None:
        truth, predicted = truth & ~void, predicted & ~void
    radius = tolerance if tolerance >= 1 else np.ceil(tolerance * np.linalg.norm(truth.shape))
    truth_edge, predicted_edge = boundary(truth), boundary(predicted)
    truth_count, predicted_count = np.count_nonzero(truth_edge), np.count_nonzero(predicted_edge)
    if not truth_count or not predicted_count:
        return float(truth_count == predicted_count)
    precision = np.count_nonzero(predicted_edge & _near(truth_edge, radius)) / predicted_count
    recall = np.count_nonzero(truth_edge & _near(predicted_edge, radius)) / truth_count
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Mask) -> Mask:
    """One-pixel boundary of a mask: where it differs from the pixel to the right, below, or both.

    Args:
        mask: bool (H, W).

    Returns:
        bool (H, W); the last row and column look along themselves only, the last corner is never boundary.
    """
    edge = np.zeros_like(mask)
    core, right, below = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1]
    edge[:-1, :-1] = (core ^ right) | (core ^ below) | (core ^ mask[1:, 1:])
    edge[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edge


def _near(edge: Mask, radius: float) -> Mask:
    """Pixels at most ``radius`` from an edge pixel: dilation by a disk, through the exact distance transform."""
    try:
        from scipy.ndimage import distance_transform_edt
    except ImportError as error:
        raise MissingDependencyError("boundary accuracy needs SciPy: pip install 'refervos[eval]'.") from error
    return distance_transform_edt(~edge) <= radius
