"""Tokenizers: RoBERTa's byte-level BPE and T5's Unigram, from a local folder or the Hugging Face Hub."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from refervos.checkpoints.hub import fetch
from refervos.errors import CheckpointError, ConfigError, MissingDependencyError, PromptError
from refervos.prompts import normalise
from refervos.text.verbs import find_verbs

FAST, BYTE_LEVEL, SENTENCE_PIECE = ("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",)
"""Sets of files, any of which is enough for a tokenizer: a fast tokenizer of either kind, RoBERTa's, T5's."""

SETTINGS = "tokenizer_config.json"
"""Settings for transformers: the tokenizer class and the roles of special tokens."""

TOKENIZER_FILES = (*FAST, *BYTE_LEVEL, *SENTENCE_PIECE, SETTINGS)

ROBERTA_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
T5_ROLES = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
"""Special tokens of each kind, by transformers' names for their roles."""


def has_tokenizer(folder: Path) -> bool:
    """Return True if a folder has ``tokenizer.json``, ``vocab.json`` and ``merges.txt``, or ``spiece.model``."""
    return any(_has(folder, files) for files in (FAST, BYTE_LEVEL, SENTENCE_PIECE))


def _has(folder: Path, files: Sequence[str]) -> bool:
    return all((folder / name).is_file() for name in files)


class Tokenizer:
    """Tokenizer of RoBERTa or T5, which also flags motion words.

    Args:
        model: The underlying tokenizer.
    """

    def __init__(self, model: tokenizers.Tokenizer) -> None:
        self.model = model

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Tokenizer:
        """Load the tokenizer of a RoBERTa or T5 from a folder or the Hub; see ``has_tokenizer`` for its files.

        Raises:
            CheckpointError: When there are no such files, or they are not readable.
            MissingDependencyError: When there is only ``spiece.model``, and the packages to read it are missing.
        """
        folder = Path(name_or_path)
        advice = "give the folder of a RoBERTa or T5 tokenizer"
        if not folder.is_dir():
            folder = fetch(str(name_or_path), TOKENIZER_FILES, f"{advice} (--tokenizer)")
        if not has_tokenizer(folder):
            raise CheckpointError(f"{folder} has no tokenizer.json or vocab.json, nor a spiece.model; {advice}.")
        try:
            model = _read(folder)
        except MissingDependencyError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception on a broken file
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"the tokenizer files in {folder} are not readable ({reason}).") from error
        if not isinstance(model.model, models.BPE | models.Unigram):
            kind = type(model.model).__name__
            raise CheckpointError(f"the tokenizer in {folder} is a {kind}, neither a BPE nor a Unigram; {advice}.")
        model.no_truncation()  # even if the file asks for it: too long a sentence is an error
        model.no_padding()
        return cls(model)

    def __len__(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.model.get_vocab_size()

    @property
    def special_ids(self) -> list[int]:
        """Ids of the special tokens, ascending."""
        return sorted(index for index, token in self.model.get_added_tokens_decoder().items() if token.special)

    def id_of(self, token: str) -> int:
        """Return the id of a token.

        Raises:
            ConfigError: When there is no such token.
        """
        index = self.model.token_to_id(token)
        if index is None:
            raise ConfigError(f"the tokenizer has no token {token!r}; give the tokenizer of the text encoder.")
        return index

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens with given ids, as spelled in the vocabulary.

        Raises:
            ConfigError: When an id is not in the vocabulary.
        """
        found = [self.model.id_to_token(index) if index >= 0 else None for index in ids]
        known = [token for token in found if token is not None]
        if len(known) < len(found):
            raise ConfigError(f"the token ids {list(ids)} are not all in the vocabulary, which has {len(self)} tokens.")
        return known

    def save_pretrained(self, folder: Path) -> None:
        """Save ``tokenizer.json`` and the settings with which transformers can read it too."""
        roles = ROBERTA_ROLES if isinstance(self.model.model, models.BPE) else T5_ROLES
        known = {role: token for role, token in roles.items() if self.model.token_to_id(token) is not None}
        others = [token for token in self.tokens(self.special_ids) if token not in known.values()]
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **known, "additional_special_tokens": others}
        self.model.save(str(folder / FAST[0]))
        (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def encode(
        self,
        expression: str,
        verbs: Sequence[str] | None = None,
        *,
        find_motion: bool = False,
        limit: int = 512,
    ) -> tuple[list[int], list[bool]]:
        """Encode a sentence, lower-cased, with the start and end tokens of this tokenizer.

        Args:
            expression: The sentence.
            verbs: Its motion words; when None and ``find_motion`` is set, spaCy finds them.
            find_motion: Find motion words when none are given.
            limit: Length of the longest sequence that the text encoder takes.

        Returns:
            Token ids, and for each whether it belongs to a motion word.

        Raises:
            PromptError: When the sentence is too long or not Unicode, or a given verb is not in it.
            MissingDependencyError: When verbs must be found and spaCy or its English model is missing.
        """
        sentence = normalise(expression)
        try:
            encoded = self.model.encode(sentence)
        except TypeError as error:
            raise PromptError(f"the expression {sentence!r} is not valid Unicode (it has a lone surrogate).") from error
        ids = encoded.ids
        if len(ids) > limit:
            raise PromptError(f"the expression has {len(ids)} tokens; this model reads at most {limit}.")
        spans: list[tuple[int, int]] = []
        if verbs is not None:
            spans = [_span(sentence, normalise(verb)) for verb in verbs]
        elif find_motion:
            spans = find_verbs(sentence)
        flags = [
            any(start < stop and start < span_stop and stop > span_start for span_start, span_stop in spans)
            for start, stop in encoded.offsets
        ]
        return ids, flags


def _read(folder: Path) -> tokenizers.Tokenizer:
    if _has(folder, FAST):
        return tokenizers.Tokenizer.from_file(str(folder / FAST[0]))
    if _has(folder, BYTE_LEVEL):
        return byte_level_bpe(folder / BYTE_LEVEL[0], folder / BYTE_LEVEL[1])
    return _read_sentence_piece(folder)


def _read_sentence_piece(folder: Path) -> tokenizers.Tokenizer:
    """Read T5's published tokenizer, a sentencepiece file, which does not list the sentinel tokens."""
    try:
        for needed in ("sentencepiece", "google.protobuf"):
            importlib.import_module(needed)
        format_ = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise MissingDependencyError(
            f"{folder} has its tokenizer only as spiece.model, which needs sentencepiece and protobuf: "
            "pip install 'refervos[t5]', or give a folder with tokenizer.json."
        ) from error
    proto = format_.ModelProto()
    proto.ParseFromString((folder / SENTENCE_PIECE[0]).read_bytes())
    if proto.trainer_spec.model_type != proto.trainer_spec.UNIGRAM:
        raise ValueError("spiece.model is not a Unigram model, as T5's is")
    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8")) if _has(folder, (SETTINGS,)) else {}
    sentinels = [f"<extra_id_{index}>" for index in reversed(range(settings.get("extra_ids", 100)))]
    control = [piece.piece for piece in proto.pieces if piece.type == piece.CONTROL]
    pieces = [*((piece.piece, piece.score) for piece in proto.pieces), *((token, 0.0) for token in sentinels)]
    model = unigram(pieces, [*control, *sentinels], proto.normalizer_spec.precompiled_charsmap)
    whole = [piece.piece for piece in proto.pieces if piece.type == piece.USER_DEFINED]  # never split
    model.add_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in whole])
    return model


