"""CIDEr and METEOR: cleaning of texts, the published scorers, and their replacement without Java."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest

from refervos.errors import EvaluationError, MissingDependencyError
from refervos.metrics.captions import caption_scores, cleaned

REFERENCES = [
    "A dog runs across the green field.",
    "Two children are playing with a red ball.",
    "The man, sitting, waits.",
]
TEXTS = ["A dog is running over a field.", "A child plays with the ball.", "The man, sitting, waits."]

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="no Java here")


def test_tags_and_segmentation_tokens_are_removed() -> None:
    assert cleaned("<p> A dog </p> [SEG] runs,\n<p> it </p>[SEG] barks.<|end|>") == "A dog runs, it barks."
    assert cleaned("'quoted'") == "quoted"
    assert len(cleaned("word " * 1000)) == 2000


def expected_ciders(references: list[str], texts: list[str]) -> list[float]:
    """Return CIDEr-D of Vedantam et al. 2015: weighted n-grams, clipped, with a Gaussian length penalty, times 10."""

    def grams(text: str, n: int) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))

    scores = []
    for reference, text in zip(references, texts, strict=True):
        total = 0.0
        for n in (1, 2, 3, 4):

            def weight(gram: tuple[str, ...], n: int = n) -> float:
                return float(np.log(len(references)) - np.log(max(1, sum(gram in grams(one, n) for one in references))))

            one = {gram: count * weight(gram) for gram, count in grams(reference, n).items()}
            other = {gram: count * weight(gram) for gram, count in grams(text, n).items()}
            norm = np.linalg.norm(list(one.values())) * np.linalg.norm(list(other.values()))
            product = sum(min(value, one.get(gram, 0.0)) * one.get(gram, 0.0) for gram, value in other.items())
            length = max(len(text.split()) - 1, 0) - max(len(reference.split()) - 1, 0)
            total += (product / norm if norm else 0.0) * np.exp(-(length**2) / 72)
        scores.append(10 * total / 4)
    return scores


def test_cider_follows_the_formula_of_the_paper() -> None:
    scores = caption_scores(REFERENCES, TEXTS, published=False)
    plain = [[text.lower().replace(",", "").replace(".", "") for text in texts] for texts in (REFERENCES, TEXTS)]
    np.testing.assert_allclose(scores.ciders, expected_ciders(*plain), atol=1e-9)
    assert scores.cider == pytest.approx(np.mean(scores.ciders))
    assert scores.ciders[2] == max(scores.ciders)


def test_cider_of_a_single_text_is_undefined() -> None:
    scores = caption_scores(["a dog"], ["a dog"], published=False)
    assert scores.cider is None
    assert scores.ciders == ()


def test_meteor_without_java_follows_its_formula() -> None:
    """The first texts share one chunk of six words, one of which matches only by its stem; the last are equal."""
    references, texts = ["a small dog runs over grass", "x", "a dog"], ["a small dog running over grass", "y", "A dog."]
    scores = caption_scores(references, texts, published=False)
    assert scores.meteors[0] == pytest.approx(1 - 0.6 * (1 / 6) ** 0.2)  # P = R = 1, alpha does not matter
    assert scores.meteors[1:] == (0, 1)
    assert scores.meteor == pytest.approx(np.mean(scores.meteors))
    assert scores.names == ("CIDEr (NLTK tokens)", "METEOR (NLTK)")


@needs_java
def test_the_published_scorers_are_those_of_pycocoevalcap() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [*TEXTS, "", "It's 3-D (really): \u201cna\u00efve\u201d caf\u00e9?"]
    references = [*REFERENCES, "An empty street.", "It is 3-D, really."]
    scores = caption_scores(references, texts, published=True)
    assert scores.names == ("CIDEr", "METEOR")
    assert scores.meteors[2] == pytest.approx(1.0)
    assert scores.meteors[3] == 0
    assert 0 < scores.meteors[0] < 1
    sides = [{number: [{"caption": text}] for number, text in enumerate(side)} for side in (references, texts)]
    tokens = [[line for (line,) in PTBTokenizer().tokenize(side).values()] for side in sides]
    np.testing.assert_allclose(scores.ciders, expected_ciders(*tokens), atol=1e-9)


def test_unpaired_texts_and_failures_of_java_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EvaluationError, match="1 texts and 2 references"):
        caption_scores(["a", "b"], ["a"])
    with pytest.raises(EvaluationError, match="0 texts"):
        caption_scores([], [])

    def fails(*args: object, **kwargs: object) -> None:
        raise FileNotFoundError("no java")

    monkeypatch.setattr(subprocess, "run", fails)
    with pytest.raises(EvaluationError, match="install Java 8 or newer"):
        caption_scores(["a"], ["a"], published=True)


def test_missing_packages_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pycocoevalcap" else known(name))
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[captions\]'"):
        caption_scores(["a"], ["a"])
