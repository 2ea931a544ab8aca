"""Metrics of referring image segmentation on small examples: overall and mean IoU, P@K, N-acc and T-acc."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from predicted import write_masks
from refervos.data.sample import Sample, Video
from refervos.errors import EvaluationError
from refervos.evaluation.expression_scores import score_expression
from refervos.evaluation.measures import measure, summary_measures, table_measures
from refervos.evaluation.predictions import Predictions

Pair = tuple[np.ndarray, np.ndarray]
"""A ground-truth and a predicted mask."""


@dataclass(frozen=True)
class OneImage:
    """A black image that is also its own ground truth."""

    ground_truth: np.ndarray
    names: Sequence[str] = ("00000",)
    annotated: Sequence[int] = (0,)

    def read(self, index: int) -> np.ndarray:
        """Return the image."""
        return np.zeros((*self.ground_truth.shape, 3), dtype=np.uint8)

    def mask(self, index: int) -> np.ndarray:
        """Return the ground-truth mask."""
        return self.ground_truth

    def void(self, index: int) -> None:
        """Return None: all pixels count."""


def row(*pixels: int, length: int = 10) -> np.ndarray:
    """Return a mask of one row in which these pixels are set."""
    mask = np.zeros((1, length), dtype=bool)
    mask[0, list(pixels)] = True
    return mask


def measured(folder: Path, *pairs: Pair) -> dict[str, float | None]:
    """Write predictions as files, score them and return the measures as fractions, None where there is no number."""
    results = []
    for number, (ground_truth, predicted) in enumerate(pairs):
        image = OneImage(ground_truth)
        sample = Sample(Video(str(number), image), "0", "it", image, has_target=bool(ground_truth.any()))
        write_masks(folder, [sample], lambda sample, index, mask=predicted: mask)  # type: ignore[misc]
        results.append(score_expression(sample, Predictions.open(folder)))
    measures = (*table_measures("image"), *summary_measures("image"))
    values = measure(results, measures)
    return {one.name: None if value is None else value.mean / 100 for one, value in zip(measures, values, strict=True)}


PAIRS = [
    (row(0, 1), row(0, 1)),  # IoU 1
    (row(0, 1), row(0)),  # IoU 1/2
    (row(0, 1, 2, 3), row(0, 1, 2, 4)),  # IoU 3/5
    (row(0), row(5, 6, 7)),  # IoU 0
]


def test_overall_iou_weighs_pixels_and_mean_iou_images(tmp_path: Path) -> None:
    scores = measured(tmp_path, *PAIRS)
    assert scores["oIoU"] == pytest.approx((2 + 1 + 3 + 0) / (2 + 2 + 5 + 4))
    assert scores["mIoU"] == pytest.approx((1 + 1 / 2 + 3 / 5 + 0) / 4)


def test_precision_counts_only_ious_above_the_threshold(tmp_path: Path) -> None:
    scores = measured(tmp_path, *PAIRS)
    assert [scores[f"P@{k}"] for k in (0.5, 0.6, 0.7, 0.8, 0.9)] == [2 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4]


def test_expressions_without_target_are_scored_as_in_gres(tmp_path: Path) -> None:
    """A correctly empty prediction has IoU 1, a false positive IoU 0 and adds to the union; P@K ignores both."""
    empty, false_alarm, missed = (row(), row()), (row(), row(1, 2, 3)), (row(4, 5), row())
    scores = measured(tmp_path, *PAIRS, empty, false_alarm, missed)
    assert scores["oIoU"] == pytest.approx(6 / (13 + 0 + 3 + 2))
    assert scores["mIoU"] == pytest.approx((2.1 + 1 + 0 + 0) / 7)
    assert scores["P@0.5"] == pytest.approx(2 / 5)
    assert (scores["N-acc"], scores["T-acc"]) == (1 / 2, 4 / 5)


def test_measures_without_samples_are_none(tmp_path: Path) -> None:
    assert set(measured(tmp_path).values()) == {None}
    nothing = measured(tmp_path, (row(), row()))
    assert nothing["mIoU"] == nothing["N-acc"] == 1.0
    assert nothing["oIoU"] is nothing["P@0.5"] is nothing["T-acc"] is None


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="is 9x1; the frames are 10x1"):
        measured(tmp_path, (row(0), row(0, length=9)))
