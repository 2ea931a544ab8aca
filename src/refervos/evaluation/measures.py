"""Measures that benchmarks report over many expressions, with bootstrap intervals over videos.

Every measure is a ratio of sums, or the mean of a few such ratios. A mean over expressions has the denominator 1 for
each; oIoU divides intersections by unions; N-acc divides empty predictions by expressions without target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import fmean
from typing import Generic, TypeVar

import numpy as np

from refervos.data.layouts.revos import HALLUCINATION, REASONING, REFERRING
from refervos.evaluation.bootstrap import Interval, interval_around, resampled_ratios
from refervos.evaluation.datasets import Scoring
from refervos.evaluation.expression_scores import PRECISION_THRESHOLDS, ExpressionResult, Scores
from refervos.evaluation.matched import MatchedResult
from refervos.metrics.visual_grounding import THRESHOLDS
from refervos.worlds.benchmark import TARGET_SPLITS

Row = TypeVar("Row", ExpressionResult, MatchedResult)


@dataclass(frozen=True)
class Ratio(Generic[Row]):
    """A ratio of sums over rows.

    Attributes:
        numerator: A row's contribution to the numerator.
        denominator: A row's contribution to the denominator, at least 0.
    """

    numerator: Callable[[Row], float]
    denominator: Callable[[Row], float]

    def among(self, chosen: Callable[[Row], bool]) -> Ratio[Row]:
        """Restrict the ratio to some rows."""
        return Ratio(
            lambda row: self.numerator(row) if chosen(row) else 0.0,
            lambda row: self.denominator(row) if chosen(row) else 0.0,
        )


@dataclass(frozen=True)
class Measure(Generic[Row]):
    """A reported number in percent: the mean of means of ratios.

    Attributes:
        name: Name in tables.
        means: Groups of ratios. Each group is averaged, leaving out ratios with the denominator 0; the measure is the
            mean of the groups and needs at least one ratio in each.
    """

    name: str
    means: tuple[tuple[Ratio[Row], ...], ...]

    def among(self, chosen: Callable[[Row], bool]) -> Measure[Row]:
        """Restrict the measure to some rows."""
        return Measure(self.name, tuple(tuple(ratio.among(chosen) for ratio in mean) for mean in self.means))


def measure(rows: Sequence[Row], measures: Sequence[Measure[Row]]) -> list[Interval | None]:
    """Compute measures with intervals from resampled videos.

    Args:
        rows: Results of all expressions.
        measures: The measures to compute.

    Returns:
        Value and 95 % interval of each measure in percent; None for a measure without samples.
    """
    ratios = [ratio for one in measures for mean in one.means for ratio in mean]
    if not rows or not ratios:
        return [None] * len(measures)
    numerators = np.array([[ratio.numerator(row) for ratio in ratios] for row in rows], dtype=np.float64)
    denominators = np.array([[ratio.denominator(row) for ratio in ratios] for row in rows], dtype=np.float64)
    sums = denominators.sum(axis=0)
    with np.errstate(invalid="ignore"):
        values = numerators.sum(axis=0) / sums
    resamples = resampled_ratios(numerators, denominators, [row.video for row in rows])
    intervals: list[Interval | None] = []
    columns = iter(range(len(ratios)))
    for one in measures:
        means = [[c for c in islice(columns, len(mean)) if sums[c] > 0] for mean in one.means]
        if all(means):
            value = fmean(values[kept].mean() for kept in means)
            resampled = np.mean([resamples[:, kept].mean(axis=1) for kept in means], axis=0)
            intervals.append(interval_around(100 * value, 100 * resampled))
        else:
            intervals.append(None)
    return intervals


def table_measures(scoring: Scoring) -> tuple[Measure[ExpressionResult], ...]:
    """Return the columns of a benchmark's table, the headline first."""
    if scoring == "image":
        return (OVERALL_IOU, MEAN_IOU, *PRECISIONS)
    if scoring == "boxes":
        return (_simple("mIoU of boxes", _mean_of(lambda s: s.box_iou)), *map(_box_share, THRESHOLDS))
    more: tuple[Measure[ExpressionResult], ...] = ()
    if scoring == "long-rvos":
        more = (_simple("tIoU", _mean_of(lambda s: s.t_iou)), _simple("vIoU", _mean_of(lambda s: s.v_iou)))
    elif scoring == "revos":
        more = (_simple("R", _ROBUSTNESS),)
    return (J_AND_F, _simple("J", _J), _simple("F", _F), *more)


