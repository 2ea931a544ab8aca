"""States of nouns inside a frozen text encoder, for auxiliary tasks that compare images with nouns."""

from __future__ import annotations

from collections.abc import Sequence
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
    device = next(text.parameters()).device
    found = []
    for template in TEMPLATES:
        before, _ = template.split("{}")
        start = len(tokenizer.encode(before.strip())[0]) - 1  # without the closing token
        parts: list[list[Tensor]] = [[], []]
        for first in range(0, len(names), _BATCH):
            some = names[first : first + _BATCH]
            ids = [torch.tensor(tokenizer.encode(template.format(name))[0]) for name in some]
            ends = torch.tensor([len(tokenizer.encode(before + name)[0]) - 1 for name in some], device=device)
            batch = pad_tokens(ids, text.config.pad).to(device)  # (w, L)
            keep = batch != text.config.pad
            position = torch.arange(batch.shape[1], device=device)
            own = ((position >= start) & (position < ends.unsqueeze(1))).float().unsqueeze(-1)  # (w, L, 1)
            states = text.embed(batch)
            for segment in range(4):
                states = text.run_segment(segment, states, keep)
                if segment > FIRST_ADAPTED_STAGE:
                    parts[segment - FIRST_ADAPTED_STAGE - 1].append((states * own).sum(1) / own.sum(1))
        found.append([torch.cat(part) for part in parts])
    return found
