"""N-acc, T-acc and the final score of benchmarks with no-target expressions.

The definitions are those of generalised referring segmentation (ReLA's ``refer_evaluation.py``), carried to video by
MeViSv2: a prediction is empty when it has no pixel in any frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class PresenceAccuracies:
    """Accuracy of deciding if an expression has a target at all.

    Attributes:
        no_target: N-acc in [0, 1], the fraction of no-target samples with an empty prediction; None without such
            samples.
        target: T-acc in [0, 1], the fraction of target samples with a non-empty prediction; None without such
            samples.
    """

    no_target: float | None
    target: float | None


def is_empty(masks: npt.NDArray[np.bool_]) -> bool:
    """Check if a prediction has exactly zero pixels in every frame.

    Args:
        masks: bool (T, H, W).
    """
    return not masks.any()


def presence_accuracies(has_target: Sequence[bool], predicted_empty: Sequence[bool]) -> PresenceAccuracies:
    """Return N-acc = TP / (TP + FN) over no-target samples and T-acc = TN / (TN + FP) over target samples (GRES).

    A no-target sample is a true positive when the prediction is empty; a target sample is a true negative when it is
    not.

    Args:
        has_target: For each sample, True if its expression refers to something in the video.
        predicted_empty: For each sample, True if the prediction is empty (see ``is_empty``).

    Returns:
        Both accuracies in [0, 1].
    """
    samples = list(zip(has_target, predicted_empty, strict=True))
    return PresenceAccuracies(
        no_target=_fraction_true([empty for target, empty in samples if not target]),
        target=_fraction_true([not empty for target, empty in samples if target]),
    )


def final_score(j_and_f: float, no_target_accuracy: float, target_accuracy: float) -> float:
    """Return the ranking score of MeViSv2: the mean of J&F, N-acc and T-acc.

    Args:
        j_and_f: J&F.
        no_target_accuracy: N-acc.
        target_accuracy: T-acc; all three in [0, 1], or all three in percent.

    Returns:
        The mean, in the unit of the arguments.
    """
    return (j_and_f + no_target_accuracy + target_accuracy) / 3


def _fraction_true(correct: list[bool]) -> float | None:
    return sum(correct) / len(correct) if correct else None
