"""Distillation of word vectors from a large sentence encoder, the teacher, into a small text encoder.

A small encoder trained on drawn worlds alone knows only their words. From the teacher's vectors of many everyday words
it learns which words are similar, so that it understands synonyms that occur in no scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.errors import MissingDependencyError, TrainingError
from refervos.files.plain_text import read_entries
from refervos.text.tokenizer import Tokenizer
from refervos.training.step_means import Mean, mean_of_batch, ratio
from refervos.worlds.nouns import everyday_nouns
from refervos.worlds.shapes import COLOURS, KINDS
from refervos.worlds.wording import PHRASES

_BATCH = 256  # words in a batch of the teacher


@dataclass(frozen=True)
class WordMeanings:
    """Words and a teacher's vectors of them.

    Attributes:
        words: Words, some of several parts.
        vectors: Centred unit vectors, float32 (W, D).
    """

    words: tuple[str, ...]
    vectors: Tensor

    @classmethod
    def from_teacher(cls, teacher: Path, words_file: Path | None) -> WordMeanings:
        """Compute a teacher's vectors of the worlds' words and of those in a file.

        Args:
            teacher: Folder of a BERT-like sentence encoder, such as all-MiniLM-L6-v2, with its tokenizer.
            words_file: A text file with one word a line, or None.

        Raises:
            MissingDependencyError: When transformers, which loads the teacher, is not installed.
            TrainingError: When the teacher or the file cannot be read.
        """
        words = taught_words(words_file)
        try:
            from transformers import AutoModel, AutoTokenizer
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "a teacher is loaded with transformers; install refervos[transformers]."
            ) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(teacher)
            model = AutoModel.from_pretrained(teacher).eval()
        except (OSError, ValueError) as error:
            raise TrainingError(f"{teacher} is no sentence encoder that transformers can load: {error}") from error
        parts = []
        with torch.no_grad():
            for start in range(0, len(words), _BATCH):
                batch = tokenizer(list(words[start : start + _BATCH]), return_tensors="pt", padding=True)
                states = model(**batch).last_hidden_state  # (w, L, D)
                keep = batch["attention_mask"].unsqueeze(-1)
                parts.append((states * keep).sum(1) / keep.sum(1))
        vectors = torch.cat(parts)
        return cls(words, F.normalize(vectors - vectors.mean(dim=0), dim=-1))


def taught_words(file: Path | None) -> tuple[str, ...]:
    """List the words to distil: shapes, colours, the nouns of the worlds with their synonyms, and those of a file.

    Args:
        file: A text file with one word a line, or None.

    Raises:
        TrainingError: When it is not readable or has no word.
    """
    known = [name for names in KINDS.values() for name in names]
    known += [*COLOURS, *(name for noun in everyday_nouns().values() for name in (noun.word, *noun.synonyms))]
    if file is not None:
        known += read_entries(file, "word", TrainingError)
    return tuple(dict.fromkeys(known))


def sentence_about(word: str, rng: np.random.Generator) -> str:
    """Put a word into a sentence of the worlds, as its noun or as the other object of a relation."""
    phrases = PHRASES[list(PHRASES)[int(rng.integers(len(PHRASES)))]]
    phrase = phrases[int(rng.integers(len(phrases)))]
    colour = [*COLOURS, "", "", "", ""][int(rng.integers(len(COLOURS) + 4))]
    chance = rng.random()
    if chance < 0.3:
        return f"the {colour} {word}".replace("  ", " ")
    if "{ref}" in phrase and chance < 0.65:
        return "the " + phrase.format("thing", ref=f"the {word}")
    return "the " + phrase.format(f"{colour} {word}".strip(), ref="the circle")


class MeaningHeads(nn.Module):
    """Linear layers from the states of a word, and from the sentence's summary, to the teacher's vector of the word.

    Args:
        width: Channels of the text encoder.
        meanings: The vectors to distil.
    """

    def __init__(self, width: int, meanings: WordMeanings) -> None:
        super().__init__()
        size = meanings.vectors.shape[1]
        self.word, self.summary = nn.Linear(width, size), nn.Linear(width, size)
        self.vectors: Tensor
        self.register_buffer("vectors", meanings.vectors, persistent=False)

    def forward(
        self, states: Tensor, summary: Tensor, in_word: Tensor, word: Tensor, mean: Mean = mean_of_batch
    ) -> dict[str, Tensor]:
        """Compute the cosine distance between the predicted word vectors and the teacher's.

        Args:
            states: States of the tokens (N, L, width).
            summary: Summary vector of each sentence (N, width).
            in_word: Tokens of the word, bool (N, L).
            word: Index of the word, int64 (N,); -1 for none.
            mean: Averages over the sentences with such a word; called with ``meaning``.

        Returns:
            ``meaning``, one minus the cosine, for the word's tokens plus half of that for the summary; ``nearest``, the
            ``ratio`` of the words whose own vector is the nearest of all.
        """
        share = in_word / in_word.sum(1, keepdim=True).clamp(min=1)
        own = torch.einsum("nl,nlc->nc", share.to(states.dtype), states)
        taught = (word >= 0).to(states.dtype)
        target = self.vectors[word.clamp(min=0)]
        predicted = F.normalize(self.word(own), dim=-1)
        in_summary = F.cosine_similarity(self.summary(summary), target, dim=-1)
        distance = 1 - (predicted * target).sum(-1) + 0.5 * (1 - in_summary)
        with torch.no_grad():
            right = ((predicted @ self.vectors.T).argmax(-1) == word).to(states.dtype)
        count = taught.sum()
        return {
            "meaning": mean("meaning", (distance * taught).sum(), count),
            "nearest": ratio((right * taught).sum(), count),
        }


def initialise_embeddings(embeddings: nn.Embedding, tokenizer: Tokenizer, meanings: WordMeanings) -> int:
    """Initialise the embeddings of tokens that are whole words with the teacher's vectors, reduced to their width.

    Args:
        embeddings: Embeddings of the tokens (V, C), changed in place.
        tokenizer: The encoder's tokenizer.
        meanings: The words' vectors (W, D); if D is less than C, the remaining dimensions stay random.

    Returns:
        Number of words that are one token.
    """
    width = embeddings.weight.shape[1]
    _, _, axes = torch.linalg.svd(meanings.vectors, full_matrices=False)
    reduced = meanings.vectors @ axes[:width].T  # (W, C): the principal components
    with torch.no_grad():
        reduced *= embeddings.weight.std() / reduced.std()
        count = 0
        for word, vector in zip(meanings.words, reduced, strict=True):
            for text in (word, f"the {word}"):  # a word has different tokens at the start of a sentence and inside it
                token = _single_token(tokenizer, text, word)
                if token is not None:
                    embeddings.weight[token, : len(vector)] = vector
                    count += text != word
    return count


@torch.no_grad()
def take_nearest(
    embeddings: nn.Embedding, tokenizer: Tokenizer, meanings: WordMeanings, sentences: Sequence[str], least: float
) -> int:
    """Let words that no sentence has take the embedding of the noun that is nearest to them.

    A word that is one token is then understood as that noun. Nothing changes for the sentences.

    Args:
        embeddings: Embeddings of the tokens (V, C), changed in place.
        tokenizer: The encoder's tokenizer.
        meanings: The words' vectors (W, D), those of the nouns included.
        sentences: Sentences whose tokens must keep their embeddings.
        least: Least cosine of a word and a noun.

    Returns:
        Number of words that took another embedding.
    """
    used = {token for text in sentences for token in tokenizer.encode(text)[0]}

    index = {word: number for number, word in enumerate(meanings.words)}
    known = [noun for noun in everyday_nouns() if noun in index]
    nouns = [noun for noun in known if _single_token(tokenizer, f"the {noun}", noun) is not None]
    similar = meanings.vectors @ meanings.vectors[[index[noun] for noun in nouns]].T  # (W, nouns)
    count = 0
    for word, row in zip(meanings.words, similar, strict=True):
        nearest = nouns[int(row.argmax())]
        if float(row.max()) < least or nearest == word:
            continue
        for text, other in ((word, nearest), (f"the {word}", f"the {nearest}")):  # tokens differ at the start
            token, source = _single_token(tokenizer, text, word), _single_token(tokenizer, other, nearest)
            if token is not None and source is not None and token not in used:
                embeddings.weight[token] = embeddings.weight[source]
                count += text != word
    return count


def _single_token(tokenizer: Tokenizer, text: str, word: str) -> int | None:
    """Return the token of a word inside a text, or None if it has several."""
    ids, in_word = tokenizer.encode(text, [word])
    own = [token for token, within in zip(ids, in_word, strict=True) if within]
    return own[0] if len(own) == 1 else None


def draw_word_sample(words: Sequence[str], tokenizer: Tokenizer, limit: int, rng: np.random.Generator) -> Any:
    """Draw a sentence about one of the words: its token ids (L,), the word's own tokens bool (L,), the word's index."""
    index = int(rng.integers(len(words)))
    word = words[index]
    ids, in_word = tokenizer.encode(sentence_about(word, rng), [word], limit=limit)
    return np.array(ids), np.array(in_word), index
