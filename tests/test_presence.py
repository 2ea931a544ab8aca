"""N-acc, T-acc and the final score, on small examples and against published numbers."""

from __future__ import annotations

import numpy as np
import pytest

from refervos.metrics.presence import final_score, is_empty, presence_accuracies


def test_accuracies_are_fractions_of_each_kind_of_sample() -> None:
    has_target = [True, True, True, True, False, False, False]
    predicted_empty = [False, False, False, True, True, True, False]
    found = presence_accuracies(has_target, predicted_empty)
    assert found.target == 3 / 4
    assert found.no_target == 2 / 3


def test_a_model_that_always_predicts_something_has_no_n_acc() -> None:
    found = presence_accuracies([True, False], [False, False])
    assert (found.target, found.no_target) == (1.0, 0.0)


def test_accuracies_without_samples_are_none() -> None:
    assert presence_accuracies([True], [False]).no_target is None
    assert presence_accuracies([False], [False]).target is None


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        presence_accuracies([True, False], [True])


def test_one_pixel_in_one_frame_is_no_empty_prediction() -> None:
    masks = np.zeros((5, 8, 8), dtype=bool)
    assert is_empty(masks)
    masks[3, 7, 0] = True
    assert not is_empty(masks)


def test_the_final_score_is_that_of_a_published_row() -> None:
    assert final_score(53.09, 41.38, 92.53) == pytest.approx(62.33, abs=0.005)  # LSVOS 2026, third place
