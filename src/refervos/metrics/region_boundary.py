"""Region similarity J and boundary accuracy F, as the DAVIS 2017 toolkit defines them.

F asks for each boundary pixel of one mask whether the other has one near, that is, within its boundary dilated by a
disk. Two things make that fast, and neither changes a digit: only the box around the masks is looked at, and eight
frames are packed into one uint8 image, a bit each, so that every shift, XOR and OR does eight frames at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refervos.errors import EvaluationError
from refervos.metrics.streams import batches, in_step

Mask = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.float64]
Packed = npt.NDArray[np.uint8]

BOUNDARY_TOLERANCE = 0.008
"""How far two boundaries may lie apart to match, as a share of the image diagonal."""

FRAMES_AT_ONCE = 8
"""One for each bit of a packed image."""


class Overlap(NamedTuple):
    """What two masks have in common, in pixels."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union in [0, 1]; 1 when both masks are empty."""
        return self.intersection / self.union if self.union else 1.0


def overlap(truth: Mask, predicted: Mask, void: Mask | None = None) -> Overlap:
    """Count the pixels in both masks, and those in either.

    Args:
        truth: bool (H, W).
        predicted: bool (H, W).
        void: bool (H, W), pixels that do not count, default none.

    Raises:
        EvaluationError: When the masks are not bool or not of one size.
    """
    return _overlap(*_counted(truth, predicted, void))


def region_similarity(truth: Mask, predicted: Mask, void: Mask | None = None) -> float:
    """J: intersection over union (Perazzi et al. 2016, section 4.1; ``db_eval_iou`` of davis2017-evaluation).

    Args:
        truth: bool (H, W).
        predicted: bool (H, W).
        void: bool (H, W), pixels that do not count, default none.

    Returns:
        J in [0, 1]; 1 when both masks are empty.

    Raises:
        EvaluationError: When the masks are not bool or not of one size.
    """
    return overlap(truth, predicted, void).iou


def boundary_accuracy(
    truth: Mask, predicted: Mask, void: Mask | None = None, tolerance: float = BOUNDARY_TOLERANCE
) -> float:
    """F: F-measure of the mask boundaries (Perazzi et al. 2016, section 4.1; ``f_measure`` of davis2017-evaluation).

    Args:
        truth: bool (H, W).
        predicted: bool (H, W).
        void: bool (H, W), pixels that do not count, default none.
        tolerance: Distance at which boundaries match, in pixels when at least 1, else as a share of the diagonal
            (rounded up).

    Returns:
        F in [0, 1]; 1 when both masks are without boundary, 0 when one is.

    Raises:
        EvaluationError: When the masks are not bool or not of one size.
    """
    return _scores([_counted(truth, predicted, void)], tolerance)[0][1]


def video_scores(
    truth: Iterable[Mask],
    predicted: Iterable[Mask],
    void: Iterable[Mask | None] | None = None,
    *,
    tolerance: float = BOUNDARY_TOLERANCE,
) -> tuple[Scores, Scores]:
    """J and F of every frame of a video; the same numbers as frame by frame, sooner.

    Args:
        truth: bool (T, H, W), or the frames (H, W) one by one; no more than eight are held at once.
        predicted: Likewise.
        void: Likewise, pixels that do not count; None, or None for a frame, when all do.
        tolerance: As in ``boundary_accuracy``.

    Returns:
        J and F, float64 (T,) in [0, 1] each. Benchmarks average them over all frames.

    Raises:
        EvaluationError: When there is no frame, or the masks are not bool, not of one size or not of one number.
    """
    scores: list[tuple[float, float]] = []
    for pairs in batches(_pairs(truth, predicted, void), FRAMES_AT_ONCE):
        scores += _scores(pairs, tolerance)
    if not scores:
        raise EvaluationError("truth and prediction have no frames; at least one is needed to score a video.")
    regions, boundaries = np.array(scores).T
    return regions, boundaries


def boundary(mask: npt.NDArray) -> npt.NDArray:
    """One-pixel boundary of a mask: where it differs from the pixel to the right, below, or both (``_seg2bmap``).

    Args:
        mask: (H, W) of bool, or of uint8 with eight masks as bits.

    Returns:
        Likewise. Beyond the last row and column the mask goes on as it is there, so the image's border is no boundary.
    """
    further = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask ^ further[:-1, 1:]) | (mask ^ further[1:, :-1]) | (mask ^ further[1:, 1:])


def _pairs(
    truth: Iterable[Mask], predicted: Iterable[Mask], void: Iterable[Mask | None] | None
) -> Iterator[tuple[Mask, Mask]]:
    """The frames side by side, without their void pixels."""
    size = None
    for number, (one, other, hole) in enumerate(in_step(truth=truth, prediction=predicted, void=void)):
        size = size or one.shape
        yield _counted(one, other, hole, size=size, where=f" of frame {number}")


