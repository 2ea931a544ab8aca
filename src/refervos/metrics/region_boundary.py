"""Region similarity J and boundary accuracy F, as the DAVIS 2017 toolkit defines them.

F counts the boundary pixels of each mask that lie within the other's boundary dilated by a disk. Two things make that
fast without changing a digit: only the bounding box of both masks is processed, and eight frames are packed into one
uint8 image, one bit each, so that every shift, XOR and OR handles eight frames at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refervos.errors import EvaluationError
from refervos.metrics.streams import batches, zip_streams

Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]
Packed = npt.NDArray[np.uint8]

BOUNDARY_TOLERANCE = 0.008
"""Distance at which boundary pixels still match, as a fraction of the image diagonal."""

FRAMES_AT_ONCE = 8
"""Frames in a packed image, one for each bit."""


class Overlap(NamedTuple):
    """Intersection and union of two masks, in pixels."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union in [0, 1]; 1 when both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


def overlap(ground_truth: Mask, predicted: Mask, void: Mask | None = None) -> Overlap:
    """Count the pixels in both masks and those in either.

    Args:
        ground_truth: bool (H, W).
        predicted: bool (H, W).
        void: bool (H, W), pixels that do not count; default none.

    Raises:
        EvaluationError: When the masks are not bool or differ in size.
    """
    return _overlap(*_counted(ground_truth, predicted, void))


def region_similarity(ground_truth: Mask, predicted: Mask, void: Mask | None = None) -> float:
    """Return J, intersection over union (Perazzi et al. 2016, section 4.1; ``db_eval_iou`` of davis2017-evaluation).

    Args:
        ground_truth: bool (H, W).
        predicted: bool (H, W).
        void: bool (H, W), pixels that do not count; default none.

    Returns:
        J in [0, 1]; 1 when both masks are empty.

    Raises:
        EvaluationError: When the masks are not bool or differ in size.
    """
    return overlap(ground_truth, predicted, void).iou


def boundary_accuracy(
    ground_truth: Mask, predicted: Mask, void: Mask | None = None, tolerance: float = BOUNDARY_TOLERANCE
) -> float:
    """Return F, the boundary F-measure (Perazzi et al. 2016, section 4.1; ``f_measure`` of davis2017-evaluation).

    Args:
        ground_truth: bool (H, W).
        predicted: bool (H, W).
        void: bool (H, W), pixels that do not count; default none.
        tolerance: Distance at which boundary pixels match, in pixels when at least 1, else as a fraction of the
            diagonal (rounded up).

    Returns:
        F in [0, 1]; 1 when neither mask has a boundary, 0 when only one has.

    Raises:
        EvaluationError: When the masks are not bool or differ in size.
    """
    return _scores([_counted(ground_truth, predicted, void)], tolerance)[0][1]


def video_scores(
    ground_truth: Iterable[Mask],
    predicted: Iterable[Mask],
    void: Iterable[Mask | None] | None = None,
    *,
    tolerance: float = BOUNDARY_TOLERANCE,
) -> tuple[Scores, Scores]:
    """Return J and F of every frame of a video: the same numbers as frame by frame, but faster.

    Args:
        ground_truth: bool (T, H, W), or an iterable of frames (H, W), of which at most eight are held at once.
        predicted: Likewise.
        void: Likewise, pixels that do not count; None, also for single frames, if all count.
        tolerance: As in ``boundary_accuracy``.

    Returns:
        J and F, float64 (T,) in [0, 1] each. Benchmarks average them over all frames.

    Raises:
        EvaluationError: When there is no frame, or the masks are not bool or differ in size or number.
    """
    scores: list[tuple[float, float]] = []
    for pairs in batches(_pairs(ground_truth, predicted, void), FRAMES_AT_ONCE):
        scores += _scores(pairs, tolerance)
    if not scores:
        raise EvaluationError("ground truth and prediction have no frames; at least one is needed to score a video.")
    regions, boundaries = np.array(scores).T
    return regions, boundaries


