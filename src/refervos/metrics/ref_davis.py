"""The published protocol of Ref-DAVIS17, which matches answers to objects.

Published numbers (ReferFormer, SAMWISE and most others) come from ``inference_davis.py`` of ReferFormer and the
*unsupervised* task of davis2017-evaluation, which was made for methods that are not told which object is which. Of one
annotator's expressions about a video, all answers are merged so that they do not overlap (``merge_objects``), and each
object is then scored with whichever answer suits all of them best (``matched_scores``): a model that confuses two
objects is not punished. Void pixels do not count, all frames do, first and last too. Objects are averaged over all
videos, and the four annotators after that.

That task reads ``Annotations_unsupervised``, and takes as objects the labels up to the largest one in the first frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refervos.errors import EvaluationError, MissingDependencyError
from refervos.metrics.region_boundary import FRAMES_AT_ONCE, Mask, Scores, video_scores
from refervos.metrics.streams import batches, in_step

Frame = tuple[Mask, Mask, Mask | None]
"""Objects, answers and void pixels of one frame."""

BACKGROUND = 0.5
"""A pixel belongs to no object unless one is more probable than this."""

MOST_ANSWERS = 20
"""More answers about one video are refused by the toolkit."""


@dataclass(frozen=True)
class ObjectScores:
    """How one object of a video was segmented.

    Attributes:
        j: J of every frame, float64 (T,).
        f: F of every frame, float64 (T,).
        answer: Which of the answers was compared with it; None where there were fewer answers than objects.
    """

    j: Scores
    f: Scores
    answer: int | None


def merge_objects(probabilities: npt.NDArray) -> Mask:
    """Give each pixel to the most probable object, or to none (ReferFormer ``inference_davis.py``).

    Args:
        probabilities: (N, H, W) in [0, 1], of one frame, objects in the order of the benchmark; or bool.

    Returns:
        bool (N, H, W), True in at most one object: the most probable one, the first of several, where it is more
        probable than 0.5.
    """
    winner = probabilities.argmax(axis=0)
    return (winner == np.arange(len(probabilities))[:, None, None]) & (probabilities > BACKGROUND)


def matched_scores(
    truth: Iterable[Mask], predicted: Iterable[Mask], void: Iterable[Mask | None] | None = None
) -> list[ObjectScores]:
    """Score one annotator's answers about one video as published (``_evaluate_unsupervised`` of davis2017-evaluation).

    J and F are computed for every pair of object and answer; the pairs are then chosen that have the largest sum of
    mean J&F (Hungarian matching). Objects without an answer are scored as answered with nothing, surplus answers cost
    nothing.

    Args:
        truth: The objects' masks, bool (O, H, W) for each frame.
        predicted: The merged answers, bool (N, H, W) for each frame, N at most 20.
        void: Pixels that do not count, bool (H, W) or None for each frame; default none.

    Returns:
        One for each object, in the order of ``truth`` (the toolkit's tables list them in the order of the answers).

    Raises:
        EvaluationError: When there are no frames or too many answers, or masks are not bool or not of one size.
        MissingDependencyError: When SciPy is not installed.
    """
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingDependencyError(
            "matching answers to objects needs SciPy: pip install 'refervos[eval]'."
        ) from error
    parts = []
    for frames in _batches(truth, predicted, void):
        objects, answers = len(frames[0][0]), len(frames[0][1])
        if answers > MOST_ANSWERS:
            raise EvaluationError(f"there are {answers} answers about a video; the toolkit allows {MOST_ANSWERS}.")
        compared = max(objects, answers)
        parts.append([[_pair_scores(frames, i, k) for k in range(compared)] for i in range(objects)])
    scores = np.concatenate(parts, axis=-1)  # (O, compared, J and F, T)
    chosen = linear_sum_assignment(scores.mean(axis=3).mean(axis=2).T, maximize=True)
    return [
        ObjectScores(j=scores[i, k, 0], f=scores[i, k, 1], answer=int(k) if k < answers else None)
        for k, i in sorted(zip(*chosen, strict=True), key=lambda pair: pair[1])
    ]


def _batches(
    truth: Iterable[Mask], predicted: Iterable[Mask], void: Iterable[Mask | None] | None
) -> Iterator[Sequence[Frame]]:
    """A few frames at a time, checked to have the objects and answers of the first frame."""
    counts = None
    for frames in batches(in_step(truth=truth, prediction=predicted, void=void), FRAMES_AT_ONCE):
        for objects, answers, _ in frames:
            counts = counts or (len(objects), len(answers))
            if counts != (len(objects), len(answers)):
                raise EvaluationError(
                    f"a frame has {len(objects)} objects and {len(answers)} answers, where the first frame has "
                    f"{counts[0]} and {counts[1]}; all frames must have a mask of each."
                )
        yield frames
    if counts is None:
        raise EvaluationError("truth and prediction have no frames; at least one is needed to score a video.")


def _pair_scores(frames: Sequence[Frame], i: int, k: int) -> tuple[Scores, Scores]:
    """J and F of an object with an answer, an empty one where there is no such answer."""
    return video_scores(
        [objects[i] for objects, _, _ in frames],
        [answers[k] if k < len(answers) else np.zeros_like(objects[i]) for objects, answers, _ in frames],
        [void for _, _, void in frames],
    )
