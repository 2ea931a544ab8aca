"""N-acc, T-acc and the final score, against numbers worked out by hand and published ones."""

from __future__ import annotations

import numpy as np
import pytest

from refervos.metrics.presence import final_score, is_empty, presence_accuracies


def test_by_hand() -> None:
    has_target = [True, True, True, True, False, False, False]
    predicted_empty = [False, False, False, True, True, True, False]
    found = presence_accuracies(has_target, predicted_empty)
    assert found.target == 3 / 4
    assert found.no_target == 2 / 3


def test_always_answering_something() -> None:
    found = presence_accuracies([True, False], [False, False])
    assert (found.target, found.no_target) == (1.0, 0.0)


def test_without_samples_there_is_no_number() -> None:
    assert presence_accuracies([True], [False]).no_target is None
    assert presence_accuracies([False], [False]).target is None


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="zip"):
        presence_accuracies([True, False], [True])


def test_one_pixel_in_one_frame_is_an_answer() -> None:
    masks = np.zeros((5, 8, 8), dtype=bool)
    assert is_empty(masks)
    masks[3, 7, 0] = True
    assert not is_empty(masks)


def test_final_score_of_a_published_row() -> None:
    assert final_score(53.09, 41.38, 92.53) == pytest.approx(62.33, abs=0.005)  # LSVOS 2026, third place
