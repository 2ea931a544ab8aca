"""Ref-DAVIS17: merging and matching, by hand and against the toolkit's way of computing them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import metrics_oracle
from refervos.errors import EvaluationError, MissingDependencyError
from refervos.metrics.ref_davis import matched_scores, merge_objects


def clip(seed: int, objects: int, frames: int = 11, height: int = 20, width: int = 30) -> np.ndarray:
    """Boxes that drift, bool (T, O, H, W)."""
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


def test_masks_can_be_merged_too() -> None:
    masks = np.array([[[True, False, False]], [[True, True, False]]])
    assert merge_objects(masks).tolist() == [[[True, False, False]], [[False, True, False]]]


# Matching


def toolkit_scores(truth: np.ndarray, predicted: np.ndarray, void: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """J and F (O, T) the toolkit's way: whole videos, every pair, missing answers as zeros."""
    missing = max(0, truth.shape[1] - predicted.shape[1])
    predicted = np.concatenate([predicted, np.zeros_like(truth[:, :missing])], axis=1)
    j, f = (np.zeros((predicted.shape[1], truth.shape[1], len(truth))) for _ in range(2))
    for i in range(truth.shape[1]):
        for k in range(predicted.shape[1]):
            j[k, i], f[k, i] = metrics_oracle.scores(truth[:, i], predicted[:, k], void)
    chosen = linear_sum_assignment(-(j.mean(axis=2) + f.mean(axis=2)) / 2)
    by_object = np.argsort(chosen[1])
    return j[chosen][by_object], f[chosen][by_object]


@pytest.mark.parametrize(("objects", "answers"), [(1, 1), (3, 3), (3, 1), (2, 4)])
def test_matched_scores_are_the_toolkits(objects: int, answers: int) -> None:
    truth = clip(1, objects)
    truth[3:5, 0] = False  # an object that is away for a while
    answered = np.roll(clip(1, max(objects, answers)), (1, 2), (2, 3))[:, ::-1][:, :answers]
    void = np.random.default_rng(2).random((11, 20, 30)) < 0.05
    for holes in (None, void):
        expected_j, expected_f = toolkit_scores(truth, answered, holes)
        found = matched_scores(truth, answered, holes)
        np.testing.assert_allclose([scores.j for scores in found], expected_j, atol=1e-12, rtol=0)
        np.testing.assert_allclose([scores.f for scores in found], expected_f, atol=1e-12, rtol=0)


def test_swapped_answers_are_forgiven() -> None:
    truth = np.zeros((3, 2, 10, 20), dtype=bool)
    truth[:, 0, 2:6, 2:8] = truth[:, 1, 3:9, 12:18] = True
    swapped = truth[:, ::-1]
    matched = matched_scores(truth, swapped)
    assert [scores.answer for scores in matched] == [1, 0]
    assert all((scores.j == 1).all() and (scores.f == 1).all() for scores in matched)


def test_an_object_without_answer_is_answered_with_nothing() -> None:
    truth = np.zeros((4, 2, 10, 20), dtype=bool)
    truth[:, 0, 2:6, 2:8] = truth[:2, 1, 3:9, 12:18] = True  # the second leaves after two frames
    found = matched_scores(truth, truth[:, :1])
    assert [scores.answer for scores in found] == [0, None]
    assert found[1].j.tolist() == found[1].f.tolist() == [0, 0, 1, 1]


def test_frames_may_come_one_by_one() -> None:
    truth, predicted = clip(3, 2), np.roll(clip(3, 2), 1, 3)
    void = [None] * 10 + [np.ones((20, 30), dtype=bool)]
    whole = matched_scores(truth, predicted, void)
    streamed = matched_scores(iter(truth), iter(predicted), iter(void))
    assert all((a.j == b.j).all() and (a.f == b.f).all() for a, b in zip(whole, streamed, strict=True))
    assert all(scores.j[-1] == 1 for scores in whole)


def test_too_many_answers_are_refused() -> None:
    with pytest.raises(EvaluationError, match="21 answers"):
        matched_scores(np.zeros((1, 1, 4, 4), dtype=bool), np.zeros((1, 21, 4, 4), dtype=bool))


def test_mistakes_are_said() -> None:
    one, two = np.zeros((2, 1, 4, 4), dtype=bool), np.zeros((2, 2, 4, 4), dtype=bool)
    with pytest.raises(EvaluationError, match="2 objects"):
        matched_scores([one[0], two[0]], [one[0], two[0]])
    with pytest.raises(EvaluationError, match="no frames"):
        matched_scores([], [])
    with pytest.raises(EvaluationError, match="prediction ended"):
        matched_scores(one, one[:1])


def test_missing_scipy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[eval\]'"):
        matched_scores(clip(1, 1), clip(1, 1))
