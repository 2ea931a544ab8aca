"""The protocols of Ref-DAVIS17: the published one, which matches answers to objects, and a strict one.

Published numbers (ReferFormer, SAMWISE and most others) come from ``inference_davis.py`` of ReferFormer and the
*unsupervised* task of davis2017-evaluation, which was made for methods that are not told which object is which. Of one
annotator's expressions about a video, all answers are merged so that they do not overlap (``merge_objects``), and each
object is then scored with whichever answer suits all of them best (``matched_scores``): a model that confuses two
objects is not punished. Void pixels do not count, all frames do, first and last too. Objects are averaged over all
videos (``summarise_objects``), and the four annotators after that (``mean_over_annotators``).

The strict protocol (``strict_scores``) compares each answer with the object that its expression means.

That task reads ``Annotations_unsupervised``, and takes as objects the labels up to the largest one in the first frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

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

RECALL_THRESHOLD = 0.5


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


class Statistics(NamedTuple):
    """What DAVIS tables tell of J or F.

    Attributes:
        mean: Over all frames, in [0, 1].
        recall: Share of the frames that score more than 0.5, in [0, 1].
        decay: Mean of the first quarter of the frames minus that of the last, in [-1, 1].
    """

    mean: float
    recall: float
    decay: float


@dataclass(frozen=True)
class DavisSummary:
    """Means over objects, or over annotators.

    Attributes:
        j: J-Mean, J-Recall and J-Decay.
        f: F-Mean, F-Recall and F-Decay.
    """

    j: Statistics
    f: Statistics

    @property
    def j_and_f(self) -> float:
        """Mean of J-Mean and F-Mean, in [0, 1]."""
        return (self.j.mean + self.f.mean) / 2


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


def strict_scores(
    truth: Iterable[Mask], predicted: Iterable[Mask], void: Iterable[Mask | None] | None = None
) -> list[ObjectScores]:
    """Score each answer with the object that its expression means.

    Args:
        truth: bool (O, H, W) for each frame.
        predicted: bool (O, H, W) for each frame, answer ``i`` to the expression about object ``i``; merged or not.
        void: Pixels that do not count, bool (H, W) or None for each frame; default none.

    Returns:
        One for each object.

    Raises:
        EvaluationError: When there are no frames, not as many answers as objects, or masks are not bool or not of one
            size.
    """
    parts = []
    for frames in _batches(truth, predicted, void):
        objects, answers = len(frames[0][0]), len(frames[0][1])
        if objects != answers:
            raise EvaluationError(f"there are {answers} answers about {objects} objects; each must have its own.")
        parts.append([_pair_scores(frames, i, i) for i in range(objects)])
    return [ObjectScores(j, f, answer=i) for i, (j, f) in enumerate(np.concatenate(parts, axis=-1))]


def statistics(values: Scores) -> Statistics:
    """Mean, recall and decay of one object's J or F (``db_statistics`` of davis2017-evaluation).

    Args:
        values: float (T,), of every frame. Quarters share the frame between them. (The toolkit's frame numbers
            overflow beyond 256 frames; here they do not.)
    """
    ends = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[ends[0] : ends[1] + 1], values[ends[3] : ends[4] + 1]
    return Statistics(
        float(values.mean()), float((values > RECALL_THRESHOLD).mean()), float(first.mean() - last.mean())
    )


def summarise_objects(objects: Iterable[ObjectScores]) -> DavisSummary:
    """Average objects, those of all videos together, each counting the same.

    Args:
        objects: At least one.
    """
    scored = list(objects)
    return DavisSummary(
        j=_mean([statistics(scores.j) for scores in scored]), f=_mean([statistics(scores.f) for scores in scored])
    )


def mean_over_annotators(summaries: Sequence[DavisSummary]) -> DavisSummary:
    """Average the summaries of the annotators.

    Args:
        summaries: At least one; four in Ref-DAVIS17.
    """
    return DavisSummary(j=_mean([one.j for one in summaries]), f=_mean([one.f for one in summaries]))


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


def _mean(several: Sequence[Statistics]) -> Statistics:
    return Statistics(*(fmean(values) for values in zip(*several, strict=True)))
