"""What models with random weights need to be measured: tokenizers, and answers that point an object out."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import tokenizers
import torch
from tokenizers import AddedToken, models, pre_tokenizers
from torch import Tensor

from refervos.text.tokenizer import Tokenizer
from refervos.videoglamm.config import VideoGlammConfig
from refervos.videoglamm.conversation import ChatTokenizer
from refervos.videoglamm.language import Context
from refervos.videoglamm.model import GeneratedToken, VideoGlamm

TOKENS_BEFORE = 2
"""Tokens of an answer before its ``[SEG]``, as in "It is [SEG]."."""


class HashTokenizer(Tokenizer):
    """Tokenizer for models with random weights, which hashes each word to one id.

    Args:
        vocabulary: Number of ids.
        start: Ids before a sentence.
        end: Ids after a sentence.
    """

    def __init__(self, vocabulary: int, start: tuple[int, ...], end: tuple[int, ...]) -> None:
        super().__init__(tokenizers.Tokenizer(models.BPE()))  # never used
        self.vocabulary, self.start, self.end = vocabulary, start, end

    def __len__(self) -> int:
        """Return the number of ids."""
        return self.vocabulary

    def encode(
        self, expression: str, verbs: Sequence[str] | None = None, *, find_motion: bool = False, limit: int = 512
    ) -> tuple[list[int], list[bool]]:
        """Encode each word as one id between start and end, and mark no word as motion."""
        reserved = 4  # at most: start, padding, end, unknown
        words = [reserved + zlib.crc32(word.encode()) % (self.vocabulary - reserved) for word in expression.split()]
        ids = [*self.start, *words[: limit - len(self.start) - len(self.end)], *self.end]
        return ids, [False] * len(ids)


class PointingModel(VideoGlamm):
    """VideoGLaMM with random weights that finds every object: its answers have a ``[SEG]`` after two words."""

    def generate(self, context: Context, **options: Any) -> Iterator[GeneratedToken]:
        """Generate such an answer."""

        def rule(generated: Sequence[int], logits: Tensor) -> Tensor:
            forced = torch.full_like(logits, -torch.inf)
            forced[self.config.seg if len(generated) == TOKENS_BEFORE else self.config.phi.pad] = 0
            return forced

        return super().generate(context, **{**options, "rule": rule})


def chat_tokenizer(config: VideoGlammConfig) -> ChatTokenizer:
    """Return a tokenizer with the template's tokens at the ids of a configuration, which maps each word to one id."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": config.phi.pad, "<|end|>": config.phi.end[-1], "[SEG]": config.seg}
    free = (number for number in range(config.phi.vocabulary) if number not in vocabulary.values())
    roles = ("<|system|>", "<|user|>", "<|assistant|>")
    vocabulary |= dict(zip((*roles, "<unk>"), free, strict=False))
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in (*roles, "<|end|>")])
    tokenizer.add_tokens([AddedToken("[SEG]", normalized=False)])
    return ChatTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<|end|>")
    )