def _counted(
    truth: Mask, predicted: Mask, void: Mask | None = None, *, size: tuple[int, ...] | None = None, where: str = ""
) -> tuple[Mask, Mask]:
    """Both masks without the void pixels, once they are known to be masks of one size."""
    size = size or truth.shape
    for name, mask in (("truth", truth), ("prediction", predicted), ("void", void)):
        if mask is None:
            continue
        if mask.dtype != np.bool_:
            raise EvaluationError(f"the {name}{where} is {mask.dtype}; masks must be bool (compare with a threshold).")
        if mask.shape != size or mask.ndim != 2:
            raise EvaluationError(
                f"the {name}{where} has shape {mask.shape}, where {size} is expected; masks must be (height, width) "
                f"and of one size."
            )
    return (truth, predicted) if void is None else (truth & ~void, predicted & ~void)


def _overlap(truth: Mask, predicted: Mask) -> Overlap:
    return Overlap(int(np.count_nonzero(truth & predicted)), int(np.count_nonzero(truth | predicted)))


def _scores(pairs: Sequence[tuple[Mask, Mask]], tolerance: float) -> list[tuple[float, float]]:
    """J and F of up to eight frames of one size."""
    radius = _radius(pairs[0][0].shape, tolerance)
    truth, predicted = (_packed(masks) for masks in zip(*pairs, strict=True))
    box = _box(truth | predicted)
    if box is None:
        return [(1.0, 1.0)] * len(pairs)
    regions = [_overlap(one[box], other[box]).iou for one, other in pairs]
    truth_edge, predicted_edge = boundary(truth[box]), boundary(predicted[box])
    recalls = _matched(truth_edge, _near(predicted_edge, radius), len(pairs))
    precisions = _matched(predicted_edge, _near(truth_edge, radius), len(pairs))
    return list(zip(regions, map(_f_measure, precisions, recalls), strict=True))


def _radius(size: tuple[int, ...], tolerance: float) -> float:
    """The tolerance in pixels."""
    if not 0 <= tolerance < math.inf:
        raise EvaluationError(f"the boundary tolerance is {tolerance}; it must be pixels or a share of the diagonal.")
    return tolerance if tolerance >= 1 else float(np.ceil(tolerance * np.linalg.norm(size)))


def _packed(masks: Sequence[Mask]) -> Packed:
    """Up to eight masks as one image, the first in the lowest bit."""
    packed = np.zeros_like(masks[0], dtype=np.uint8)
    for mask in reversed(masks):
        packed += packed
        packed |= mask.view(np.uint8)
    return packed


def _box(union: Packed) -> tuple[slice, slice] | None:
    """The box around all masks with one pixel more, outside which there is no boundary; None when all are empty."""
    rows = np.flatnonzero(union.any(axis=1))
    if not rows.size:
        return None
    columns = np.flatnonzero(union.any(axis=0))
    return slice(max(0, rows[0] - 1), rows[-1] + 2), slice(max(0, columns[0] - 1), columns[-1] + 2)


def _near(edge: Packed, radius: float) -> Packed:
    """Pixels at most ``radius`` from an edge pixel: dilation by a disk.

    The disk is a pile of rows, the longer the nearer its middle. So the edge is drawn out to rows of growing length,
    and each is laid where the disk has one. Zeros before, between and after the image's rows take what is drawn out
    beyond them.
    """
    height, width = edge.shape
    reach = min(int(radius), height + width)  # nothing lies further apart than that
    stride = width + reach
    drawn = np.zeros(reach + height * stride, np.uint8)
    drawn[reach:].reshape(height, stride)[:, :width] = edge
    near = np.zeros_like(drawn)
    length = 0
    for row in range(min(reach, height - 1), -1, -1):
        wanted = min(math.isqrt(math.floor(radius**2 - row**2)), reach)
        while length < wanted:
            step = min(wanted - length, 2 * length + 1)  # a longer one would leave gaps
            drawn = _or_shifted(drawn.copy(), drawn, step)
            length += step
        _or_shifted(near, drawn, row * stride)
    return near[reach:].reshape(height, stride)[:, :width]


def _or_shifted(target: Packed, source: Packed, offset: int) -> Packed:
    """Add ``source`` to ``target`` (both flat), moved by ``offset`` in either direction."""
    kept = len(source) - offset
    target[offset:] |= source[:kept]
    target[:kept] |= source[offset:]
    return target


def _matched(edge: Packed, near: Packed, count: int) -> list[tuple[int, int]]:
    """How many edge pixels each frame has, and how many of them are near the other edge."""
    at = np.flatnonzero(edge != 0)
    edges = edge.ravel()[at]
    matches = edges & near.ravel()[at]
    bits = [1 << frame for frame in range(count)]
    return [(int(np.count_nonzero(edges & bit)), int(np.count_nonzero(matches & bit))) for bit in bits]


def _f_measure(predicted: tuple[int, int], truth: tuple[int, int]) -> float:
    """F from the edge pixels of both masks and how many of them match."""
    if not predicted[0] or not truth[0]:
        return float(predicted[0] == truth[0])
    precision, recall = predicted[1] / predicted[0], truth[1] / truth[0]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
