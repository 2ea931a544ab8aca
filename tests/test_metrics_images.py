"""What tables of referring image segmentation show, by hand: overall and mean IoU, P@K, N-acc and T-acc."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from predicted import write_masks
from refervos.data.sample import Sample, Video
from refervos.errors import EvaluationError
from refervos.evaluation.expressions import score_expression
from refervos.evaluation.measures import columns_of, lines_of, measure
from refervos.evaluation.predictions import Predictions

Pair = tuple[np.ndarray, np.ndarray]
"""A true and a predicted mask."""


@dataclass(frozen=True)
class Drawn:
    """One image, and what a sentence means in it."""

    truth: np.ndarray
    names: Sequence[str] = ("00000",)
    annotated: Sequence[int] = (0,)

    def read(self, index: int) -> np.ndarray:
        """The image, black."""
        return np.zeros((*self.truth.shape, 3), dtype=np.uint8)

    def mask(self, index: int) -> np.ndarray:
        """What is meant."""
        return self.truth

    def void(self, index: int) -> None:
        """All pixels count."""


def row(*pixels: int, length: int = 10) -> np.ndarray:
    """A mask of one row with some pixels."""
    mask = np.zeros((1, length), dtype=bool)
    mask[0, list(pixels)] = True
    return mask


def found(folder: Path, *pairs: Pair) -> dict[str, float | None]:
    """What the table says of answers that lie in files, as shares; None where it says nothing."""
    results = []
    for number, (truth, predicted) in enumerate(pairs):
        image = Drawn(truth)
        sample = Sample(Video(str(number), image), "0", "it", image, has_target=bool(truth.any()))
        write_masks(folder, [sample], lambda sample, index, mask=predicted: mask)  # type: ignore[misc]
        results.append(score_expression(sample, Predictions.open(folder)))
    wanted = (*columns_of("image"), *lines_of("image"))
    values = measure(results, wanted)
    return {one.name: None if value is None else value.mean / 100 for one, value in zip(wanted, values, strict=True)}


SOME = [
    (row(0, 1), row(0, 1)),  # IoU 1
    (row(0, 1), row(0)),  # IoU 1/2
    (row(0, 1, 2, 3), row(0, 1, 2, 4)),  # IoU 3/5
    (row(0), row(5, 6, 7)),  # IoU 0
]


def test_ious_by_hand(tmp_path: Path) -> None:
    scores = found(tmp_path, *SOME)
    assert scores["oIoU"] == pytest.approx((2 + 1 + 3 + 0) / (2 + 2 + 5 + 4))
    assert scores["mIoU"] == pytest.approx((1 + 1 / 2 + 3 / 5 + 0) / 4)


def test_precision_wants_more_than_the_threshold(tmp_path: Path) -> None:
    scores = found(tmp_path, *SOME)
    assert [scores[f"P@{k}"] for k in (0.5, 0.6, 0.7, 0.8, 0.9)] == [2 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4]


def test_sentences_that_mean_nothing(tmp_path: Path) -> None:
    """GRES: correctly empty is IoU 1, a false positive IoU 0 and more union; neither counts for P@K."""
    right, wrong, missed = (row(), row()), (row(), row(1, 2, 3)), (row(4, 5), row())
    scores = found(tmp_path, *SOME, right, wrong, missed)
    assert scores["oIoU"] == pytest.approx(6 / (13 + 0 + 3 + 2))
    assert scores["mIoU"] == pytest.approx((2.1 + 1 + 0 + 0) / 7)
    assert scores["P@0.5"] == pytest.approx(2 / 5)
    assert (scores["N-acc"], scores["T-acc"]) == (1 / 2, 4 / 5)


def test_without_anything_to_be_about_there_is_no_number(tmp_path: Path) -> None:
    assert set(found(tmp_path).values()) == {None}
    nothing = found(tmp_path, (row(), row()))
    assert nothing["mIoU"] == nothing["N-acc"] == 1.0
    assert nothing["oIoU"] is nothing["P@0.5"] is nothing["T-acc"] is None


def test_sizes_must_match(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"9.*10"):
        found(tmp_path, (row(0), row(0, length=9)))
