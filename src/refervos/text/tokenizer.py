"""Sentences to token ids: RoBERTa's byte-level BPE, from a local folder or the hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refervos.errors import CheckpointError, PromptError
from refervos.hub import fetch
from refervos.prompts import normalise
from refervos.text.verbs import find_verbs

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer: ``tokenizer.json``, or ``vocab.json`` with ``merges.txt``."""
    return (folder / "tokenizer.json").is_file() or all((folder / n).is_file() for n in ("vocab.json", "merges.txt"))


class Tokenizer:
    """A fast RoBERTa tokenizer and the marks for words that tell motion.

    Args:
        fast: A ``transformers.RobertaTokenizerFast`` (or one with its interface).
    """

    def __init__(self, fast: Any) -> None:
        self.fast = fast

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str]) -> Tokenizer:
        """Read ``tokenizer.json`` (or ``vocab.json`` and ``merges.txt``) from a folder or the hub.

        Raises:
            CheckpointError: When there are no such files.
        """
        from transformers import RobertaTokenizerFast

        folder = Path(name_or_path)
        if not folder.is_dir():
            folder = fetch(str(name_or_path), TOKENIZER_FILES, "give the folder of a RoBERTa tokenizer (--tokenizer)")
        # transformers makes an empty tokenizer, without a word, of a folder that has none of these.
        if not has_tokenizer(folder):
            raise CheckpointError(f"{folder} has no tokenizer.json or vocab.json; give a RoBERTa tokenizer's folder.")
        try:
            return cls(RobertaTokenizerFast.from_pretrained(str(folder)))
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
        """Token ids of a sentence, lower-cased, with start and end tokens.

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


def _span(sentence: str, word: str) -> tuple[int, int]:
    """Where a word stands in a sentence, as a whole word."""
    padded = f" {sentence} "
    for end in (" ", ",", ".", ";", ":", "!", "?"):
        start = padded.find(f" {word}{end}")
        if start >= 0:
            return start, start + len(word)
    raise PromptError(f"the verb {word!r} is not a word of the expression {sentence!r}.")
