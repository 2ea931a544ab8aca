"""Metrics of Long-RVOS and ReVOS on small examples."""

from __future__ import annotations

import numpy as np
import pytest

from refervos.metrics.longvideo import temporal_iou, video_iou
from refervos.metrics.revos import robustness

YES, NO = True, False


def test_temporal_iou_counts_frames_and_video_iou_adds_their_j() -> None:
    visible = np.array([YES, YES, YES, NO, NO, NO])
    predicted = np.array([NO, YES, YES, YES, NO, NO])
    j = np.array([0.0, 0.5, 0.9, 0.0, 1.0, 1.0])
    assert temporal_iou(visible, predicted) == 2 / 4
    assert video_iou(j, visible, predicted) == (0.5 + 0.9) / 4


def test_an_empty_prediction_of_an_absent_target_scores_1() -> None:
    nothing = np.zeros(3, dtype=bool)
    assert temporal_iou(nothing, nothing) == video_iou(np.ones(3), nothing, nothing) == 1.0


def test_predictions_of_an_absent_target_and_missed_targets_score_0() -> None:
    nothing, always = np.zeros(3, dtype=bool), np.ones(3, dtype=bool)
    for visible, predicted in ((nothing, always), (always, nothing)):
        assert temporal_iou(visible, predicted) == video_iou(np.zeros(3), visible, predicted) == 0.0


def test_robustness_is_lost_by_pixels_outside_the_ground_truth() -> None:
    ground_truth = np.array([[YES, YES, NO, NO, NO, NO]])
    foreground = np.array([[YES, YES, YES, YES, NO, NO]])
    predicted = np.array([[YES, NO, YES, NO, NO, NO]])
    assert robustness(ground_truth, predicted, foreground) == pytest.approx(1 - 1 / 4, abs=1e-6)
    assert robustness(ground_truth, ground_truth, foreground) == 1.0
    assert robustness(np.zeros_like(ground_truth), foreground, foreground) == pytest.approx(0.0, abs=1e-6)
    assert (
        robustness(ground_truth, np.ones_like(ground_truth), ground_truth) == 0.0
    )  # 4 wrong pixels, a foreground of 2: not below 0


def test_robustness_without_foreground_is_1_or_0() -> None:
    nothing, one = np.zeros((1, 4), dtype=bool), np.array([[YES, NO, NO, NO]])
    assert robustness(nothing, nothing, nothing) == 1.0
    assert robustness(nothing, one, nothing) == 0.0
