"""Stage ``language``: a small RoBERTa or T5 encoder and its tokenizer, trained on text only.

Masked language modelling as in RoBERTa (Liu et al. 2019): dynamic masking, no next-sentence task. A T5 encoder learns
the same way, with its first sentinel as the mask token; T5's own objective needs a decoder, which we do not have.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.errors import TrainingError
from refervos.files.plain_text import read_entries
from refervos.text.encoder import TextConfig, TextEncoder, pad_tokens
from refervos.text.pretrained import load_t5, load_text, save_text
from refervos.text.t5 import T5Config, T5TextEncoder
from refervos.text.tokenizer import Tokenizer, unigram
from refervos.training.initialisation import initialise
from refervos.training.stage import SampleSource, Stage
from refervos.training.stages.ranges import ASPECTS, SHARE, WEIGHT
from refervos.training.stages.track import load_tracker
from refervos.training.stages.word_looks import NamedCells, WordLooks
from refervos.training.stages.word_meanings import (
    MeaningHeads,
    WordMeanings,
    draw_word_sample,
    initialise_embeddings,
    take_nearest,
)
from refervos.training.step_means import ratio
from refervos.typed_config import check_not_empty, check_range
from refervos.worlds import WorldConfig, all_sentences
from refervos.worlds.nouns import everyday_nouns

RARE_TOKEN_LOGIT = -5.0
"""Initial logit of a token's presence in a sentence, which has only a few of some thousand tokens."""

ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
T5_TOKENS = ("<pad>", "</s>", "<unk>", "<extra_id_0>")
"""Special tokens of a new tokenizer in the published order of ids (T5's sentinels come after the words); the last is
the mask token."""

LOOKS = 7
"""Part of the seed of the images whose objects are looked at."""

MAX_TOKENS = 1_000_000
"""Largest vocabulary of a new tokenizer, which allocates memory for all tokens in advance."""


@dataclass(frozen=True)
class LanguageSettings:
    """Settings of the stage.

    Attributes:
        kind: Kind of encoder: SAMWISE uses a RoBERTa, RefSAM a T5.
        model: Shape of a RoBERTa; its vocabulary is replaced by the tokenizer's.
        t5: Shape of a T5 encoder; its vocabulary is replaced by the tokenizer's.
        vocabulary: Largest vocabulary of the tokenizer; a T5's always includes every character.
        sentences: A text file with one sentence a line; default the sentences of the worlds.
        nouns: Include everyday nouns and their synonyms in the worlds' sentences besides shapes.
        teacher: Folder of a sentence encoder whose word vectors are distilled; see ``WordMeanings``.
        words: A text file with more words to distil, one a line.
        meaning: Weight of the distillation loss.
        about_words: Share of the sentences that are about one of the distilled words.
        hidden: Share of the words that are masked.
        summary: Weight of a second task: to predict the sentence's tokens from the vector that prompts are made from
            (a RoBERTa's first token, the mean of a T5's tokens).
        looks: Weight of a third task, for a RoBERTa: to predict from the states of nouns the image tokens of their
            objects in a tracker, which is named under ``init``; see ``WordLooks``.
        nearest: At the end, let each distilled word that no sentence of the worlds has take the embedding of the noun
            that is nearest to it by the teacher, if their cosine is at least this; default none does.
        world: Distribution of the scenes of these objects.
        aspects: Width over height of these images; one is drawn for each.
        images: Number of these images, drawn once.
    """

    kind: Literal["roberta", "t5"] = "roberta"
    model: TextConfig = field(default_factory=TextConfig)
    t5: T5Config = field(default_factory=T5Config)
    vocabulary: int = 1000
    sentences: str | None = None
    nouns: bool = False
    teacher: str | None = None
    words: str | None = None
    meaning: float = 4.0
    about_words: float = 0.5
    hidden: float = 0.2
    summary: float = 1.0
    looks: float = 0.0
    nearest: float | None = None
    world: WorldConfig = field(default_factory=WorldConfig)
    aspects: tuple[float, ...] = (1.0, 4 / 3, 16 / 9, 3 / 4)
    images: int = 6000

    def __post_init__(self) -> None:
        check_range(
            self,
            vocabulary=(KINDS[self.kind].least_tokens, MAX_TOKENS),
            hidden=SHARE,
            about_words=SHARE,
            meaning=WEIGHT,
            summary=WEIGHT,
            looks=WEIGHT,
            nearest=SHARE,
            aspects=ASPECTS,
            images=(1, 10**6),
        )
        check_not_empty(self, "aspects")
        if self.looks and self.kind != "roberta":
            raise TrainingError(f"looks is trained in a RoBERTa, not in a {self.kind}; set looks to 0.")


