"""J and F the straightforward way: frame by frame over whole images, with OpenCV and scikit-image.

It takes the steps of davis2017-evaluation (``db_eval_iou``, ``db_eval_boundary``, ``_seg2bmap``) one by one, and is
what the metrics are tested against and timed against.
"""

from __future__ import annotations

import cv2
import numpy as np
from skimage.morphology import disk


def region(truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None = None) -> float:
    """J of one frame."""
    counts = np.logical_not(np.zeros_like(truth) if void is None else void.astype(bool))
    truth, predicted = truth.astype(bool), predicted.astype(bool)
    intersection = np.sum((predicted & truth) & counts, axis=(-2, -1))
    union = np.sum((predicted | truth) & counts, axis=(-2, -1))
    return 1.0 if np.isclose(union, 0) else float(intersection / union)


def outline(mask: np.ndarray) -> np.ndarray:
    """Boundary pixels, with the last row, column and corner as special cases."""
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
    truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None = None, tolerance: float = 0.008
) -> float:
    """F of one frame."""
    counts = np.logical_not(np.zeros_like(truth) if void is None else void.astype(bool))
    radius = tolerance if tolerance >= 1 else np.ceil(tolerance * np.linalg.norm(truth.shape))
    truth_edge, predicted_edge = outline(truth * counts), outline(predicted * counts)
    truth_near = cv2.dilate(truth_edge.astype(np.uint8), disk(radius).astype(np.uint8))
    predicted_near = cv2.dilate(predicted_edge.astype(np.uint8), disk(radius).astype(np.uint8))
    truth_pixels, predicted_pixels = np.sum(truth_edge), np.sum(predicted_edge)
    if truth_pixels == 0 or predicted_pixels == 0:
        return float(truth_pixels == predicted_pixels)
    precision = np.sum(predicted_edge * truth_near) / float(predicted_pixels)
    recall = np.sum(truth_edge * predicted_near) / float(truth_pixels)
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def scores(truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None = None, tolerance: float = 0.008) -> tuple:
    """J and F of each frame of (T, H, W), as two arrays."""
    voids = [None] * len(truth) if void is None else void
    frames = list(zip(truth, predicted, voids, strict=True))
    return (
        np.array([region(*frame) for frame in frames]),
        np.array([contour(*frame, tolerance) for frame in frames]),
    )