def byte_level_bpe(vocabulary: Path, merges: Path) -> tokenizers.Tokenizer:
    """Make RoBERTa's tokenizer (Liu et al. 2019, section 4.4) from its files.

    Args:
        vocabulary: JSON file with the id of each token.
        merges: Pairs of tokens, one per line, in the order in which they are merged.

    Returns:
        A tokenizer that puts sentences between ``<s>`` and ``</s>``.

    Raises:
        ValueError: When a special token of RoBERTa is missing.
    """
    words = models.BPE.from_file(
        str(vocabulary), str(merges), continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False
    )
    model = tokenizers.Tokenizer(words)
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    ids = _mark_special(model, list(ROBERTA_ROLES.values()))
    model.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), trim_offsets=True, add_prefix_space=False
    )
    return model


def unigram(
    pieces: Sequence[tuple[str, float]], special: Sequence[str] = (), charsmap: bytes = b""
) -> tokenizers.Tokenizer:
    """Make T5's tokenizer (Kudo 2018, arXiv 1804.10959) from word pieces.

    Args:
        pieces: Every token with its log-likelihood, in the order of the ids; ``▁`` is a space.
        special: Special tokens besides T5's own.
        charsmap: Character normalisation as compiled by sentencepiece.

    Returns:
        A tokenizer that ends sentences with ``</s>``.

    Raises:
        ValueError: When a special token of T5 is missing.
    """
    unknown = next((index for index, (piece, _) in enumerate(pieces) if piece == "<unk>"), None)
    model = tokenizers.Tokenizer(models.Unigram(list(pieces), unk_id=unknown, byte_fallback=False))
    if charsmap:
        model.normalizer = normalizers.Precompiled(charsmap)
    words = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    model.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), words])
    model.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    ids = _mark_special(model, [*T5_ROLES.values(), *special])
    model.post_processor = processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", ids["</s>"])]
    )
    return model


def _mark_special(model: tokenizers.Tokenizer, special: Sequence[str]) -> dict[str, int]:
    """Mark tokens of the vocabulary as special, so that they are never split or decoded; return their ids."""
    ids = {token: model.token_to_id(token) for token in special}
    known = {token: index for token, index in ids.items() if index is not None}
    if len(known) < len(ids):
        raise ValueError(f"there is no token {min(ids.keys() - known.keys())}")
    model.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in special])
    return known


def _span(sentence: str, word: str) -> tuple[int, int]:
    """Find the span of a whole word in a sentence."""
    padded = f" {sentence} "
    for end in (" ", ",", ".", ";", ":", "!", "?"):
        start = padded.find(f" {word}{end}")
        if start >= 0:
            return start, start + len(word)
    raise PromptError(f"the verb {word!r} is not a word of the expression {sentence!r}.")
