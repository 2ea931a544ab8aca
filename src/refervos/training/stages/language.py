"""Stage ``language``: a small RoBERTa and its byte-level BPE, trained on sentences alone.

Masked-language training as in RoBERTa (Liu et al. 2019): new masks at each step, no next-sentence task.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.errors import TrainingError
from refervos.text.encoder import TextConfig, TextEncoder, pad_tokens
from refervos.text.pretrained import load_text, save_text
from refervos.text.tokenizer import Tokenizer
from refervos.training.distributed import mean_over_processes
from refervos.training.initialisation import initialise
from refervos.training.stage import Stage
from refervos.worlds import all_sentences

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""In RoBERTa's order; their ids are their positions."""

FIRST_WORD = len(SPECIAL_TOKENS)
MASK = SPECIAL_TOKENS.index("<mask>")


@dataclass(frozen=True)
class LanguageSettings:
    """Settings of the stage.

    Attributes:
        model: Shape of the encoder; its vocabulary becomes what the tokenizer has.
        vocabulary: Most tokens that the tokenizer may learn.
        sentences: A text file with one sentence a line; default those of the worlds.
        hidden: Share of the words that are to be guessed.
        summary: Weight of a second task: the sentence's first token, from which prompts are made, tells which tokens
            the sentence has.
    """

    model: TextConfig = field(default_factory=TextConfig)
    vocabulary: int = 1000
    sentences: str | None = None
    hidden: float = 0.2
    summary: float = 1.0


class LanguageStage(Stage):
    """Train a text encoder.

    Args:
        settings: See there.
        encoder: The weights to start from.
        tokenizer: Its tokenizer.
        sentences: What to read.
    """

    name: ClassVar[str] = "language"
    Settings: ClassVar[type] = LanguageSettings
    model: TextEncoder

    def __init__(
        self, settings: LanguageSettings, encoder: TextEncoder, tokenizer: Tokenizer, sentences: Sequence[str]
    ) -> None:
        super().__init__()
        self.settings = settings
        self.model = encoder
        self.tokenizer = tokenizer
        self.sentences = sentences
        width, words = encoder.config.width, encoder.config.vocabulary
        self.guess = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, words))
        self.summary = nn.Linear(width, words)

    @classmethod
    def build(cls, settings: LanguageSettings, init: Mapping[str, Path], seed: int) -> LanguageStage:
        """From an earlier language stage (``model``), otherwise from random weights and a new tokenizer."""
        torch.manual_seed(seed)
        sentences = read_sentences(settings.sentences)
        if "model" in init:
            return cls(settings, *load_text(init["model"]), sentences)
        tokenizer = train_tokenizer(sentences, settings.vocabulary)
        encoder = TextEncoder(replace(settings.model, vocabulary=len(tokenizer)))
        initialise(encoder)
        return cls(settings, encoder, tokenizer, sentences)

    def draw(self, step: int, index: int, key: Sequence[int]) -> Any:
        """One sentence: its tokens with some hidden, and the tokens themselves, int64 (L,) each."""
        rng = np.random.default_rng([*key, step, index])
        text = self.sentences[int(rng.integers(len(self.sentences)))]
        ids = np.array(self.tokenizer.encode(text, limit=self.model.config.max_tokens)[0])
        word = ids >= FIRST_WORD
        chosen = word & (rng.random(len(ids)) < self.settings.hidden)
        if not chosen.any():
            chosen[rng.choice(np.nonzero(word)[0])] = True
        shown = ids.copy()
        luck = rng.random(len(ids))  # RoBERTa's 80 % hidden, 10 % another word, 10 % left
        shown[chosen & (luck < 0.8)] = MASK
        other = chosen & (luck >= 0.8) & (luck < 0.9)
        shown[other] = rng.integers(FIRST_WORD, self.model.config.vocabulary, other.sum())
        return torch.from_numpy(shown), torch.from_numpy(np.where(chosen, ids, -100)), torch.from_numpy(ids)

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        """Pad to the longest sentence: ``shown``, ``hidden`` (-100 where there is nothing to guess), ``ids``."""
        pad = self.model.config.pad
        return {
            "shown": pad_tokens([shown for shown, _, _ in samples], pad),
            "hidden": pad_tokens([hidden for _, hidden, _ in samples], -100),
            "ids": pad_tokens([ids for _, _, ids in samples], pad),
        }

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the hidden words, and of what the first token tells about the sentence."""
        keep = batch["shown"] != self.model.config.pad
        state = self.model.embed(batch["shown"])
        for segment in range(4):
            state = self.model.run_segment(segment, state, keep)  # (N, L, width)
        hidden = batch["hidden"]
        known = hidden != -100
        answers = self.guess(state)  # (N, L, words)
        wrong = F.cross_entropy(answers.flatten(0, 1), hidden.flatten(), ignore_index=-100, reduction="sum")
        words = torch.zeros(answers.shape[0], answers.shape[2], device=state.device)
        words = words.scatter(1, batch["ids"], 1.0)[:, FIRST_WORD:]
        told = F.binary_cross_entropy_with_logits(self.summary(state[:, 0])[:, FIRST_WORD:], words, reduction="none")
        guess = mean_over_processes(wrong, known.sum())
        summary = told.sum(1).mean()
        right = ((answers.argmax(-1) == hidden) & known).sum() / known.sum()
        return {"loss": guess + self.settings.summary * summary, "guess": guess, "summary": summary, "right": right}

    def save(self, folder: Path) -> None:
        """Write the encoder and its tokenizer."""
        save_text(self.model, self.tokenizer, folder)


def read_sentences(file: str | None) -> list[str]:
    """The sentences of a text file, one a line, or of the worlds.

    Args:
        file: Path, or None.

    Returns:
        At least one sentence.

    Raises:
        TrainingError: When the file is unreadable or empty.
    """
    if file is None:
        return all_sentences()
    try:
        lines = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise TrainingError(f"{file} is not readable as UTF-8 text ({error}); give one sentence a line.") from error
    if not any(lines):
        raise TrainingError(f"{file} has no sentences; give one sentence a line.")
    return [line for line in lines if line]


def train_tokenizer(sentences: Sequence[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE and dress it as RoBERTa's tokenizer.

    Args:
        sentences: What to learn words from.
        vocabulary: Most tokens.

    Returns:
        The tokenizer.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizerFast

    words = ByteLevelBPETokenizer()
    words.train_from_iterator(
        sentences, vocab_size=vocabulary, min_frequency=2, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        words.save_model(folder)
        fast = RobertaTokenizerFast(vocab=f"{folder}/vocab.json", merges=f"{folder}/merges.txt")
        fast.save_pretrained(folder)
        return Tokenizer.from_pretrained(folder)
