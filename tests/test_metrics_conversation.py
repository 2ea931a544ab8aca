"""Metrics of grounded conversations: the numbers of the released code, and the formulas."""

from __future__ import annotations

import json
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from golden import DATA
from refervos.errors import CheckpointError, EvaluationError, MissingDependencyError
from refervos.metrics.grounded_conversation import (
    IouCounter,
    best_matches,
    found_phrases,
    iou_matrix,
    published_matches,
    published_miou,
    set_miou,
)
from refervos.metrics.phrase_similarity import BertSimilarity, word_similarity

GOLDENS = np.load(DATA / "videoglamm" / "metrics.npz")
CASES = json.loads(str(GOLDENS["meta"]))["cases"]


def volumes(case: str, side: str) -> list[np.ndarray]:
    """Return the masks of a golden case, bool (T, H, W) for each phrase."""
    ground_truth, predicted, *shape = GOLDENS[f"{case}/shape"]
    count = ground_truth if side == "gt" else predicted
    bits = np.unpackbits(GOLDENS[f"{case}/{side}"], count=int(count * np.prod(shape)))
    return list(bits.reshape(count, *shape).astype(bool))


def golden_iou(case: str) -> np.ndarray:
    """Return the IoU of the masks of a golden case by our own code."""
    return iou_matrix(volumes(case, "gt"), volumes(case, "pred"))


# The released code's numbers


