"""States of nouns inside a text encoder, for auxiliary tasks that compare images with nouns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from refervos.errors import CheckpointError, TrainingError
from refervos.loading import load
from refervos.samwise.model import FIRST_ADAPTED_STAGE, Samwise
from refervos.text.encoder import TextEncoder, pad_tokens
from refervos.text.pretrained import load_text
from refervos.text.tokenizer import Tokenizer

TEMPLATES = ("the {}", "a {}", "the red {}", "the {} on the left", "the {} that moves")
"""Sentences around a noun; the states of its tokens depend on the words around it."""

_BATCH = 256  # nouns in a batch of the text encoder


def load_nouns_of(folder: Path, names: Sequence[str]) -> list[list[Tensor]]:
    """Compute the states of nouns in the text encoder of a language stage or of a SAMWISE.

    Args:
        folder: Its folder.
        names: W nouns.

    Returns:
        For each template, the states at the input of the second and third adapter, float32 (W, D) each.

    Raises:
        CheckpointError: When the folder is no model.
        TrainingError: When the model has no such text encoder, or no tokenizer.
    """
    try:
        text, tokenizer = load_text(folder)
    except CheckpointError as error:
        model = load(folder, device="cpu")
        if not isinstance(model, Samwise) or model.tokenizer is None:
            raise TrainingError(
                f"{folder} has no text encoder and tokenizer of SAMWISE or of a language stage."
            ) from error
        text, tokenizer = model.text, model.tokenizer
    return noun_states(text, tokenizer, names)


@dataclass(frozen=True)
class NounTokens:
    """Tokens of W nouns in one sentence each.

    Attributes:
        ids: Token ids, int64 (W, L).
        own: The noun's own tokens, bool (W, L).
        pad: Id of the padding token.
    """

    ids: Tensor
    own: Tensor
    pad: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, names: Sequence[str], template: str, pad: int) -> NounTokens:
        """Tokenize nouns inside a sentence, one of ``TEMPLATES``."""
        before, _ = template.split("{}")
        start = len(tokenizer.encode(before.strip())[0]) - 1  # without the closing token
        ids = pad_tokens([torch.tensor(tokenizer.encode(template.format(name))[0]) for name in names], pad)
        ends = torch.tensor([len(tokenizer.encode(before + name)[0]) - 1 for name in names])
        position = torch.arange(ids.shape[1])
        return cls(ids, (position >= start) & (position < ends.unsqueeze(1)), pad)

    def states(self, text: TextEncoder, rows: Tensor) -> list[Tensor]:
        """Compute the mean states of some nouns' own tokens.

        Args:
            text: The text encoder.
            rows: Indices of w nouns, int64 (w,), on the CPU.

        Returns:
            The states at the input of the second and third adapter, float32 (w, D) each.
        """
        device = next(text.parameters()).device
        ids, own = self.ids[rows].to(device), self.own[rows].to(device).float().unsqueeze(-1)
        length = int((ids != self.pad).sum(1).max())
        ids, own = ids[:, :length], own[:, :length]
        keep = ids != self.pad
        states, parts = text.embed(ids), []
        for segment in range(4):
            states = text.run_segment(segment, states, keep)
            if segment > FIRST_ADAPTED_STAGE:
                parts.append((states * own).sum(1) / own.sum(1))
        return parts


@torch.no_grad()
def noun_states(text: TextEncoder, tokenizer: Tokenizer, names: Sequence[str]) -> list[list[Tensor]]:
    """Compute the mean state of each noun's own tokens in several sentences.

    Args:
        text: The text encoder.
        tokenizer: Its tokenizer.
        names: W nouns.

    Returns:
        For each template, the states at the input of the second and third adapter, float32 (W, D) each.
    """
    found = []
    for template in TEMPLATES:
        tokens = NounTokens.of(tokenizer, names, template, text.config.pad)
        batches = [tokens.states(text, rows) for rows in torch.arange(len(names)).split(_BATCH)]
        found.append([torch.cat(part) for part in zip(*batches, strict=True)])
    return found
