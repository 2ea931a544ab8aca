"""Metrics of Long-RVOS and ReVOS, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from refervos.metrics.longvideo import temporal_iou, video_iou
from refervos.metrics.revos import RevosScores, pixel_accuracy, revos_summary, robustness

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


def test_pixel_accuracy_by_hand() -> None:
    truth = np.array([[YES, YES, NO, NO, NO]])
    assert pixel_accuracy(truth, np.array([[YES, NO, YES, NO, NO]])) == 3 / 5


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


def test_both_numbers_called_robustness() -> None:
    def scores(robustness: float, j: float = 0.5) -> RevosScores:
        return RevosScores(j=j, f=0.7, accuracy=0.9, robustness=robustness)

    summary = revos_summary(
        [
            ("referring", scores(0.9, j=0.2)),
            ("referring", scores(0.7, j=0.4)),
            ("reasoning", scores(0.6, j=0.6)),
            ("hallucination", scores(0.1)),
            ("hallucination", scores(0.3)),
        ]
    )
    assert list(summary) == ["referring", "reasoning", "hallucination", "overall"]
    assert summary["hallucination"].robustness == pytest.approx(0.2)  # what papers show
    assert summary["overall"].robustness == pytest.approx((0.8 + 0.6) / 2)  # what VISA's script prints
    assert summary["overall"].j == pytest.approx((0.3 + 0.6) / 2)  # kinds count the same, not expressions
    assert summary["overall"].j_and_f == pytest.approx((0.45 + 0.7) / 2)
    assert summary["overall"].accuracy == pytest.approx(0.9)


def test_kinds_that_are_not_there_have_no_row() -> None:
    assert set(revos_summary([("referring", RevosScores(1.0, 1.0, 1.0, 1.0))])) == {"referring"}
