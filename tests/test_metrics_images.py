"""Image metrics by hand, and mAP against pycocotools."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as run_lengths
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from refervos.errors import EvaluationError
from refervos.metrics.images import AP_THRESHOLDS, ImageScores, average_precision


def row(*pixels: int, length: int = 10) -> np.ndarray:
    """A mask of one row with some pixels."""
    mask = np.zeros((1, length), dtype=bool)
    mask[0, list(pixels)] = True
    return mask


def scores_of(*pairs: tuple[np.ndarray, np.ndarray]) -> ImageScores:
    scores = ImageScores()
    for truth, predicted in pairs:
        scores.add(truth, predicted)
    return scores


SOME = [
    (row(0, 1), row(0, 1)),  # IoU 1
    (row(0, 1), row(0)),  # IoU 1/2
    (row(0, 1, 2, 3), row(0, 1, 2, 4)),  # IoU 3/5
    (row(0), row(5, 6, 7)),  # IoU 0
]


def test_ious_by_hand() -> None:
    scores = scores_of(*SOME)
    assert scores.overall_iou == (2 + 1 + 3 + 0) / (2 + 2 + 5 + 4)
    assert scores.mean_iou == pytest.approx((1 + 1 / 2 + 3 / 5 + 0) / 4)


def test_precision_wants_more_than_the_threshold() -> None:
    scores = scores_of(*SOME)
    assert [scores.precision_at(k) for k in (0.5, 0.6, 0.7, 0.9, 0.0)] == [2 / 4, 1 / 4, 1 / 4, 1 / 4, 3 / 4]


def test_sentences_that_mean_nothing() -> None:
    """GRES: correctly empty is IoU 1, a false positive IoU 0 and more union; neither counts for P@K."""
    right, wrong, missed = (row(), row()), (row(), row(1, 2, 3)), (row(4, 5), row())
    scores = scores_of(*SOME, right, wrong, missed)
    assert scores.overall_iou == 6 / (13 + 0 + 3 + 2)
    assert scores.mean_iou == pytest.approx((2.1 + 1 + 0 + 0) / 7)
    assert scores.precision_at(0.5) == 2 / 5
    assert (scores.presence.no_target, scores.presence.target) == (1 / 2, 4 / 5)
    assert scores.average_precision([0.5]) == scores_of(*SOME, missed).average_precision([0.5])


def test_without_samples_there_is_no_number() -> None:
    scores = ImageScores()
    assert scores.overall_iou is scores.mean_iou is scores.precision_at(0.5) is scores.average_precision() is None
    nothing = scores_of((row(), row()))
    assert nothing.mean_iou == 1.0
    assert nothing.overall_iou is nothing.precision_at(0.5) is nothing.average_precision() is None


def test_parts_of_a_split_can_be_merged_in_any_order() -> None:
    whole, first, second = scores_of(*SOME), scores_of(*SOME[:1]), scores_of(*SOME[1:])
    second.merge(first)
    for name in ("overall_iou", "mean_iou", "presence"):
        assert getattr(second, name) == getattr(whole, name)
    assert second.precision_at(0.5) == whole.precision_at(0.5)
    assert len(first.results) == 1


def test_sizes_must_match() -> None:
    with pytest.raises(EvaluationError, match=r"\(1, 9\).*\(1, 10\)"):
        ImageScores().add(row(0), row(0, length=9))


# Average precision


def test_average_precision_by_hand() -> None:
    """Ranked right, wrong, right, of 4: precision 1 up to recall 1/4, then 2/3 up to 1/2, then nothing."""
    ious, confidences = [0.1, 0.9, 0.8, 0.0], [0.5, 0.9, 0.4, 0.1]
    readings = [1.0] * 26 + [2 / 3] * 25 + [0.0] * 50  # at recalls 0 to 0.25, to 0.50, to 1
    assert average_precision(ious, confidences, 0.5) == pytest.approx(sum(readings) / 101)


def test_iou_at_the_threshold_is_right() -> None:
    assert average_precision([0.5], [1.0], 0.5) == pytest.approx(1.0)
    assert average_precision([1.0], [1.0], 1.0) == pytest.approx(1.0)
    assert average_precision([0.49], [1.0], 0.5) == 0.0


def coco_ap(pairs: list[tuple[np.ndarray, np.ndarray]], confidences: np.ndarray) -> np.ndarray:
    """What pycocotools says, every sample an image with one object: AP 0.5:0.95, AP 0.5 and AP 0.75."""

    def encoded(mask: np.ndarray) -> dict:
        return run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))

    truth, answers = COCO(), []
    truth.dataset = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    for number, ((true, predicted), confidence) in enumerate(zip(pairs, confidences, strict=True), start=1):
        truth.dataset["images"].append({"id": number, "height": true.shape[0], "width": true.shape[1]})
        shared = {"image_id": number, "category_id": 1}
        annotation = {"id": number, "segmentation": encoded(true), "area": int(true.sum()), "iscrowd": 0}
        truth.dataset["annotations"].append(shared | annotation)
        answers.append(shared | {"segmentation": encoded(predicted), "score": float(confidence)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(answers), iouType="segm")
        evaluation.params.useCats = 0
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:3]


@pytest.mark.parametrize("seed", range(6))
def test_average_precision_is_that_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(40):
        truth = np.zeros((12, 15), dtype=bool)
        top, left = rng.integers(0, 6, 2)
        truth[top : top + 6, left : left + 8] = True
        answer = np.roll(truth, rng.integers(-2, 3, 2), (0, 1))
        pairs.append((truth, answer & (rng.random(answer.shape) < rng.choice([0, 0.8, 1]))))
    confidences = np.round(rng.random(40), seed % 3)  # with and without equals
    scores = ImageScores()
    for (truth, predicted), confidence in zip(pairs, confidences, strict=True):
        scores.add(truth, predicted, confidence)
    ours = [scores.average_precision(thresholds) for thresholds in (AP_THRESHOLDS, [0.5], [0.75])]
    theirs = coco_ap(pairs, confidences).tolist()
    assert 0 < theirs[0] < theirs[1] < 1
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_the_thresholds_are_those_of_pycocotools() -> None:
    evaluation = COCOeval(iouType="segm")
    assert evaluation.params.iouThrs.tolist() == list(AP_THRESHOLDS)
