"""Stage ``language``: a small RoBERTa or T5 encoder and its tokenizer, trained on sentences alone.

Masked-language training as in RoBERTa (Liu et al. 2019): new masks at each step, no next-sentence task. A T5 encoder
learns the same way here, with its first sentinel as the mask; T5's own training needs the decoder that we do not have.
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
from refervos.training.distributed import mean_over_processes
from refervos.training.initialisation import initialise
from refervos.training.stage import SampleSource, Stage
from refervos.training.stages.ranges import SHARE, WEIGHT
from refervos.training.stages.word_meanings import MeaningHeads, WordMeanings, begin_with_meanings, word_sample
from refervos.typed_config import check_range
from refervos.worlds import all_sentences
from refervos.worlds.nouns import everyday_nouns

SELDOM = -5.0
"""The logit that a token is in a sentence, to begin with: of some thousand tokens a few are."""

ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
T5_TOKENS = ("<pad>", "</s>", "<unk>", "<extra_id_0>")
"""The special tokens of a new tokenizer in the published order of ids (T5's sentinels come after the words); the last
hides words."""

MOST_TOKENS = 1_000_000
"""That a new tokenizer may be told to learn: it takes room for all of them before it begins."""


@dataclass(frozen=True)
class LanguageSettings:
    """Settings of the stage.

    Attributes:
        kind: Which encoder: SAMWISE reads with a RoBERTa, RefSAM with a T5.
        model: Shape of a RoBERTa; its vocabulary becomes what the tokenizer has.
        t5: Shape of a T5 encoder; likewise.
        vocabulary: Most tokens that the tokenizer may learn; of a T5 every letter is one in any case.
        sentences: A text file with one sentence a line; default those of the worlds.
        nouns: Whether the worlds' sentences speak of everyday nouns and their synonyms as well as of shapes.
        teacher: Folder of a sentence encoder whose vectors of words are learnt as well; see ``WordMeanings``.
        words: A text file with more words to learn the meaning of, one a line.
        meaning: Weight of learning these.
        about_words: Share of the sentences that are made about one of these words.
        hidden: Share of the words that are to be guessed.
        summary: Weight of a second task: the vector from which prompts are made (a RoBERTa's first token, the mean of
            a T5's tokens) tells which tokens the sentence has.
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

    def __post_init__(self) -> None:
        check_range(
            self,
            vocabulary=(KINDS[self.kind].least_tokens, MOST_TOKENS),
            hidden=SHARE,
            about_words=SHARE,
            meaning=WEIGHT,
            summary=WEIGHT,
        )


@dataclass(frozen=True)
class SentenceSource(SampleSource):
    """Sentences with hidden words.

    Attributes:
        sentences: What is read.
        tokenizer: Makes tokens of it.
        words: Ids of the tokens that may be hidden, and stand for others.
        mask: Id of what hides a word.
        pad: Id of padding.
        max_tokens: The longest sequence that the encoder takes.
        hidden: Share of the words that are to be guessed.
        taught: Words whose meaning is learnt, if any.
        about_words: Share of the sentences that are made about one of them.
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
        """One sentence: its tokens with some hidden, what these are, the tokens themselves, int64 (L,) each; where the
        word is whose meaning is learnt, bool (L,), and which it is, -1 for none.
        """
        rng = np.random.default_rng([*key, step, index])
        if self.taught and rng.random() < self.about_words:
            ids, inside, which = word_sample(self.taught, self.tokenizer, self.max_tokens, rng)
        else:
            text = self.sentences[int(rng.integers(len(self.sentences)))]
            ids = np.array(self.tokenizer.encode(text, limit=self.max_tokens)[0])
            inside, which = np.zeros(len(ids), np.bool_), -1
        word = np.isin(ids, self.words) & ~inside  # what is to be understood must be seen
        chosen = word & (rng.random(len(ids)) < self.hidden)
        if not chosen.any() and word.any():
            chosen[rng.choice(np.nonzero(word)[0])] = True
        shown = ids.copy()
        luck = rng.random(len(ids))  # RoBERTa's 80 % hidden, 10 % another word, 10 % left
        shown[chosen & (luck < 0.8)] = self.mask
        other = chosen & (luck >= 0.8) & (luck < 0.9)
        shown[other] = self.words[rng.integers(len(self.words), size=other.sum())]
        hidden = np.where(chosen, ids, -100)
        return *(torch.from_numpy(array) for array in (shown, hidden, ids, inside)), which

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        """Pad to the longest sentence: ``shown``, ``ids``, ``inside`` (the tokens of the word whose meaning is learnt);
        ``places``, where something is to be guessed, and ``hidden``, what (-100 for padding); ``word``, whose meaning.
        """
        shown, every, ids, inside, which = (list(part) for part in zip(*samples, strict=True))
        places = [(row != -100).nonzero()[:, 0] for row in every]
        hidden = [row[place] for row, place in zip(every, places, strict=True)]
        return {
            "shown": pad_tokens(shown, self.pad),
            "places": pad_tokens(places, 0),
            "hidden": pad_tokens(hidden, -100),
            "ids": pad_tokens(ids, self.pad),
            "inside": nn.utils.rnn.pad_sequence(inside, batch_first=True),
            "word": torch.tensor(which),
        }


class LanguageStage(Stage):
    """Train a text encoder.

    Args:
        settings: See there.
        encoder: The weights to start from.
        tokenizer: Its tokenizer.
        sentences: What to read.
        meanings: What words mean to a teacher, if any.
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
        nn.init.constant_(self.summary.bias, SELDOM)  # else thousands of absent words drown all else at first
        self.taught = () if meanings is None else meanings.words
        self.meaning = None if meanings is None else MeaningHeads(width, meanings)
        self.kind = KINDS[settings.kind]
        self.mask = tokenizer.id_of(self.kind.special_tokens[-1])
        # On the CPU, for the processes that draw samples.
        self.words = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.special_ids)
        # And where the model is, so that no step has to bring them there.
        self.word_ids: Tensor
        self.register_buffer("word_ids", torch.from_numpy(self.words), persistent=False)

    @classmethod
    def build(cls, settings: LanguageSettings, init: Mapping[str, Path], seed: int) -> LanguageStage:
        """From an earlier language stage (``model``), otherwise from random weights and a new tokenizer."""
        torch.manual_seed(seed)
        sentences, kind = read_sentences(settings.sentences, nouns=settings.nouns), KINDS[settings.kind]
        meanings: WordMeanings | None = None
        if settings.teacher is not None:
            words = None if settings.words is None else Path(settings.words).expanduser()
            meanings = WordMeanings.of(Path(settings.teacher).expanduser(), words)
        if "model" in init:
            return cls(settings, *kind.load(init["model"]), sentences, meanings)
        known = [] if meanings is None else [f"the {word}" for word in meanings.words for _ in range(2)]
        tokenizer = kind.train_tokenizer([*sentences, *known], settings.vocabulary)
        torch.manual_seed(seed)
        encoder = kind.begin(settings, len(tokenizer))
        if meanings is not None and isinstance(encoder, TextEncoder):
            begin_with_meanings(encoder.roberta.embeddings.word_embeddings, tokenizer, meanings)
        return cls(settings, encoder, tokenizer, sentences, meanings)

    def source(self) -> SentenceSource:
        """Sentences with hidden words."""
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
        """Cross-entropy of the hidden words, and of what the summary tells about the sentence."""
        states = self.model(batch["shown"])  # (N, L, width)
        hidden = batch["hidden"]  # (N, H)
        known = hidden != -100
        places = batch["places"].unsqueeze(-1).expand(-1, -1, states.shape[-1])
        answers = self.guess(states.gather(1, places))  # (N, H, vocabulary); of all tokens it would be the dearest part
        wrong = F.cross_entropy(answers.flatten(0, 1), hidden.flatten(), ignore_index=-100, reduction="sum")
        present = torch.zeros(answers.shape[0], answers.shape[2], device=states.device)
        present = present.scatter(1, batch["ids"], 1.0)[:, self.word_ids]
        summary = self.kind.summarise(states, batch["shown"] != self.model.config.pad)  # (N, width)
        told = F.binary_cross_entropy_with_logits(self.summary(summary)[:, self.word_ids], present, reduction="none")
        guess_loss = mean_over_processes(wrong, known.sum())
        summary_loss = told.sum(1).mean()
        right = ((answers.argmax(-1) == hidden) & known).sum() / known.sum().clamp(min=1)
        losses = {
            "loss": guess_loss + self.settings.summary * summary_loss,
            "guess": guess_loss,
            "summary": summary_loss,
            "right": right,
        }
        if self.meaning is not None:
            losses |= self.meaning(states, summary, batch["inside"], batch["word"])
            losses["loss"] = losses["loss"] + self.settings.meaning * losses["meaning"]
        return losses

    def save(self, folder: Path) -> None:
        """Write the encoder and its tokenizer."""
        save_text(self.model, self.tokenizer, folder)


def read_sentences(file: str | None, *, nouns: bool = False) -> list[str]:
    """The sentences of a text file, one a line, or of the worlds.

    Args:
        file: Path, or None.
        nouns: Whether the worlds' sentences speak of everyday nouns too; half of them then still speak of shapes.

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
    """Train a byte-level BPE and dress it as RoBERTa's tokenizer.

    Args:
        sentences: What to learn words from.
        vocabulary: Most tokens.

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
    """Make a Unigram from sentences and dress it as T5's tokenizer, with one sentinel.

    The pieces are those of a BPE and as likely as they are frequent. The trainer for Unigrams that is at hand finds no
    piece that occurs in a single word, which most words of a small language do, and no two of its runs are alike.

    Args:
        sentences: What to learn words from.
        vocabulary: Most tokens.

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


def begin_roberta(settings: LanguageSettings, vocabulary: int) -> TextEncoder:
    """A RoBERTa with random weights from which narrow layers learn."""
    encoder = TextEncoder(replace(settings.model, vocabulary=vocabulary))
    initialise(encoder)
    return encoder


def begin_t5(settings: LanguageSettings, vocabulary: int) -> T5TextEncoder:
    """A T5 encoder with T5's own random weights, which look at the width already."""
    return T5TextEncoder(replace(settings.t5, vocabulary=vocabulary))


def first_token(states: Tensor, keep: Tensor) -> Tensor:
    """What SAMWISE makes its prompts of: the state of ``<s>``, (N, L, width) to (N, width)."""
    return states[:, 0]


def mean_token(states: Tensor, keep: Tensor) -> Tensor:
    """What RefSAM makes its sentence vector of: the mean over the tokens with ``</s>``, (N, L, width) to (N, width)."""
    shares = keep / keep.sum(1, keepdim=True)  # (N, L)
    return torch.einsum("nl,nlc->nc", shares.to(states.dtype), states)


@dataclass(frozen=True)
class Kind:
    """What tells the kinds of encoder apart.

    Attributes:
        special_tokens: Of a new tokenizer; the last hides words.
        least_tokens: Of a new tokenizer: those, and what it has beside them whatever it is trained on.
        train_tokenizer: From sentences and the most tokens.
        begin: An encoder with random weights, from the settings and the number of tokens.
        load: An encoder and its tokenizer from a folder.
        summarise: The vector that stands for a sentence, (N, width), from the states of its tokens (N, L, width) and
            where there is a token and not padding, bool (N, L).
    """

    special_tokens: tuple[str, ...]
    least_tokens: int
    train_tokenizer: Callable[[Sequence[str], int], Tokenizer]
    begin: Callable[[LanguageSettings, int], TextEncoder | T5TextEncoder]
    load: Callable[[Path], tuple[TextEncoder | T5TextEncoder, Tokenizer]]
    summarise: Callable[[Tensor, Tensor], Tensor]


KINDS: Mapping[str, Kind] = {
    "roberta": Kind(ROBERTA_TOKENS, len(ROBERTA_TOKENS) + 256, train_byte_level, begin_roberta, load_text, first_token),
    "t5": Kind(T5_TOKENS, len(T5_TOKENS), train_unigram, begin_t5, load_t5, mean_token),
}
