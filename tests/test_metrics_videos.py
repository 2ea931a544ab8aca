"""Metrics of Long-RVOS and ReVOS, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from refervos.metrics.longvideo import temporal_iou, video_iou
from refervos.metrics.revos import robustness

YES, NO = True, False


def test_temporal_and_video_iou_by_hand() -> None:
    shown = np.array([YES, YES, YES, NO, NO, NO])
    answered = np.array([NO, YES, YES, YES, NO, NO])
    j = np.array([0.0, 0.5, 0.9, 0.0, 1.0, 1.0])
    assert temporal_iou(shown, answered) == 2 / 4
    assert video_iou(j, shown, answered) == (0.5 + 0.9) / 4


def test_never_shown_and_never_answered_is_right() -> None:
    nothing = np.zeros(3, dtype=bool)
    assert temporal_iou(nothing, nothing) == video_iou(np.ones(3), nothing, nothing) == 1.0


def test_answers_to_what_never_shows_are_wrong() -> None:
    nothing, always = np.zeros(3, dtype=bool), np.ones(3, dtype=bool)
    for shown, answered in ((nothing, always), (always, nothing)):
        assert temporal_iou(shown, answered) == video_iou(np.zeros(3), shown, answered) == 0.0


def test_robustness_by_hand() -> None:
    truth = np.array([[YES, YES, NO, NO, NO, NO]])
    foreground = np.array([[YES, YES, YES, YES, NO, NO]])
    predicted = np.array([[YES, NO, YES, NO, NO, NO]])
    assert robustness(truth, predicted, foreground) == pytest.approx(1 - 1 / 4, abs=1e-6)
    assert robustness(truth, truth, foreground) == 1.0
    assert robustness(np.zeros_like(truth), foreground, foreground) == pytest.approx(0.0, abs=1e-6)
    assert robustness(truth, np.ones_like(truth), truth) == 0.0  # 4 wrong pixels of 2: not below 0


def test_robustness_without_foreground() -> None:
    nothing, one = np.zeros((1, 4), dtype=bool), np.array([[YES, NO, NO, NO]])
    assert robustness(nothing, nothing, nothing) == 1.0
    assert robustness(nothing, one, nothing) == 0.0
