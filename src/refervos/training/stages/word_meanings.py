"""What words mean, from a sentence encoder that has read much: the teacher of a small text encoder.

A small encoder that reads drawn worlds alone knows the words of those worlds. From the vectors of a large one for many
everyday words it learns which words are near each other, so that it understands a synonym which no scene came with.
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
from refervos.training.distributed import mean_over_processes
from refervos.worlds.nouns import everyday_nouns
from refervos.worlds.shapes import COLOURS, KINDS
from refervos.worlds.wording import PHRASES

_AT_ONCE = 256  # words that the teacher reads together


@dataclass(frozen=True)
class WordMeanings:
    """Words and what a teacher makes of them.

    Attributes:
        words: Words, some of several parts.
        vectors: float32 (W, D), of length one, without what all words share.
    """

    words: tuple[str, ...]
    vectors: Tensor

    @classmethod
    def of(cls, teacher: Path, words_file: Path | None) -> WordMeanings:
        """Ask a teacher for the words of the worlds, and for those of a file.

        Args:
            teacher: Folder of a BERT-like sentence encoder, such as all-MiniLM-L6-v2, with its tokenizer.
            words_file: A text file with one word a line, or None.

        Raises:
            MissingDependencyError: When transformers is not installed, which reads the teacher.
            TrainingError: When the teacher or the file cannot be read.
        """
        words = words_of(words_file)
        try:
            from transformers import AutoModel, AutoTokenizer
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                "a teacher is read by transformers; install refervos[transformers]."
            ) from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(teacher)
            model = AutoModel.from_pretrained(teacher).eval()
        except (OSError, ValueError) as error:
            raise TrainingError(f"{teacher} is no sentence encoder that transformers reads: {error}") from error
        parts = []
        with torch.no_grad():
            for start in range(0, len(words), _AT_ONCE):
                batch = tokenizer(list(words[start : start + _AT_ONCE]), return_tensors="pt", padding=True)
                states = model(**batch).last_hidden_state  # (w, L, D)
                keep = batch["attention_mask"].unsqueeze(-1)
                parts.append((states * keep).sum(1) / keep.sum(1))
        vectors = torch.cat(parts)
        return cls(words, F.normalize(vectors - vectors.mean(dim=0), dim=-1))


def words_of(file: Path | None) -> tuple[str, ...]:
    """The words whose meaning is taught: shapes, colours, the nouns of the worlds with their synonyms, and a file's.

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
    luck = rng.random()
    if luck < 0.3:
        return f"the {colour} {word}".replace("  ", " ")
    if "{ref}" in phrase and luck < 0.65:
        return "the " + phrase.format("thing", ref=f"the {word}")
    return "the " + phrase.format(f"{colour} {word}".strip(), ref="the circle")


class MeaningHeads(nn.Module):
    """Two linear layers from the states of a word and of the first token to the teacher's vector of the word.

    Args:
        width: Channels of the text encoder.
        meanings: The vectors to learn.
    """

    def __init__(self, width: int, meanings: WordMeanings) -> None:
        super().__init__()
        size = meanings.vectors.shape[1]
        self.word, self.summary = nn.Linear(width, size), nn.Linear(width, size)
        self.vectors: Tensor
        self.register_buffer("vectors", meanings.vectors, persistent=False)

    def forward(self, states: Tensor, summary: Tensor, inside: Tensor, word: Tensor) -> dict[str, Tensor]:
        """How far the words' vectors are from the teacher's.

        Args:
            states: Of the tokens (N, L, width).
            summary: The vector that stands for each sentence (N, width).
            inside: bool (N, L), the tokens of the word.
            word: int64 (N,), which word it is; -1 where nothing is taught.

        Returns:
            ``meaning``, one minus the cosine, for the word's tokens and half for the summary; ``nearest``, the share of
            the words whose own vector is the nearest of all.
        """
        share = inside / inside.sum(1, keepdim=True).clamp(min=1)
        own = torch.einsum("nl,nlc->nc", share.to(states.dtype), states)
        taught = (word >= 0).to(states.dtype)
        wanted = self.vectors[word.clamp(min=0)]
        read = F.normalize(self.word(own), dim=-1)
        wrong = 1 - (read * wanted).sum(-1) + 0.5 * (1 - F.cosine_similarity(self.summary(summary), wanted, dim=-1))
        with torch.no_grad():
            right = ((read @ self.vectors.T).argmax(-1) == word).to(states.dtype)
        count = taught.sum()
        return {
            "meaning": mean_over_processes((wrong * taught).sum(), count),
            "nearest": (right * taught).sum() / count.clamp(min=1),
        }


def begin_with_meanings(embeddings: nn.Embedding, tokenizer: Tokenizer, meanings: WordMeanings) -> int:
    """Let the embeddings of tokens that are whole words begin as what the words mean, in as many dimensions as fit.

    Args:
        embeddings: Of the tokens (V, C), changed in place.
        tokenizer: Makes tokens of words.
        meanings: The words' vectors (W, D); where D is less than C the rest stays random.

    Returns:
        How many words are one token.
    """
    width = embeddings.weight.shape[1]
    _, _, axes = torch.linalg.svd(meanings.vectors, full_matrices=False)
    least = meanings.vectors @ axes[:width].T  # (W, C): what tells the words apart most
    with torch.no_grad():
        least *= embeddings.weight.std() / least.std()
        count = 0
        for word, vector in zip(meanings.words, least, strict=True):
            for spelled in (word, f"the {word}"):  # at the start of a sentence and inside it are two tokens
                ids, inside = tokenizer.encode(spelled, [word])
                own = [token for token, within in zip(ids, inside, strict=True) if within]
                if len(own) == 1:
                    embeddings.weight[own[0], : len(vector)] = vector
                    count += spelled != word
    return count


def word_sample(words: Sequence[str], tokenizer: Tokenizer, limit: int, rng: np.random.Generator) -> Any:
    """A sentence about one of the words: token ids (L,), bool (L,) for the word's own, and which word it is."""
    which = int(rng.integers(len(words)))
    word = words[which]
    ids, inside = tokenizer.encode(sentence_about(word, rng), [word], limit=limit)
    return np.array(ids), np.array(inside), which