def boundary(mask: npt.NDArray) -> npt.NDArray:
    """Return the boundary of a mask: pixels that differ from the one to the right, below or diagonal (``_seg2bmap``).

    Args:
        mask: (H, W) of bool, or of uint8 with eight masks as bits.

    Returns:
        The boundary, one pixel wide, in the same form. The mask is padded by its edge values, so the image border is
        no boundary.
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])


def _pairs(
    ground_truth: Iterable[Mask], predicted: Iterable[Mask], void: Iterable[Mask | None] | None
) -> Iterator[tuple[Mask, Mask]]:
    """Yield the two masks of each frame, without their void pixels."""
    size = None
    streams = {"ground truth": ground_truth, "prediction": predicted, "void": void}
    for number, (mask, prediction, hole) in enumerate(zip_streams(streams)):
        size = size or mask.shape
        yield _counted(mask, prediction, hole, size=size, where=f" of frame {number}")


def _counted(
    ground_truth: Mask,
    predicted: Mask,
    void: Mask | None = None,
    *,
    size: tuple[int, ...] | None = None,
    where: str = "",
) -> tuple[Mask, Mask]:
    """Check that both are masks of one size and return them without the void pixels."""
    size = size or ground_truth.shape
    for name, mask in (("ground truth", ground_truth), ("prediction", predicted), ("void", void)):
        if mask is None:
            continue
        if mask.dtype != np.bool_:
            raise EvaluationError(f"the {name}{where} is {mask.dtype}; masks must be bool (apply a threshold).")
        if mask.ndim != 2:
            raise EvaluationError(f"the {name}{where} has shape {mask.shape}; a mask must be (height, width).")
        if mask.shape != size:
            raise EvaluationError(
                f"the {name}{where} has shape {mask.shape}, not {size}; all masks must have one size."
            )
    return (ground_truth, predicted) if void is None else (ground_truth & ~void, predicted & ~void)


def _overlap(ground_truth: Mask, predicted: Mask) -> Overlap:
    return Overlap(int(np.count_nonzero(ground_truth & predicted)), int(np.count_nonzero(ground_truth | predicted)))


def _scores(pairs: Sequence[tuple[Mask, Mask]], tolerance: float) -> list[tuple[float, float]]:
    """Return J and F of up to eight frames of one size."""
    radius = _radius(pairs[0][0].shape, tolerance)
    ground_truth, predicted = (_packed(masks) for masks in zip(*pairs, strict=True))
    box = _box(ground_truth | predicted)
    if box is None:
        return [(1.0, 1.0)] * len(pairs)
    regions = [_overlap(one[box], other[box]).iou for one, other in pairs]
    truth_edge, predicted_edge = boundary(ground_truth[box]), boundary(predicted[box])
    recalls = _matched(truth_edge, _near(predicted_edge, radius), len(pairs))
    precisions = _matched(predicted_edge, _near(truth_edge, radius), len(pairs))
    return list(zip(regions, map(_f_measure, precisions, recalls), strict=True))


def _radius(size: tuple[int, ...], tolerance: float) -> float:
    """Return the tolerance in pixels."""
    if not 0 <= tolerance < math.inf:
        raise EvaluationError(
            f"the boundary tolerance is {tolerance}; it must be a number of pixels or a fraction of the diagonal."
        )
    return tolerance if tolerance >= 1 else float(np.ceil(tolerance * np.linalg.norm(size)))


def _packed(masks: Sequence[Mask]) -> Packed:
    """Pack up to eight masks into one image, the first in the lowest bit."""
    packed = np.zeros_like(masks[0], dtype=np.uint8)
    for mask in reversed(masks):
        packed += packed
        packed |= mask.view(np.uint8)
    return packed


def _box(union: Packed) -> tuple[slice, slice] | None:
    """Return the bounding box of all masks with a margin of one pixel, beyond which there is no boundary, or None."""
    rows = np.flatnonzero(union.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(union.any(axis=0))
    return slice(max(0, rows[0] - 1), rows[-1] + 2), slice(max(0, columns[0] - 1), columns[-1] + 2)


def _near(edge: Packed, radius: float) -> Packed:
    """Dilate edges by a disk of this radius.

    The disk is a stack of rows, longer towards its centre. The edges are therefore dilated to rows of growing length,
    and each result is added at the offsets of the disk's rows of that length. Zeros before, between and after the
    image's rows absorb whatever is shifted beyond them.
    """
    height, width = edge.shape
    reach = min(int(radius), height + width)  # no two pixels are further apart
    stride = width + reach
    widened = np.zeros(reach + height * stride, np.uint8)
    widened[reach:].reshape(height, stride)[:, :width] = edge
    near = np.zeros_like(widened)
    length = 0
    for row in range(min(reach, height - 1), -1, -1):
        half_width = min(math.isqrt(math.floor(radius**2 - row**2)), reach)
        while length < half_width:
            step = min(half_width - length, 2 * length + 1)  # a longer one would leave gaps
            widened = _or_shifted(widened.copy(), widened, step)
            length += step
        _or_shifted(near, widened, row * stride)
    return near[reach:].reshape(height, stride)[:, :width]


def _or_shifted(target: Packed, source: Packed, offset: int) -> Packed:
    """OR ``source``, shifted by ``offset`` in both directions, into ``target`` (both flat)."""
    kept = len(source) - offset
    target[offset:] |= source[:kept]
    target[:kept] |= source[offset:]
    return target


def _matched(edge: Packed, near: Packed, count: int) -> list[tuple[int, int]]:
    """Count each frame's edge pixels, and those of them near the other edge."""
    at = np.flatnonzero(edge != 0)
    edges = edge.ravel()[at]
    matches = edges & near.ravel()[at]
    bits = [1 << frame for frame in range(count)]
    return [(int(np.count_nonzero(edges & bit)), int(np.count_nonzero(matches & bit))) for bit in bits]


def _f_measure(predicted: tuple[int, int], ground_truth: tuple[int, int]) -> float:
    """Return F from each mask's number of edge pixels and how many of them match."""
    if not predicted[0] or not ground_truth[0]:
        return float(predicted[0] == ground_truth[0])
    precision, recall = predicted[1] / predicted[0], ground_truth[1] / ground_truth[0]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
