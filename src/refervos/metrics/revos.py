"""Metrics of ReVOS beside J and F: robustness R against answering what is not meant, and pixel accuracy A.

Yan et al. 2024 (VISA, arXiv 2407.11325), as ``tools/metrics.py`` and ``tools/eval_revos.py`` of VISA compute them. The
scripts work on uint8 and so count wrongly where true masks overlap (1 + 1 = 2) or predictions are stored as 255; here
masks are bool.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from refervos.metrics.region_boundary import Mask

REFERRING, REASONING, HALLUCINATION = "referring", "reasoning", "hallucination"
"""The kinds of expressions, ``type_id`` 0, 1 and 2. The last mean nothing in their video."""

OVERALL = "overall"


def pixel_accuracy(truth: Mask, predicted: Mask) -> float:
    """A of one frame: share of the pixels on which both masks agree (``get_r2vos_accuracy``).

    Args:
        truth: bool (H, W).
        predicted: bool (H, W).

    Returns:
        In [0, 1].
    """
    return float(np.mean(truth == predicted))


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


@dataclass(frozen=True)
class RevosScores:
    """Means over the frames of an expression, or over expressions; all in [0, 1].

    Attributes:
        j: Region similarity J.
        f: Boundary accuracy F.
        accuracy: Pixel accuracy A.
        robustness: R.
    """

    j: float
    f: float
    accuracy: float
    robustness: float

    @property
    def j_and_f(self) -> float:
        """Mean of J and F."""
        return (self.j + self.f) / 2


def revos_summary(expressions: Iterable[tuple[str, RevosScores]]) -> Mapping[str, RevosScores]:
    """Average expressions, kind by kind.

    Two different numbers are called R. Papers show the one of the hallucination expressions: how little is answered to
    what means nothing (``summary["hallucination"].robustness``); tables of refervos show that one, too. VISA's script
    prints the ones of the referring and reasoning expressions (``summary["overall"].robustness``).

    Args:
        expressions: Kind (``referring``, ``reasoning``, ``hallucination``) and scores of each expression.

    Returns:
        Means over the expressions of each kind that is there. ``overall`` is the mean of ``referring`` and
        ``reasoning``, not of their expressions, and there when both are.
    """
    kinds: dict[str, list[RevosScores]] = {}
    for kind, scores in expressions:
        kinds.setdefault(kind, []).append(scores)
    summary = {kind: _mean(kinds[kind]) for kind in (REFERRING, REASONING, HALLUCINATION) if kind in kinds}
    if REFERRING in summary and REASONING in summary:
        summary[OVERALL] = _mean([summary[REFERRING], summary[REASONING]])
    return summary


def _mean(scores: Sequence[RevosScores]) -> RevosScores:
    return RevosScores(
        j=fmean(one.j for one in scores),
        f=fmean(one.f for one in scores),
        accuracy=fmean(one.accuracy for one in scores),
        robustness=fmean(one.robustness for one in scores),
    )