@pytest.mark.parametrize("case", CASES)
def test_the_released_code_gives_the_same_iou(case: str) -> None:
    np.testing.assert_allclose(golden_iou(case), GOLDENS[f"{case}/iou_matrix"], atol=1e-7, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_released_code_gives_the_same_miou(case: str) -> None:
    assert published_miou(golden_iou(case)) == pytest.approx(float(GOLDENS[f"{case}/miou"]), abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_released_code_matches_the_same_phrases(case: str) -> None:
    matches = published_matches(golden_iou(case), GOLDENS[f"{case}/text_sim"])
    assert matches == [tuple(pair) for pair in GOLDENS[f"{case}/matches"].tolist()]


def test_the_released_code_gives_the_same_recall() -> None:
    found = sum(len(published_matches(golden_iou(case), GOLDENS[f"{case}/text_sim"])) for case in CASES)
    phrases = sum(len(volumes(case, "gt")) for case in CASES)
    assert found / phrases == pytest.approx(float(GOLDENS["recall_all_cases"]), abs=1e-12)


# Every phrase counts


def test_a_missing_phrase_counts_in_the_set_miou_alone() -> None:
    iou = np.array([[1.0], [0.0]])  # ground truth A and B, prediction A
    assert (published_miou(iou), set_miou(iou)) == (1.0, 0.5)


def test_a_surplus_phrase_counts_in_the_set_miou_alone() -> None:
    iou = np.array([[1.0, 0.0, 0.0]])
    assert published_miou(iou) == 1.0
    assert set_miou(iou) == pytest.approx(1 / 3)


def test_the_set_miou_takes_the_best_matching_where_the_published_one_is_greedy() -> None:
    iou = np.array([[0.9, 0.8], [0.7, 0.0]])
    assert best_matches(iou) == [(0, 1), (1, 0)]
    assert set_miou(iou) == pytest.approx((0.8 + 0.7) / 2)
    assert published_miou(iou) == pytest.approx(0.9)


def test_the_set_miou_is_the_ospa_similarity_of_all_matchings() -> None:
    generator = np.random.default_rng(0)
    for ground_truth, predicted in ((1, 1), (2, 3), (3, 2), (4, 4), (1, 4)):
        iou = generator.random((ground_truth, predicted))
        larger, smaller = max(iou.shape), min(iou.shape)
        wide = iou if iou.shape[1] == larger else iou.T
        orders = permutations(range(larger), smaller)
        best = max(sum(wide[row, column] for row, column in enumerate(order)) for order in orders)
        assert set_miou(iou) == pytest.approx(best / larger)


def test_an_answer_without_phrases_is_correct_if_the_ground_truth_has_none() -> None:
    assert set_miou(np.zeros((0, 0))) == 1.0
    assert set_miou(np.zeros((0, 2))) == set_miou(np.zeros((2, 0))) == 0.0
    assert published_miou(np.zeros((0, 0))) == 0.0


def test_two_empty_volumes_agree_in_the_set_miou_and_stop_the_published_one() -> None:
    empty, full = np.zeros((2, 4, 4), bool), np.ones((2, 4, 4), bool)
    iou = iou_matrix([empty, full], [empty, full])
    assert np.isnan(iou[0, 0])
    assert (published_miou(iou), set_miou(iou)) == (0.0, 1.0)


def test_found_phrases_are_counted_regardless_of_order_and_text() -> None:
    iou = np.array([[0.9, 0.6], [0.6, 0.1], [0.49, 0.0]])
    assert found_phrases(iou) == 2  # 0 with 1 and 1 with 0; greedily it would be one
    assert len(published_matches(iou, np.ones((3, 2)))) == 1
    assert found_phrases(iou, threshold=0.7) == 1
    assert found_phrases(np.zeros((2, 0))) == found_phrases(np.zeros((0, 2))) == 0


def test_iou_is_that_of_volumes_not_a_mean_over_frames() -> None:
    ground_truth, predicted = np.zeros((2, 10, 10), bool), np.zeros((2, 10, 10), bool)
    ground_truth[0, :5], ground_truth[1, 0, 0] = True, True
    predicted[0, :5] = True
    assert iou_matrix([ground_truth], [predicted])[0, 0] == pytest.approx(50 / 51)


def test_frames_may_be_added_one_by_one() -> None:
    generator = np.random.default_rng(1)
    left, right = generator.random((2, 3, 8, 9)) < 0.5, generator.random((4, 3, 8, 9)) < 0.5
    counter = IouCounter(2, 4)
    for index in range(3):
        counter.add(list(left[:, index]), list(right[:, index]))
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            assert counter.iou()[i, j] == pytest.approx((one & other).sum() / (one | other).sum())


def test_volumes_that_do_not_fit_together_are_refused() -> None:
    one, other = np.zeros((2, 4, 4), bool), np.zeros((3, 4, 4), bool)
    with pytest.raises(EvaluationError, match=r"\(2, 4, 4\), \(3, 4, 4\)"):
        iou_matrix([one], [other])
    with pytest.raises(EvaluationError, match="all must be bool"):
        iou_matrix([one], [one.astype(np.uint8)])
    with pytest.raises(EvaluationError, match="1 and 0 masks"):
        IouCounter(1, 1).add([one[0]], [])
    with pytest.raises(EvaluationError, match="same ground-truth and predicted phrases"):
        published_matches(np.zeros((1, 2)), np.zeros((2, 1)))


def test_without_scipy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[eval\]'"):
        set_miou(np.ones((1, 1)))


# Texts


def test_words_are_compared_without_case_punctuation_and_articles() -> None:
    similarity = word_similarity(["The red circle,", "a dog", "the"], ["red circle", "a red square", "A"])
    assert similarity.tolist() == [[1, 0.5, 0], [0, 0, 0], [0, 0, 1]]


def test_a_repeated_word_counts_as_often_as_both_have_it() -> None:
    assert word_similarity(["dog dog cat"], ["dog cat cat"])[0, 0] == pytest.approx(4 / 6)


def test_bert_similarity_is_the_cosine_of_mean_last_hidden_states(tmp_path: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "circle", "dog", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertModel(BertConfig(vocab_size=len(words), **sizes)).eval()
    model.save_pretrained(tmp_path)
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)

    similarity = BertSimilarity(str(tmp_path))(["red circle", "a dog"], ["red circle", "dog", "a circle"])

    def embedding(*ids: int) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([[2, *ids, 3]])).last_hidden_state[0].mean(dim=0).double().numpy()

    left = np.array([embedding(5, 6), embedding(8, 7)])
    right = np.array([embedding(5, 6), embedding(7), embedding(8, 6)])
    cosine = left @ right.T / np.linalg.norm(left, axis=1)[:, None] / np.linalg.norm(right, axis=1)
    np.testing.assert_allclose(similarity, cosine, atol=1e-6)
    assert similarity[0, 0] == pytest.approx(1)
    assert BertSimilarity(str(tmp_path))([], ["dog"]).shape == (0, 1)


def test_a_missing_bert_model_is_reported(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="compare phrases by their words"):
        BertSimilarity(str(tmp_path / "nowhere"))(["a"], ["b"])
