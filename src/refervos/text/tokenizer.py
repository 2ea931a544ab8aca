"""Sentences to token ids: RoBERTa's byte-level BPE or T5's Unigram, from a local folder or the hub."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refervos.errors import CheckpointError, MissingDependencyError, PromptError
from refervos.hub import fetch
from refervos.prompts import normalise
from refervos.text.verbs import find_verbs

FAST, BYTE_LEVEL, SENTENCE_PIECE = ("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",)
"""Any of these sets of files makes a tokenizer: a fast one of either model, RoBERTa's and T5's."""

TOKENIZER_FILES = (*FAST, *BYTE_LEVEL, *SENTENCE_PIECE, "tokenizer_config.json", "special_tokens_map.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has ``tokenizer.json``, ``vocab.json`` with ``merges.txt``, or ``spiece.model``."""
    return any(_has(folder, files) for files in (FAST, BYTE_LEVEL, SENTENCE_PIECE))


def _has(folder: Path, files: Sequence[str]) -> bool:
    return all((folder / name).is_file() for name in files)


class Tokenizer:
    """A fast tokenizer of RoBERTa or T5 and the marks for words that tell motion.

    Args:
        fast: A ``transformers.PreTrainedTokenizerFast`` (or one with its interface).
    """

    def __init__(self, fast: Any) -> None:
        self.fast = fast

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Tokenizer:
        """Read the tokenizer of a RoBERTa or a T5 from a folder or the hub; see ``has_tokenizer`` for its files.

        Raises:
            CheckpointError: When there are no such files, or they are not readable.
            MissingDependencyError: When there is only ``spiece.model`` and no package to read it.
        """
        folder = Path(name_or_path)
        if not folder.is_dir():
            advice = "give the folder of a RoBERTa or T5 tokenizer (--tokenizer)"
            folder = fetch(str(name_or_path), TOKENIZER_FILES, advice)
        # transformers makes an empty tokenizer, without a word, of a folder that has none of these.
        if not has_tokenizer(folder):
            raise CheckpointError(
                f"{folder} has no tokenizer.json or vocab.json, nor a spiece.model; "
                "give the folder of a RoBERTa or T5 tokenizer."
            )
        try:
            return cls(_fast_class(folder).from_pretrained(str(folder)))
        except MissingDependencyError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception on a broken file
            reason = " ".join(str(error).split())[:160]
            raise CheckpointError(f"the tokenizer files in {folder} are not readable ({reason}).") from error

    def __len__(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self.fast)

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder."""
        self.fast.save_pretrained(str(folder))

    def encode(
        self,
        expression: str,
        verbs: Sequence[str] | None = None,
        *,
        find_motion: bool = False,
        limit: int = 512,
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a sentence, lower-cased, with the start and end tokens that its kind has.

        Args:
            expression: The sentence.
            verbs: The words that tell motion; when None and ``find_motion`` is set, spaCy finds them.
            find_motion: Whether verbs are wanted at all.
            limit: The longest sequence that the text encoder has positions for.

        Returns:
            Ids, and for each whether it belongs to a word that tells motion.

        Raises:
            PromptError: When the sentence is too long, or a given verb is not in it.
            MissingDependencyError: When verbs must be found and spaCy or its English model is missing.
        """
        sentence = normalise(expression)
        encoded = self.fast(sentence, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        if len(ids) > limit:
            raise PromptError(f"the expression has {len(ids)} tokens; this model reads at most {limit}.")
        spans: list[tuple[int, int]] = []
        if verbs is not None:
            spans = [_span(sentence, normalise(verb)) for verb in verbs]
        elif find_motion:
            spans = find_verbs(sentence)
        flags = [
            any(start < stop and start < span_stop and stop > span_start for span_start, span_stop in spans)
            for start, stop in offsets
        ]
        return list(ids), flags


def _fast_class(folder: Path) -> Any:
    """The class of transformers that reads a folder's tokenizer as it was written."""
    import transformers

    if _has(folder, FAST):
        # T5's own class would rebuild the file with a hundred sentinels, however many it has.
        written = json.loads((folder / FAST[0]).read_text(encoding="utf-8"))
        unigram = written.get("model", {}).get("type") == "Unigram"
        return transformers.PreTrainedTokenizerFast if unigram else transformers.RobertaTokenizerFast
    if _has(folder, BYTE_LEVEL):
        return transformers.RobertaTokenizerFast
    try:
        for needed in ("sentencepiece", "google.protobuf"):
            importlib.import_module(needed)
    except ImportError as error:
        raise MissingDependencyError(
            f"{folder} has its tokenizer only as spiece.model, which takes sentencepiece and protobuf to read: "
            "pip install 'refervos[t5]', or give a folder with tokenizer.json."
        ) from error
    return transformers.T5TokenizerFast


def _span(sentence: str, word: str) -> tuple[int, int]:
    """Where a word stands in a sentence, as a whole word."""
    padded = f" {sentence} "
    for end in (" ", ",", ".", ";", ":", "!", "?"):
        start = padded.find(f" {word}{end}")
        if start >= 0:
            return start, start + len(word)
    raise PromptError(f"the verb {word!r} is not a word of the expression {sentence!r}.")