@dataclass(frozen=True)
class SentenceSource(SampleSource):
    """Source of sentences with masked words.

    Attributes:
        sentences: Sentences to draw from.
        tokenizer: The encoder's tokenizer.
        words: Ids of the tokens that may be masked, or drawn as random replacements.
        mask: Id of the mask token.
        pad: Id of the padding token.
        max_tokens: Longest sequence of the encoder.
        hidden: Share of the words to mask.
        taught: Words whose meaning is distilled, if any.
        about_words: Share of the sentences that are about one of them.
    """

    sentences: Sequence[str]
    tokenizer: Tokenizer
    words: npt.NDArray[np.int64]
    mask: int
    pad: int
    max_tokens: int
    hidden: float
    taught: Sequence[str] = ()
    about_words: float = 0.0

    def draw(self, step: int, index: int, key: Sequence[int]) -> Any:
        """Draw a sentence.

        Returns:
            Input ids with some masked, the masked ids (-100 elsewhere) and the original ids, int64 (L,) each; the
            tokens of the distilled word, bool (L,), and the word's index, -1 for none.
        """
        rng = np.random.default_rng([*key, step, index])
        if self.taught and rng.random() < self.about_words:
            ids, in_word, word = draw_word_sample(self.taught, self.tokenizer, self.max_tokens, rng)
        else:
            text = self.sentences[int(rng.integers(len(self.sentences)))]
            ids = np.array(self.tokenizer.encode(text, limit=self.max_tokens)[0])
            in_word, word = np.zeros(len(ids), np.bool_), -1
        maskable = np.isin(ids, self.words) & ~in_word  # the distilled word must be visible
        chosen = maskable & (rng.random(len(ids)) < self.hidden)
        if not chosen.any() and maskable.any():
            chosen[rng.choice(np.nonzero(maskable)[0])] = True
        inputs = ids.copy()
        chance = rng.random(len(ids))  # RoBERTa's 80 % mask token, 10 % random token, 10 % unchanged
        inputs[chosen & (chance < 0.8)] = self.mask
        random = chosen & (chance >= 0.8) & (chance < 0.9)
        inputs[random] = self.words[rng.integers(len(self.words), size=random.sum())]
        labels = np.where(chosen, ids, -100)
        return *(torch.from_numpy(array) for array in (inputs, labels, ids, in_word)), word

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        """Pad to the longest sentence.

        Returns:
            ``inputs`` and ``ids`` (N, L), ``in_word`` bool (N, L) and ``word`` (N,) as drawn; ``positions`` of the
            masked tokens and their ``labels`` (-100 for padding), (N, H) each.
        """
        inputs, masked, ids, in_word, word = (list(part) for part in zip(*samples, strict=True))
        positions = [(row != -100).nonzero()[:, 0] for row in masked]
        labels = [row[chosen] for row, chosen in zip(masked, positions, strict=True)]
        return {
            "inputs": pad_tokens(inputs, self.pad),
            "positions": pad_tokens(positions, 0),
            "labels": pad_tokens(labels, -100),
            "ids": pad_tokens(ids, self.pad),
            "in_word": nn.utils.rnn.pad_sequence(in_word, batch_first=True),
            "word": torch.tensor(word),
        }


