"""J and F computed in the straightforward way: frame by frame over whole images, with OpenCV and scikit-image.

The steps are those of davis2017-evaluation (``db_eval_iou``, ``db_eval_boundary``, ``_seg2bmap``); the metrics are
tested and timed against them.
"""

from __future__ import annotations

import cv2
import numpy as np
from skimage.morphology import disk


def region(ground_truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None = None) -> float:
    """Return J of one frame."""
    counts = np.logical_not(np.zeros_like(ground_truth) if void is None else void.astype(bool))
    ground_truth, predicted = ground_truth.astype(bool), predicted.astype(bool)
    intersection = np.sum((predicted & ground_truth) & counts, axis=(-2, -1))
    union = np.sum((predicted | ground_truth) & counts, axis=(-2, -1))
    return 1.0 if np.isclose(union, 0) else float(intersection / union)


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the boundary pixels, with the last row, column and corner as special cases."""
    mask = mask.astype(bool)
    right, below, diagonal = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
    right[:, :-1] = mask[:, 1:]
    below[:-1, :] = mask[1:, :]
    diagonal[:-1, :-1] = mask[1:, 1:]
    edge = (mask ^ right) | (mask ^ below) | (mask ^ diagonal)
    edge[-1, :] = mask[-1, :] ^ right[-1, :]
    edge[:, -1] = mask[:, -1] ^ below[:, -1]
    edge[-1, -1] = False
    return edge


def contour(
    ground_truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None = None, tolerance: float = 0.008
) -> float:
    """Return F of one frame."""
    counts = np.logical_not(np.zeros_like(ground_truth) if void is None else void.astype(bool))
    radius = tolerance if tolerance >= 1 else np.ceil(tolerance * np.linalg.norm(ground_truth.shape))
    truth_edge, predicted_edge = outline(ground_truth * counts), outline(predicted * counts)
    truth_near = cv2.dilate(truth_edge.astype(np.uint8), disk(radius).astype(np.uint8))
    predicted_near = cv2.dilate(predicted_edge.astype(np.uint8), disk(radius).astype(np.uint8))
    truth_pixels, predicted_pixels = np.sum(truth_edge), np.sum(predicted_edge)
    if truth_pixels == 0 or predicted_pixels == 0:
        return float(truth_pixels == predicted_pixels)
    precision = np.sum(predicted_edge * truth_near) / float(predicted_pixels)
    recall = np.sum(truth_edge * predicted_near) / float(truth_pixels)
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def scores(
    ground_truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None = None, tolerance: float = 0.008
) -> tuple:
    """Return J and F of each frame of (T, H, W), as two arrays."""
    voids = [None] * len(ground_truth) if void is None else void
    frames = list(zip(ground_truth, predicted, voids, strict=True))
    return (
        np.array([region(*frame) for frame in frames]),
        np.array([contour(*frame, tolerance) for frame in frames]),
    )
