"""Metrics of referring image segmentation, and of single annotated frames: overall and mean IoU, P@K, mAP.

One set of definitions serves RefCOCO/+/g, gRefCOCO (GRES), A2D-Sentences and JHMDB-Sentences, because an empty answer
to a sentence that means nothing counts as IoU 1: without such sentences oIoU is cIoU and mIoU is gIoU, with them cIoU
and gIoU are those of GRES.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from refervos.metrics.presence import PresenceAccuracies, presence_accuracies
from refervos.metrics.region_boundary import Mask, Overlap, overlap

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""The K of P@K that tables show."""

AP_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""The IoUs that mAP 0.5:0.95 averages over, as pycocotools writes them."""

RECALLS = np.linspace(0.0, 1.0, 101)
"""Where pycocotools reads the precision-recall curve."""


@dataclass(frozen=True)
class ImageResult:
    """How one sentence about one image was answered.

    Attributes:
        overlap: Of the true and the predicted mask; the IoU of two empty masks is 1.
        has_target: Whether the true mask has a pixel.
        empty: Whether the predicted mask has none.
        confidence: How sure the model is, any unit; only its order matters, and only for AP.
    """

    overlap: Overlap
    has_target: bool
    empty: bool
    confidence: float = 1.0


class ImageScores:
    """Collects the samples of a split one by one; every metric is over all that were added.

    Args:
        results: Samples to begin with.

    Example:
        >>> scores, others = ImageScores(), ImageScores()
        >>> scores.add(np.array([[True, True]]), np.array([[True, False]]))
        >>> others.add(np.array([[True, False]]), np.array([[True, False]]))
        >>> scores.merge(others)
        >>> scores.overall_iou, scores.mean_iou
        (0.6666666666666666, 0.75)
    """

    def __init__(self, results: Iterable[ImageResult] = ()) -> None:
        self.results = list(results)

    def add(self, truth: Mask, predicted: Mask, confidence: float = 1.0) -> None:
        """Count one more sample.

        Args:
            truth: bool (H, W), without a pixel where the sentence means nothing.
            predicted: bool (H, W).
            confidence: See ``ImageResult``.

        Raises:
            EvaluationError: When the masks are not bool or not of one size.
        """
        shared = overlap(truth, predicted)
        self.results.append(ImageResult(shared, bool(truth.any()), not predicted.any(), confidence))

    def merge(self, other: ImageScores) -> None:
        """Count all samples of another split or process, too."""
        self.results += other.results

    @property
    def overall_iou(self) -> float | None:
        """Overall IoU (oIoU, cIoU): sum of intersections over sum of unions, in [0, 1]; None when no mask has a pixel.

        Large objects weigh more. An answer to a sentence that means nothing adds to the union only (GRES, Liu et al.
        2023, section 3.3; ``refer_evaluation.py`` of ReLA).
        """
        union = sum(result.overlap.union for result in self.results)
        return sum(result.overlap.intersection for result in self.results) / union if union else None

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU (mIoU, gIoU): mean of the samples' IoU, in [0, 1]; None without samples.

        For a sentence that means nothing the IoU is 1 when the answer is empty and 0 otherwise (GRES, as above).
        """
        return fmean(result.overlap.iou for result in self.results) if self.results else None

    def precision_at(self, threshold: float) -> float | None:
        """P@K: share of the samples with a target whose IoU is greater than K, in [0, 1]; None without such samples.

        IoU equal to K does not count (``calculate_precision_at_k_and_iou_metrics`` of MTTR, which ReferFormer and
        SAMWISE took over; it adds 1e-6 to intersection and union, which moves masks of a few pixels only). ReLA's
        Pr@K counts it.

        Args:
            threshold: K in [0, 1], one of ``PRECISION_THRESHOLDS`` in tables.
        """
        targets = self._targets
        return fmean(result.overlap.iou > threshold for result in targets) if targets else None

    def average_precision(self, thresholds: Sequence[float] = AP_THRESHOLDS) -> float | None:
        """AP of A2D- and JHMDB-Sentences: the mean of ``average_precision`` over some IoU thresholds.

        Args:
            thresholds: Default 0.5:0.95, the mAP of tables.

        Returns:
            In [0, 1], over the samples with a target; None without such samples.
        """
        targets = self._targets
        if not targets:
            return None
        ious, confidences = [result.overlap.iou for result in targets], [result.confidence for result in targets]
        return fmean(average_precision(ious, confidences, threshold) for threshold in thresholds)

    @property
    def presence(self) -> PresenceAccuracies:
        """N-acc and T-acc."""
        results = self.results
        return presence_accuracies([result.has_target for result in results], [result.empty for result in results])

    @property
    def _targets(self) -> list[ImageResult]:
        return [result for result in self.results if result.has_target]


def average_precision(
    ious: Sequence[float] | npt.NDArray[np.float64],
    confidences: Sequence[float] | npt.NDArray[np.float64],
    threshold: float,
) -> float:
    """AP at one IoU, when every sample has one true mask and one prediction.

    This is what pycocotools' ``COCOeval`` computes with ``useCats=0``, each sample being an image (ReferFormer
    ``engine.py``, ``evaluate_a2d``): predictions ranked by confidence, those of IoU at least the threshold right,
    precision made monotone and averaged at 101 recalls. Methods with several queries hand in all of them, each a
    prediction of its own; a single answer cannot profit from that.

    Args:
        ious: (N,), in [0, 1], at least one.
        confidences: (N,); among equals the earlier sample ranks first.
        threshold: In (0, 1].

    Returns:
        AP in [0, 1].
    """
    ranked = np.asarray(ious)[np.argsort(-np.asarray(confidences, dtype=np.float64), kind="stable")]
    right = np.cumsum(ranked >= threshold)
    precision = right / np.arange(1, len(right) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(right / len(right), RECALLS)
    return float(np.append(best_from_here, 0.0)[reached].mean())