def summary_measures(scoring: Scoring) -> tuple[Measure[ExpressionResult], ...]:
    """Return the measures that a benchmark reports below its table; reports omit those without samples."""
    if scoring == "boxes":
        return ()
    presence = _simple("N-acc", _N_ACC), _simple("T-acc", _T_ACC)
    final = Measure("final (mean of J&F over all expressions, N-acc and T-acc)", ((_BOTH,), (_N_ACC,), (_T_ACC,)))
    if scoring == "worlds":
        targets = tuple(_BOTH.among(_of_kind(split)) for split in TARGET_SPLITS)
        final = Measure("final (mean of J&F over the target splits, N-acc and T-acc)", (targets, (_N_ACC,), (_T_ACC,)))
        return (Measure("J&F, mean of the target splits", (targets,)), *presence, final)
    if scoring == "revos":
        overall = (
            Measure(
                f"{name}, overall (mean of referring and reasoning)",
                tuple((ratio.among(_of_kind(kind)),) for kind in (REFERRING, REASONING)),
            )
            for name, ratio in (("J&F", _BOTH), ("J", _J), ("F", _F))
        )
        # Two numbers are called R. Papers report this one, over expressions without target. VISA's script prints the
        # mean of R over the referring and over the reasoning expressions.
        return (*overall, _simple("R (hallucination)", _ROBUSTNESS.among(_of_kind(HALLUCINATION))), *presence)
    return presence if scoring == "image" else (*presence, final)


def published_measures(results: Sequence[MatchedResult]) -> tuple[Measure[MatchedResult], ...]:
    """Return J&F, J and F of Ref-DAVIS17 as published: means over objects, then over annotators."""
    annotators = sorted({result.annotator for result in results})
    scores: Sequence[tuple[str, Callable[[MatchedResult], Sequence[float]]]] = (
        ("J&F", lambda row: [(j + f) / 2 for j, f in zip(row.j, row.f, strict=True)]),
        ("J", lambda row: row.j),
        ("F", lambda row: row.f),
    )
    return tuple(
        Measure(name, tuple((_over_objects(values).among(_by(annotator)),) for annotator in annotators))
        for name, values in scores
    )


def _over_objects(values: Callable[[MatchedResult], Sequence[float]]) -> Ratio[MatchedResult]:
    return Ratio(lambda row: sum(values(row)), lambda row: float(len(values(row))))


def _by(annotator: str) -> Callable[[MatchedResult], bool]:
    return lambda row: row.annotator == annotator


def _of_kind(kind: str) -> Callable[[ExpressionResult], bool]:
    return lambda row: row.kind == kind


def _simple(name: str, ratio: Ratio[ExpressionResult]) -> Measure[ExpressionResult]:
    return Measure(name, ((ratio,),))


def _mean_of(score: Callable[[Scores], float | None]) -> Ratio[ExpressionResult]:
    """Return the mean of a score over the expressions that have it."""

    def value(row: ExpressionResult) -> float | None:
        return None if row.scores is None else score(row.scores)

    return Ratio(lambda row: value(row) or 0.0, lambda row: float(value(row) is not None))


def _box_share(threshold: float) -> Measure[ExpressionResult]:
    """Return the share of expressions whose boxes have a larger mean IoU."""

    def above(scores: Scores) -> float | None:
        return None if scores.box_iou is None else float(scores.box_iou > threshold)

    return _simple(f"@{threshold}", _mean_of(above))


def _ratio_of_sums(
    numerator: Callable[[Scores], float], denominator: Callable[[Scores], float]
) -> Ratio[ExpressionResult]:
    return Ratio(
        lambda row: 0.0 if row.scores is None else numerator(row.scores),
        lambda row: 0.0 if row.scores is None else denominator(row.scores),
    )


def _precision(position: int) -> Ratio[ExpressionResult]:
    return _ratio_of_sums(lambda s: s.above[position], lambda s: s.visible)


_J, _F, _BOTH = _mean_of(lambda s: s.j), _mean_of(lambda s: s.f), _mean_of(lambda s: s.j_and_f)
_ROBUSTNESS = _mean_of(lambda s: s.robustness)

# A prediction with missing masks (``empty`` is None) counts as wrong in both.
_N_ACC: Ratio[ExpressionResult] = Ratio(
    lambda row: float(row.has_target is False and row.empty is True), lambda row: float(row.has_target is False)
)
_T_ACC: Ratio[ExpressionResult] = Ratio(
    lambda row: float(row.has_target is True and row.empty is False), lambda row: float(row.has_target is True)
)

J_AND_F = _simple("J&F", _BOTH)

OVERALL_IOU = _simple("oIoU", _ratio_of_sums(lambda s: s.intersection, lambda s: s.union))
"""Sum of intersections over sum of unions; called cIoU for benchmarks with no-target expressions.

Large objects weigh more. A prediction for a no-target expression adds to the union only (GRES, Liu et al. 2023,
section 3.3; ``refer_evaluation.py`` of ReLA).
"""

MEAN_IOU = _simple("mIoU", _ratio_of_sums(lambda s: s.j * s.frames, lambda s: s.frames))
"""Mean IoU over annotated frames (images have one each); called gIoU for benchmarks with no-target expressions.

The IoU of a no-target expression is 1 if the prediction is empty and 0 otherwise (GRES, as above).
"""

PRECISIONS = tuple(_simple(f"P@{k}", _precision(position)) for position, k in enumerate(PRECISION_THRESHOLDS))
"""Fraction of the annotated frames showing the target whose IoU is greater than K.

An IoU equal to K does not count (``calculate_precision_at_k_and_iou_metrics`` of MTTR, adopted by ReferFormer and
SAMWISE; it adds 1e-6 to intersection and union, which matters for masks of a few pixels only). ReLA's Pr@K counts it.
"""
