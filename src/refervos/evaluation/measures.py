"""What each benchmark reports: measures over many expressions, with bootstrap intervals over videos.

Every measure is a sum over a sum, or the mean of a few such ratios. A mean over expressions has ones below; oIoU has
intersections over unions; N-acc has right answers over expressions without target.
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
from refervos.evaluation.expressions import PRECISION_THRESHOLDS, ExpressionResult, Scores
from refervos.evaluation.matched import MatchedResult
from refervos.worlds.benchmark import TARGET_SPLITS

Row = TypeVar("Row", ExpressionResult, MatchedResult)


@dataclass(frozen=True)
class Ratio(Generic[Row]):
    """A sum over a sum.

    Attributes:
        above: What a row adds to the sum above.
        below: What it adds to the sum below, at least 0.
    """

    above: Callable[[Row], float]
    below: Callable[[Row], float]

    def among(self, chosen: Callable[[Row], bool]) -> Ratio[Row]:
        """The same over some rows only."""
        return Ratio(
            lambda row: self.above(row) if chosen(row) else 0.0, lambda row: self.below(row) if chosen(row) else 0.0
        )


@dataclass(frozen=True)
class Measure(Generic[Row]):
    """A number of a table, in percent: the mean of some means of ratios.

    Attributes:
        name: As tables call it.
        means: What is averaged: in each, ratios with nothing below are left out, but none may be left without any.
    """

    name: str
    means: tuple[tuple[Ratio[Row], ...], ...]

    def among(self, chosen: Callable[[Row], bool]) -> Measure[Row]:
        """The same over some rows only."""
        return Measure(self.name, tuple(tuple(ratio.among(chosen) for ratio in mean) for mean in self.means))


def measure(rows: Sequence[Row], measures: Sequence[Measure[Row]]) -> list[Interval | None]:
    """Take measures, and how sure they are when videos are drawn again.

    Args:
        rows: Results of all expressions.
        measures: What is wanted.

    Returns:
        For each measure its value and 95 % interval in percent; None where there is nothing that it is about.
    """
    ratios = [ratio for wanted in measures for mean in wanted.means for ratio in mean]
    if not rows or not ratios:
        return [None] * len(measures)
    above = np.array([[ratio.above(row) for ratio in ratios] for row in rows], dtype=np.float64)
    below = np.array([[ratio.below(row) for ratio in ratios] for row in rows], dtype=np.float64)
    sums = below.sum(axis=0)
    with np.errstate(invalid="ignore"):
        values = above.sum(axis=0) / sums
    drawn = resampled_ratios(above, below, [row.video for row in rows])
    found: list[Interval | None] = []
    columns = iter(range(len(ratios)))
    for wanted in measures:
        means = [[c for c in islice(columns, len(mean)) if sums[c] > 0] for mean in wanted.means]
        if all(means):
            value = fmean(values[there].mean() for there in means)
            resampled = np.mean([drawn[:, there].mean(axis=1) for there in means], axis=0)
            found.append(interval_around(100 * value, 100 * resampled))
        else:
            found.append(None)
    return found


def columns_of(scoring: Scoring) -> tuple[Measure[ExpressionResult], ...]:
    """What a benchmark's table tells of each group of expressions, the headline first."""
    if scoring == "image":
        return (OVERALL_IOU, MEAN_IOU, *PRECISIONS)
    more: tuple[Measure[ExpressionResult], ...] = ()
    if scoring == "long-rvos":
        more = (_simple("tIoU", _mean_of(lambda s: s.t_iou)), _simple("vIoU", _mean_of(lambda s: s.v_iou)))
    elif scoring == "revos":
        more = (_simple("R", _ROBUSTNESS),)
    return (J_AND_F, _simple("J", _J), _simple("F", _F), *more)


def lines_of(scoring: Scoring) -> tuple[Measure[ExpressionResult], ...]:
    """What a benchmark reports besides; what has nothing to be about is left out of reports."""
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
        # Two numbers are called R. Papers show this one: how little is answered to what means nothing. VISA's script
        # prints the mean of R of the referring and of the reasoning expressions.
        return (*overall, _simple("R (hallucination)", _ROBUSTNESS.among(_of_kind(HALLUCINATION))), *presence)
    return presence if scoring == "image" else (*presence, final)


def published_measures(results: Sequence[MatchedResult]) -> tuple[Measure[MatchedResult], ...]:
    """J&F, J and F of Ref-DAVIS17 as published: means over objects, then over annotators."""
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
    """Mean of a score over the expressions that have it."""

    def value(row: ExpressionResult) -> float | None:
        return None if row.scores is None else score(row.scores)

    return Ratio(lambda row: value(row) or 0.0, lambda row: float(value(row) is not None))


def _sum_over_sum(above: Callable[[Scores], float], below: Callable[[Scores], float]) -> Ratio[ExpressionResult]:
    return Ratio(
        lambda row: 0.0 if row.scores is None else above(row.scores),
        lambda row: 0.0 if row.scores is None else below(row.scores),
    )


def _precision(place: int) -> Ratio[ExpressionResult]:
    return _sum_over_sum(lambda s: s.above[place], lambda s: s.visible)


_J, _F, _BOTH = _mean_of(lambda s: s.j), _mean_of(lambda s: s.f), _mean_of(lambda s: s.j_and_f)
_ROBUSTNESS = _mean_of(lambda s: s.robustness)

# A prediction whose masks are missing is right about nothing.
_N_ACC: Ratio[ExpressionResult] = Ratio(
    lambda row: float(row.has_target is False and row.empty is True), lambda row: float(row.has_target is False)
)
_T_ACC: Ratio[ExpressionResult] = Ratio(
    lambda row: float(row.has_target is True and row.empty is False), lambda row: float(row.has_target is True)
)

J_AND_F = _simple("J&F", _BOTH)

OVERALL_IOU = _simple("oIoU", _sum_over_sum(lambda s: s.intersection, lambda s: s.union))
"""Sum of intersections over sum of unions; cIoU where there are sentences that mean nothing.

Large objects weigh more. An answer to a sentence that means nothing adds to the union only (GRES, Liu et al. 2023,
section 3.3; ``refer_evaluation.py`` of ReLA).
"""

MEAN_IOU = _simple("mIoU", _sum_over_sum(lambda s: s.j * s.frames, lambda s: s.frames))
"""Mean over annotated frames; images have one each. gIoU where there are sentences that mean nothing.

For such a sentence the IoU is 1 when the answer is empty and 0 otherwise (GRES, as above).
"""

PRECISIONS = tuple(_simple(f"P@{k}", _precision(place)) for place, k in enumerate(PRECISION_THRESHOLDS))
"""Of the annotated frames that show the target, the share whose IoU is greater than K.

IoU equal to K does not count (``calculate_precision_at_k_and_iou_metrics`` of MTTR, which ReferFormer and SAMWISE took
over; it adds 1e-6 to intersection and union, which moves masks of a few pixels only). ReLA's Pr@K counts it.
"""