class LanguageStage(Stage):
    """Training of a text encoder.

    Args:
        settings: Settings of the stage.
        encoder: The encoder with its initial weights.
        tokenizer: The encoder's tokenizer.
        sentences: Sentences to train on.
        meanings: Word vectors of a teacher, if any.
        cells: Image tokens with the nouns of their objects, if looks are trained.
    """

    name: ClassVar[str] = "language"
    Settings: ClassVar[type] = LanguageSettings
    model: TextEncoder | T5TextEncoder

    def __init__(
        self,
        settings: LanguageSettings,
        encoder: TextEncoder | T5TextEncoder,
        tokenizer: Tokenizer,
        sentences: Sequence[str],
        meanings: WordMeanings | None = None,
        cells: NamedCells | None = None,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.model = encoder
        self.tokenizer = tokenizer
        self.sentences = sentences
        width, vocabulary = encoder.config.width, encoder.config.vocabulary
        self.guess = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, vocabulary)
        )
        self.summary = nn.Linear(width, vocabulary)
        nn.init.constant_(self.summary.bias, RARE_TOKEN_LOGIT)  # else thousands of absent words dominate at first
        self.meanings = meanings
        self.taught = () if meanings is None else meanings.words
        self.meaning = None if meanings is None else MeaningHeads(width, meanings)
        self.looks = None if cells is None else WordLooks(cells, tokenizer, width, encoder.config.pad)
        self.kind = KINDS[settings.kind]
        self.mask = tokenizer.id_of(self.kind.special_tokens[-1])
        # On the CPU, for the data workers.
        self.words = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.special_ids)
        # And on the model's device, so that no step has to copy them.
        self.word_ids: Tensor
        self.register_buffer("word_ids", torch.from_numpy(self.words), persistent=False)

    @classmethod
    def build(cls, settings: LanguageSettings, init: Mapping[str, Path], seed: int) -> LanguageStage:
        """Build the stage from an earlier language stage (``model``), or from random weights and a new tokenizer.

        The looks of nouns are those in ``tracker``, a SAM2 or a model over one.
        """
        torch.manual_seed(seed)
        sentences, kind = read_sentences(settings.sentences, nouns=settings.nouns), KINDS[settings.kind]
        meanings: WordMeanings | None = None
        if settings.teacher is not None:
            words = None if settings.words is None else Path(settings.words).expanduser()
            meanings = WordMeanings.from_teacher(Path(settings.teacher).expanduser(), words)
        cells: NamedCells | None = None
        if settings.looks:
            if "tracker" not in init:
                raise TrainingError("looks needs the image encoder of a tracker; name one under init, as tracker.")
            cells = NamedCells.draw(
                load_tracker(init["tracker"]), settings.world, settings.aspects, settings.images, (seed, LOOKS)
            )
        if "model" in init:
            return cls(settings, *kind.load(init["model"]), sentences, meanings, cells)
        known = [] if meanings is None else [f"the {word}" for word in meanings.words for _ in range(2)]
        tokenizer = kind.train_tokenizer([*sentences, *known], settings.vocabulary)
        torch.manual_seed(seed)
        encoder = kind.new_encoder(settings, len(tokenizer))
        if meanings is not None and isinstance(encoder, TextEncoder):
            initialise_embeddings(encoder.roberta.embeddings.word_embeddings, tokenizer, meanings)
        return cls(settings, encoder, tokenizer, sentences, meanings, cells)

    def source(self) -> SentenceSource:
        """Return the source of sentences with masked words."""
        shape = self.model.config
        return SentenceSource(
            sentences=self.sentences,
            tokenizer=self.tokenizer,
            words=self.words,
            mask=self.mask,
            pad=shape.pad,
            max_tokens=shape.max_tokens,
            hidden=self.settings.hidden,
            taught=self.taught,
            about_words=self.settings.about_words,
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Compute the cross-entropy of the masked words, and of the sentence's tokens predicted from its summary."""
        states = self.model(batch["inputs"])  # (N, L, width)
        labels = batch["labels"]  # (N, H)
        known = labels != -100
        positions = batch["positions"].unsqueeze(-1).expand(-1, -1, states.shape[-1])
        logits = self.guess(states.gather(1, positions))  # (N, H, vocabulary); costly for all tokens
        entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        present = torch.zeros(logits.shape[0], logits.shape[2], device=states.device)
        present = present.scatter(1, batch["ids"], 1.0)[:, self.word_ids]
        summary = self.kind.summarise(states, batch["inputs"] != self.model.config.pad)  # (N, width)
        in_summary = self.summary(summary)[:, self.word_ids]
        guess_loss = self.mean("guess", entropy, known.sum())
        summary_loss = F.binary_cross_entropy_with_logits(in_summary, present, reduction="none").sum(1).mean()
        right = ratio(((logits.argmax(-1) == labels) & known).sum(), known.sum())
        losses = {
            "loss": guess_loss + self.settings.summary * summary_loss,
            "guess": guess_loss,
            "summary": summary_loss,
            "right": right,
        }
        if self.meaning is not None:
            losses |= self.meaning(states, summary, batch["in_word"], batch["word"], self.mean)
            losses["loss"] = losses["loss"] + self.settings.meaning * losses["meaning"]
        if self.looks is not None:
            assert isinstance(self.model, TextEncoder)
            losses["looks"] = self.looks(self.model)
            losses["loss"] = losses["loss"] + self.settings.looks * losses["looks"]
        return losses

    def save(self, folder: Path) -> None:
        """Write the encoder and its tokenizer."""
        if self.settings.nearest is not None and self.meanings is not None and isinstance(self.model, TextEncoder):
            embeddings = self.model.roberta.embeddings.word_embeddings
            take_nearest(embeddings, self.tokenizer, self.meanings, self.sentences, self.settings.nearest)
        save_text(self.model, self.tokenizer, folder)


def read_sentences(file: str | None, *, nouns: bool = False) -> list[str]:
    """Read the sentences of a text file, one a line, or list those of the worlds.

    Args:
        file: Path of the file; None for the worlds' sentences.
        nouns: Include everyday nouns in the worlds' sentences; half of them are still about shapes.

    Returns:
        At least one sentence.

    Raises:
        TrainingError: When the file is unreadable or empty.
    """
    if file is None:
        shapes = all_sentences()
        if not nouns:
            return shapes
        names = [name for noun in everyday_nouns().values() for name in (noun.word, *noun.synonyms)]
        things = all_sentences(names)
        return things + shapes * (len(things) // len(shapes))
    return read_entries(Path(file).expanduser(), "sentence", TrainingError)


def train_byte_level(sentences: Sequence[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer in RoBERTa's format.

    Args:
        sentences: Sentences to train on.
        vocabulary: Largest number of tokens.

    Returns:
        The tokenizer.
    """
    from tokenizers import ByteLevelBPETokenizer

    words = ByteLevelBPETokenizer()
    words.train_from_iterator(
        sentences, vocab_size=vocabulary, min_frequency=2, special_tokens=list(ROBERTA_TOKENS), show_progress=False
    )
    with tempfile.TemporaryDirectory() as folder:
        words.save_model(folder)
        return Tokenizer.from_pretrained(folder)


def train_unigram(sentences: Sequence[str], vocabulary: int) -> Tokenizer:
    """Make a Unigram tokenizer in T5's format, with one sentinel.

    The pieces are those of a BPE, with their frequencies as probabilities. The Unigram trainer of ``tokenizers`` finds
    no piece that occurs in a single word only, as most of a small language do, and is not deterministic.

    Args:
        sentences: Sentences to train on.
        vocabulary: Largest number of tokens.

    Returns:
        The tokenizer.
    """
    from tokenizers import SentencePieceBPETokenizer

    *first, sentinel = T5_TOKENS
    pairs = SentencePieceBPETokenizer()
    pairs.train_from_iterator(
        sentences, vocab_size=vocabulary - 1, min_frequency=2, special_tokens=first, show_progress=False
    )
    counts = Counter(piece for encoding in pairs.encode_batch(list(sentences)) for piece in encoding.tokens)
    total = counts.total()
    pieces = sorted(pairs.get_vocab(), key=pairs.token_to_id)[len(first) :]
    scores = [(piece, math.log((counts[piece] + 1) / total)) for piece in pieces]
    model = unigram([*((token, 0.0) for token in first), *scores, (sentinel, 0.0)], [sentinel])
    with tempfile.TemporaryDirectory() as folder:  # the file rounds the scores
        Tokenizer(model).save_pretrained(Path(folder))
        return Tokenizer.from_pretrained(folder)


def new_roberta(settings: LanguageSettings, vocabulary: int) -> TextEncoder:
    """Make a RoBERTa with random weights that suit narrow layers."""
    encoder = TextEncoder(replace(settings.model, vocabulary=vocabulary))
    initialise(encoder)
    return encoder


def new_t5(settings: LanguageSettings, vocabulary: int) -> T5TextEncoder:
    """Make a T5 encoder with T5's own random weights, which depend on the width."""
    return T5TextEncoder(replace(settings.t5, vocabulary=vocabulary))


def first_token(states: Tensor, keep: Tensor) -> Tensor:
    """Return the state of ``<s>``, from which SAMWISE makes its prompts: (N, L, width) -> (N, width)."""
    return states[:, 0]


def mean_token(states: Tensor, keep: Tensor) -> Tensor:
    """Average the tokens, ``</s>`` included, into RefSAM's sentence vector: (N, L, width) -> (N, width)."""
    shares = keep / keep.sum(1, keepdim=True)  # (N, L)
    return torch.einsum("nl,nlc->nc", shares.to(states.dtype), states)


@dataclass(frozen=True)
class EncoderKind:
    """Functions and constants of one kind of text encoder.

    Attributes:
        special_tokens: Special tokens of a new tokenizer; the last is the mask token.
        least_tokens: Smallest vocabulary of a new tokenizer: the special tokens, and the alphabet if it is fixed.
        train_tokenizer: Trains a tokenizer on sentences, given the largest number of tokens.
        new_encoder: Makes an encoder with random weights, given the settings and the number of tokens.
        load: Loads an encoder and its tokenizer from a folder.
        summarise: Reduces the states of a sentence's tokens (N, L, width) to one vector (N, width), given the tokens
            that are no padding, bool (N, L).
    """

    special_tokens: tuple[str, ...]
    least_tokens: int
    train_tokenizer: Callable[[Sequence[str], int], Tokenizer]
    new_encoder: Callable[[LanguageSettings, int], TextEncoder | T5TextEncoder]
    load: Callable[[Path], tuple[TextEncoder | T5TextEncoder, Tokenizer]]
    summarise: Callable[[Tensor, Tensor], Tensor]


KINDS: Mapping[str, EncoderKind] = {
    "roberta": EncoderKind(
        ROBERTA_TOKENS, len(ROBERTA_TOKENS) + 256, train_byte_level, new_roberta, load_text, first_token
    ),
    "t5": EncoderKind(T5_TOKENS, len(T5_TOKENS), train_unigram, new_t5, load_t5, mean_token),
}
