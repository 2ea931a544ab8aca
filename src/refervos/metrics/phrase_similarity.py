"""Similarity of phrases, for recalls that compare both texts and masks.

The published recall of VideoGLaMM compares embeddings of ``bert-base-uncased`` (``BertSimilarity``), which must be
downloaded. ``word_similarity`` needs no model and gives different numbers: synonyms are different words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refervos.errors import CheckpointError, require_installed

Matrix = npt.NDArray[np.float64]

ARTICLES = frozenset(("a", "an", "the"))
"""Words that do not help to identify an object."""

BERT = "bert-base-uncased"
"""The model of the published recall, at ``google-bert/bert-base-uncased`` on the hub."""

MOST_TOKENS = 512
"""Maximum length of a phrase for BERT."""


class TextSimilarity(Protocol):
    """A function that compares the phrases of two texts."""

    def __call__(self, ground_truth: Sequence[str], predicted: Sequence[str]) -> Matrix:
        """Return the similarity of each pair.

        Args:
            ground_truth: G phrases.
            predicted: P phrases.

        Returns:
            float64 (G, P), 1 for equal phrases.
        """
        ...


def word_similarity(ground_truth: Sequence[str], predicted: Sequence[str]) -> Matrix:
    """Return the fraction of common words (Dice), ignoring case, punctuation and articles.

    It replaces ``BertSimilarity`` where nothing can be downloaded; the two are not comparable.

    Args:
        ground_truth: G phrases.
        predicted: P phrases.

    Returns:
        float64 (G, P) in [0, 1]: twice the number of common words over the number of words in both; 1 where neither
        phrase has a word.
    """
    left, right = ([Counter(words_of(phrase)) for phrase in phrases] for phrases in (ground_truth, predicted))
    similarity = np.ones((len(left), len(right)), dtype=np.float64)
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            if total := one.total() + other.total():
                similarity[i, j] = 2 * (one & other).total() / total
    return similarity


def words_of(phrase: str) -> list[str]:
    """Return the words of a phrase in lower case, without punctuation and articles."""
    return [word for word in re.findall(r"\w+", phrase.lower()) if word not in ARTICLES]


class BertSimilarity:
    """The published similarity: cosine of the mean of BERT's last hidden states, over all tokens of a phrase.

    The mean includes the tokens [CLS] and [SEP], and each phrase goes through the model alone, as in the released code.
    The model is loaded at the first comparison, and embeddings are cached.

    Args:
        model: Folder or Hugging Face id of a BERT model with its tokenizer.
        device: Device of the model.
    """

    def __init__(self, model: str = BERT, device: str = "cpu") -> None:
        self.model = model
        self.device = device
        self._loaded: tuple[Any, Any] | None = None
        self._embeddings: dict[str, npt.NDArray[np.float64]] = {}

    def __call__(self, ground_truth: Sequence[str], predicted: Sequence[str]) -> Matrix:
        """Return the cosine of each pair of phrases.

        Args:
            ground_truth: G phrases.
            predicted: P phrases.

        Returns:
            float64 (G, P) in [-1, 1].

        Raises:
            MissingDependencyError: When transformers is not installed.
            CheckpointError: When the model cannot be loaded or downloaded.
        """
        if not ground_truth or not predicted:
            return np.zeros((len(ground_truth), len(predicted)), dtype=np.float64)
        left, right = (
            np.array([self._embedding(phrase) for phrase in phrases]) for phrases in (ground_truth, predicted)
        )
        return left @ right.T

    def _embedding(self, phrase: str) -> npt.NDArray[np.float64]:
        """Return the unit vector of a phrase, float64 (D,)."""
        import torch

        if phrase not in self._embeddings:
            tokenizer, model = self._model()
            inputs = tokenizer(phrase, return_tensors="pt", max_length=MOST_TOKENS, truncation=True).to(self.device)
            with torch.inference_mode():
                states = model(**inputs).last_hidden_state[0]  # (tokens, D)
            mean = states.mean(dim=0).double().cpu().numpy()
            self._embeddings[phrase] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return self._embeddings[phrase]

    def _model(self) -> tuple[Any, Any]:
        if self._loaded is None:
            require_installed("comparing phrases by BERT", "transformers", "transformers")
            from transformers import AutoModel, AutoTokenizer

            try:
                tokenizer = AutoTokenizer.from_pretrained(self.model)
                model = AutoModel.from_pretrained(self.model).eval().to(self.device)
            except (OSError, ValueError) as error:
                raise CheckpointError(
                    f"{self.model} is neither the folder of a BERT model nor one on the hub ({error}); give the folder "
                    "of a BERT model, or compare phrases by their words."
                ) from error
            self._loaded = tokenizer, model
        return self._loaded
