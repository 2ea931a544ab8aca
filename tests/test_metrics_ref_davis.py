"""Merging and matching of Ref-DAVIS17 on small examples and against the toolkit's way of computing them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import metrics_oracle
from refervos.errors import EvaluationError, MissingDependencyError
from refervos.metrics.ref_davis import matched_scores, merge_objects


def clip(seed: int, objects: int, frames: int = 11, height: int = 20, width: int = 30) -> np.ndarray:
    """Return masks of drifting boxes, bool (T, O, H, W)."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((frames, objects, height, width), dtype=bool)
    for i in range(objects):
        top, left, drift = rng.integers(0, height - 8), rng.integers(0, width - 12), rng.integers(-1, 2)
        for t in range(frames):
            masks[t, i, top : top + 8, max(0, left + drift * t) : left + drift * t + 12] = True
    return masks


# Merging


def test_a_pixel_goes_to_the_most_probable_object() -> None:
    probabilities = np.array([[[0.6, 0.9, 0.4, 0.5, 0.7]], [[0.8, 0.7, 0.3, 0.2, 0.7]]])
    assert merge_objects(probabilities).tolist() == [[[False, True, False, False, True]], [[True] + [False] * 4]]


def test_of_overlapping_masks_the_first_keeps_a_pixel() -> None:
    masks = np.array([[[True, False, False]], [[True, True, False]]])
    assert merge_objects(masks).tolist() == [[[True, False, False]], [[False, True, False]]]


# Matching


def toolkit_scores(
    ground_truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return J and F (O, T) computed as by the toolkit: whole videos, every pair, zeros for missing predictions."""
    missing = max(0, ground_truth.shape[1] - predicted.shape[1])
    predicted = np.concatenate([predicted, np.zeros_like(ground_truth[:, :missing])], axis=1)
    j, f = (np.zeros((predicted.shape[1], ground_truth.shape[1], len(ground_truth))) for _ in range(2))
    for i in range(ground_truth.shape[1]):
        for k in range(predicted.shape[1]):
            j[k, i], f[k, i] = metrics_oracle.scores(ground_truth[:, i], predicted[:, k], void)
    chosen = linear_sum_assignment(-(j.mean(axis=2) + f.mean(axis=2)) / 2)
    by_object = np.argsort(chosen[1])
    return j[chosen][by_object], f[chosen][by_object]


@pytest.mark.parametrize(("objects", "predictions"), [(1, 1), (3, 3), (3, 1), (2, 4)])
def test_matched_scores_are_the_toolkits(objects: int, predictions: int) -> None:
    ground_truth = clip(1, objects)
    ground_truth[3:5, 0] = False  # an object that is absent for a while
    predicted = np.roll(clip(1, max(objects, predictions)), (1, 2), (2, 3))[:, ::-1][:, :predictions]
    void = np.random.default_rng(2).random((11, 20, 30)) < 0.05
    for holes in (None, void):
        expected_j, expected_f = toolkit_scores(ground_truth, predicted, holes)
        found = matched_scores(ground_truth, predicted, holes)
        np.testing.assert_allclose([scores.j for scores in found], expected_j, atol=1e-12, rtol=0)
        np.testing.assert_allclose([scores.f for scores in found], expected_f, atol=1e-12, rtol=0)


def test_swapped_predictions_cost_nothing() -> None:
    ground_truth = np.zeros((3, 2, 10, 20), dtype=bool)
    ground_truth[:, 0, 2:6, 2:8] = ground_truth[:, 1, 3:9, 12:18] = True
    swapped = ground_truth[:, ::-1]
    matched = matched_scores(ground_truth, swapped)
    assert [scores.prediction for scores in matched] == [1, 0]
    assert all((scores.j == 1).all() and (scores.f == 1).all() for scores in matched)


def test_an_object_without_prediction_is_scored_against_an_empty_one() -> None:
    ground_truth = np.zeros((4, 2, 10, 20), dtype=bool)
    ground_truth[:, 0, 2:6, 2:8] = ground_truth[:2, 1, 3:9, 12:18] = True  # the second leaves after two frames
    found = matched_scores(ground_truth, ground_truth[:, :1])
    assert [scores.prediction for scores in found] == [0, None]
    assert found[1].j.tolist() == found[1].f.tolist() == [0, 0, 1, 1]


def test_frames_may_come_one_by_one() -> None:
    ground_truth, predicted = clip(3, 2), np.roll(clip(3, 2), 1, 3)
    void = [None] * 10 + [np.ones((20, 30), dtype=bool)]
    whole = matched_scores(ground_truth, predicted, void)
    streamed = matched_scores(iter(ground_truth), iter(predicted), iter(void))
    assert all((a.j == b.j).all() and (a.f == b.f).all() for a, b in zip(whole, streamed, strict=True))
    assert all(scores.j[-1] == 1 for scores in whole)


def test_too_many_predictions_are_refused() -> None:
    with pytest.raises(EvaluationError, match="21 predictions for a video; the toolkit allows 20"):
        matched_scores(np.zeros((1, 1, 4, 4), dtype=bool), np.zeros((1, 21, 4, 4), dtype=bool))


def test_frames_that_do_not_fit_together_are_refused() -> None:
    one, two = np.zeros((2, 1, 4, 4), dtype=bool), np.zeros((2, 2, 4, 4), dtype=bool)
    with pytest.raises(
        EvaluationError, match="a frame has 2 objects and 2 predictions, but the first frame has 1 and 1"
    ):
        matched_scores([one[0], two[0]], [one[0], two[0]])
    with pytest.raises(EvaluationError, match="no frames"):
        matched_scores([], [])
    with pytest.raises(EvaluationError, match="prediction ended"):
        matched_scores(one, one[:1])


def test_without_scipy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[eval\]'"):
        matched_scores(clip(1, 1), clip(1, 1))
