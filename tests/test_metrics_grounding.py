"""Visual grounding: boxes around masks, their IoU, and predictions with several objects."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from skimage.morphology import remove_small_objects

from refervos.errors import EvaluationError, MissingDependencyError
from refervos.metrics.visual_grounding import (
    box_iou,
    boxes_around,
    chosen_boxes,
    grounding_iou,
    share_above,
    without_small_blobs,
)


def mask(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    """Return the mask of a filled box, bool (20, 30)."""
    filled = np.zeros((20, 30), bool)
    filled[top:bottom, left:right] = True
    return filled


def test_a_box_encloses_all_pixels_of_a_mask() -> None:
    both = mask(3, 2, 8, 6) | mask(20, 10, 25, 19)
    np.testing.assert_array_equal(boxes_around(both), [3, 2, 25, 19])
    np.testing.assert_array_equal(boxes_around(both, published=True), [3, 2, 24, 18])


def test_masks_without_a_pixel_have_no_box() -> None:
    boxes = boxes_around(np.stack([mask(3, 2, 8, 6), mask(0, 0, 0, 0)])[None])
    assert boxes.shape == (1, 2, 4)
    assert np.isnan(boxes[0, 1]).all()
    assert not np.isnan(boxes[0, 0]).any()


def test_box_iou_is_that_of_filled_masks() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        (l1, l2), (t1, t2) = generator.integers(0, 20, 2), generator.integers(0, 10, 2)
        (w1, w2), (h1, h2) = generator.integers(1, 10, 2), generator.integers(1, 10, 2)
        one, other = mask(l1, t1, l1 + w1, t1 + h1), mask(l2, t2, l2 + w2, t2 + h2)
        expected = (one & other).sum() / (one | other).sum()
        assert box_iou(boxes_around(one), boxes_around(other)) == pytest.approx(expected)


def test_a_missing_box_and_a_box_without_area_have_iou_0() -> None:
    box, none, line = np.array([1.0, 2, 5, 6]), np.full(4, np.nan), np.array([1.0, 2, 1, 6])
    np.testing.assert_array_equal(box_iou(np.stack([box, none, line]), np.stack([none, none, line])), [0, 0, 0])


def test_the_score_of_a_video_is_the_mean_over_annotated_frames() -> None:
    truth = boxes_around(np.stack([mask(0, 0, 10, 10)] * 4))
    predicted = boxes_around(np.stack([mask(0, 0, 10, 10), mask(0, 0, 10, 5), mask(20, 0, 25, 5), mask(0, 0, 0, 0)]))
    assert grounding_iou(truth, predicted) == pytest.approx((1 + 0.5 + 0 + 0) / 4)


def test_scores_equal_to_the_threshold_do_not_count() -> None:
    assert share_above([0.3, 0.31, 0.9], 0.3) == pytest.approx(2 / 3)
    with pytest.raises(EvaluationError, match="no scores"):
        share_above([], 0.5)


def test_with_several_objects_the_last_box_counts_even_if_it_is_missing() -> None:
    first, last = np.stack([mask(0, 0, 5, 5)] * 2), np.stack([mask(10, 10, 20, 20), mask(0, 0, 0, 0)])
    masks = np.stack([first, last])  # (N, T, H, W)
    np.testing.assert_array_equal(chosen_boxes(masks)[1], [0, 0, 5, 5])
    np.testing.assert_array_equal(chosen_boxes(masks, "last")[0], [10, 10, 20, 20])
    assert np.isnan(chosen_boxes(masks, "last")[1]).all()
    np.testing.assert_array_equal(chosen_boxes(masks, "union"), [[0, 0, 20, 20], [0, 0, 5, 5]])
    assert np.isnan(chosen_boxes(masks[:0])).all()


def test_small_blobs_are_removed_as_by_scikit_image() -> None:
    generator = np.random.default_rng(3)
    for smallest in (1, 4, 20):
        noise = generator.random((40, 50)) < 0.45
        expected = remove_small_objects(noise, max_size=smallest - 1)
        np.testing.assert_array_equal(without_small_blobs(noise, smallest), expected)
    assert not without_small_blobs(np.zeros((4, 4), bool)).any()


def test_invalid_boxes_and_masks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="ground-truth boxes have shape"):
        grounding_iou(np.zeros((2, 4)), np.zeros((3, 4)))
    with pytest.raises(EvaluationError, match="at least one"):
        grounding_iou(np.zeros((0, 4)), np.zeros((0, 4)))
    with pytest.raises(EvaluationError, match=r"\(objects, frames, height, width\)"):
        chosen_boxes(np.zeros((2, 4, 4), bool))
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingDependencyError, match=r"refervos\[eval\]"):
        without_small_blobs(np.ones((4, 4), bool))
