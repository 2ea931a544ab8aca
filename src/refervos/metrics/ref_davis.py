"""The published protocol of Ref-DAVIS17, which matches predictions to objects.

Published numbers (ReferFormer, SAMWISE and most others) come from ``inference_davis.py`` of ReferFormer and the
*unsupervised* task of davis2017-evaluation, which was made for methods that do not label objects. The predictions for
one annotator's expressions about a video are merged so that they do not overlap (``merge_objects``), and predictions
are then assigned to objects so that the total score is highest (``matched_scores``): a model that confuses two objects
is not penalised. Void pixels do not count; all frames do, including the first and the last. Scores are averaged over
the objects of all videos, then over the four annotators.

The task reads ``Annotations_unsupervised``; its objects are the labels up to the largest one in the first frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refervos.errors import EvaluationError, MissingDependencyError
from refervos.metrics.region_boundary import FRAMES_AT_ONCE, Mask, Scores, video_scores
from refervos.metrics.streams import batches, zip_streams

Frame = tuple[Mask, Mask, Mask | None]
"""Object masks, predicted masks and void pixels of one frame."""

BACKGROUND = 0.5
"""Probability above which a pixel belongs to an object."""

MAX_PREDICTIONS = 20
"""Number of predictions for one video that the toolkit allows."""


@dataclass(frozen=True)
class ObjectScores:
    """Scores of one object of a video.

    Attributes:
        j: J of every frame, float64 (T,).
        f: F of every frame, float64 (T,).
        prediction: Index of the prediction matched to the object; None where there were fewer predictions than objects.
    """

    j: Scores
    f: Scores
    prediction: int | None


def merge_objects(probabilities: npt.NDArray) -> Mask:
    """Give each pixel to the most probable object, or to none (ReferFormer ``inference_davis.py``).

    Args:
        probabilities: (N, H, W) in [0, 1] of one frame, objects in the order of the benchmark; or bool.

    Returns:
        bool (N, H, W), at each pixel True for at most one object: the most probable one (the first in a tie), if its
        probability is above 0.5.
    """
    winner = probabilities.argmax(axis=0)
    return (winner == np.arange(len(probabilities))[:, None, None]) & (probabilities > BACKGROUND)


def matched_scores(
    ground_truth: Iterable[Mask], predicted: Iterable[Mask], void: Iterable[Mask | None] | None = None
) -> list[ObjectScores]:
    """Score one annotator's predictions for a video as published (``_evaluate_unsupervised`` of davis2017-evaluation).

    J and F are computed for every pair of object and prediction; Hungarian matching then chooses the pairs with the
    largest sum of mean J&F. An object without a prediction is scored against an empty one; surplus predictions cost
    nothing.

    Args:
        ground_truth: Object masks, bool (O, H, W) for each frame.
        predicted: Merged predictions, bool (N, H, W) for each frame, N at most 20.
        void: Pixels that do not count, bool (H, W) or None for each frame; default none.

    Returns:
        The scores of each object, in the order of ``ground_truth`` (the toolkit lists them in that of ``predicted``).

    Raises:
        EvaluationError: When there are no frames or too many predictions, or masks are not bool or differ in size.
        MissingDependencyError: When SciPy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingDependencyError(
            "matching predictions to objects needs SciPy: pip install 'refervos[eval]'."
        ) from error
    parts = []
    for frames in _batches(ground_truth, predicted, void):
        objects, predictions = len(frames[0][0]), len(frames[0][1])
        if predictions > MAX_PREDICTIONS:
            raise EvaluationError(
                f"there are {predictions} predictions for a video; the toolkit allows {MAX_PREDICTIONS}."
            )
        compared = max(objects, predictions)
        parts.append([[_pair_scores(frames, i, k) for k in range(compared)] for i in range(objects)])
    scores = np.concatenate(parts, axis=-1)  # (O, compared, J and F, T)
    chosen = linear_sum_assignment(scores.mean(axis=3).mean(axis=2).T, maximize=True)
    return [
        ObjectScores(j=scores[i, k, 0], f=scores[i, k, 1], prediction=int(k) if k < predictions else None)
        for k, i in sorted(zip(*chosen, strict=True), key=lambda pair: pair[1])
    ]


def _batches(
    ground_truth: Iterable[Mask], predicted: Iterable[Mask], void: Iterable[Mask | None] | None
) -> Iterator[Sequence[Frame]]:
    """Yield a few frames at a time; all must have as many objects and predictions as the first."""
    streams = {"ground truth": ground_truth, "prediction": predicted, "void": void}
    counts = None
    for frames in batches(zip_streams(streams), FRAMES_AT_ONCE):
        for objects, predictions, _ in frames:
            counts = counts or (len(objects), len(predictions))
            if counts != (len(objects), len(predictions)):
                raise EvaluationError(
                    f"a frame has {len(objects)} objects and {len(predictions)} predictions, but the first frame has "
                    f"{counts[0]} and {counts[1]}; every frame needs a mask of each."
                )
        yield frames
    if counts is None:
        raise EvaluationError("ground truth and prediction have no frames; at least one is needed to score a video.")


def _pair_scores(frames: Sequence[Frame], i: int, k: int) -> tuple[Scores, Scores]:
    """Return J and F of an object with a prediction, or with an empty mask where there is no such prediction."""
    return video_scores(
        [objects[i] for objects, _, _ in frames],
        [masks[k] if k < len(masks) else np.zeros_like(objects[i]) for objects, masks, _ in frames],
        [void for _, _, void in frames],
    )
