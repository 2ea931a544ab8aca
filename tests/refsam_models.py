"""A small RefSAM with random weights and a tokenizer, for tests that need no training."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from golden import noise
from refervos.refsam.config import RefSamConfig
from refervos.refsam.model import RefSam
from refervos.sam.config import SamConfig
from refervos.text.t5 import T5Config
from refervos.text.tokenizer import Tokenizer
from refervos.training.stages.language import train_unigram
from scenes import scene

TINY = RefSamConfig(
    sam=SamConfig(
        image_size=64,
        patch=8,
        vit_width=32,
        vit_layers=8,
        vit_heads=2,
        vit_global_blocks=(1, 3, 5, 7),
        vit_window=3,
        hidden=32,
        decoder_heads=4,
        decoder_feedforward=64,
    ),
    text=T5Config(vocabulary=120, width=24, head_width=8, heads=4, layers=2, feedforward=48),
)
"""Has adapters in blocks 4 to 7, so that two of the three intermediate maps come before them, as published."""

SENTENCES = ("the red circle", "the big blue square that moves to the left", "a green disc behind the square")
CAPTION, SHORT_CAPTION = [17, 23, 42, 61, 5, 1], [33, 1]


@cache
def tokenizer() -> Tokenizer:
    """Make a tokenizer for a few sentences."""
    return train_unigram(2 * SENTENCES, TINY.text.vocabulary)


def tiny_model(**changes: Any) -> RefSam:
    """Make a model of 0.3 M parameters whose weights depend on their names and give varied masks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RefSam(replace(TINY, **changes), tokenizer())
    adapters = None if model.config.zero_adapters else model.adapters
    for part in (model.sam, adapters, model.cross_modal, model.laterals, model.dense, model.tracking):
        if part is not None:
            draw_weights(part)
    return model


@torch.no_grad()
def draw_weights(part: nn.Module) -> None:
    """Draw weights by their names and shapes, all large enough to matter; T5's own initialisation is kept."""
    for name, value in part.named_parameters():
        draw = torch.from_numpy(noise(name, value.shape)).float()
        if value.ndim >= 2 and "embed" not in name and "pos" not in name and "token" not in name:
            value.copy_(draw / value[0].numel() ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            value.copy_(1 + 0.1 * draw)
        elif value.ndim >= 2:
            value.copy_(draw * 0.5)
        elif value.ndim == 1:
            value.copy_(draw * 0.05)


def placed(model: RefSam, count: int, seed: int = 0) -> Tensor:
    """Place the frames of one video in the square (T, 3, S, S), in the model's type."""
    place = model.placement((48, 64))
    frames = [place.place(torch.from_numpy(frame).permute(2, 0, 1)) for frame in scene(count, 48, 64, seed)]
    return torch.stack(frames).to(model.sam.dtype)


def padded(captions: list[list[int]]) -> Tensor:
    """Stack token ids (N, L)."""
    return nn.utils.rnn.pad_sequence([torch.tensor(caption) for caption in captions], batch_first=True)
