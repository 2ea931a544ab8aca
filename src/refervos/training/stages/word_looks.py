"""Auxiliary task of the text encoder: predict from the states of a noun what the image encoder sees of such objects.

A text encoder trained on text alone arranges nouns by meaning: a spoon is next to a fork, and far from an oar. Adapters
compare image tokens with text tokens through a few linear layers, and can only find what is linear in both. Published
encoders of this kind are trained together on images and captions (Radford et al. 2021); here the image encoder is that
of a finished tracker, and only the text encoder learns. The heads are discarded at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.sam2.tracker import Sam2Tracker
from refervos.text.encoder import TextEncoder
from refervos.text.tokenizer import Tokenizer
from refervos.training.stages.noun_states import TEMPLATES, NounTokens
from refervos.training.stages.world_tensors import (
    UNLABELLED,
    cell_labels,
    draw_framed,
    kind_names,
    open_sprites,
    place_frames,
)
from refervos.worlds import WorldConfig
from refervos.worlds.nouns import names_of

_CELL = 16  # side in pixels, that of a token of Hiera's third stage at stride 16
_IMAGES = 20  # in a batch of the image encoder
_CELLS = 1024  # in a step
_NOUNS = 256  # compared in a step
_SCALE = 0.25  # of the logits, as in an adapter's attention with heads of 16 channels


@dataclass(frozen=True)
class NamedCells:
    """Image tokens of objects whose nouns are known.

    Attributes:
        tokens: Tokens of the third and fourth stage of Hiera at the same place, float16 (n, C) each.
        labels: Index of the noun, int64 (n,).
        names: The nouns.
    """

    tokens: tuple[Tensor, Tensor]
    labels: Tensor
    names: tuple[str, ...]

    @classmethod
    @torch.no_grad()
    def draw(
        cls, tracker: Sam2Tracker, world: WorldConfig, aspects: Sequence[float], images: int, seed: Sequence[int]
    ) -> NamedCells:
        """Draw images and encode them.

        Args:
            tracker: Its image encoder is used.
            world: Distribution of scenes, whose clips have one frame here.
            aspects: Width over height; one is drawn for each image.
            images: Number of images.
            seed: Seed of the images.
        """
        sprites, size = open_sprites(world), tracker.config.image_size
        names = kind_names(sprites)
        fine, coarse, labels = [], [], []
        for first in range(0, images, _IMAGES):
            numbers = range(first, min(first + _IMAGES, images))
            clips = [draw_framed([*seed, number], world, 1, aspects, size, sprites) for number in numbers]
            stages = tracker.encode(torch.cat([place_frames(clip.frames, size) for clip in clips]))
            label = torch.cat([cell_labels(clip, size, _CELL, names)[..., 0] for clip in clips])  # (N, n, n)
            known = (label != UNLABELLED) & (label < len(names))
            labels.append(label[known])
            fine.append(_on_grid(stages[2], label.shape[-1])[known].half())
            coarse.append(_on_grid(stages[3], label.shape[-1])[known].half())
        return cls((torch.cat(fine), torch.cat(coarse)), torch.cat(labels), names)


def _on_grid(tokens: Tensor, cells: int) -> Tensor:
    """Repeat or average tokens (N, g, g, C) so that there is one for each of n x n cells: (N, n, n, C)."""
    return F.adaptive_avg_pool2d(tokens.permute(0, 3, 1, 2), cells).permute(0, 2, 3, 1)


class WordLooks(nn.Module):
    """Contrastive loss between image tokens of objects and the text encoder's states of their nouns.

    Args:
        cells: Image tokens with their nouns.
        tokenizer: The text encoder's tokenizer.
        width: Channels of the text encoder.
        pad: Id of its padding token.
        shared: Channels in which both are compared, those of an adapter.
    """

    def __init__(self, cells: NamedCells, tokenizer: Tokenizer, width: int, pad: int, shared: int = 64) -> None:
        super().__init__()
        self.cells = cells
        # As in an adapter: to a few channels, a norm, ReLU, and the projection of queries.
        self.image_heads = nn.ModuleList(
            nn.Sequential(
                nn.Linear(tokens.shape[1], shared, bias=False),
                nn.BatchNorm1d(shared),
                nn.ReLU(),
                nn.Linear(shared, shared),
            )
            for tokens in cells.tokens
        )
        self.text_heads = nn.ModuleList(nn.Linear(width, shared) for _ in cells.tokens)
        self.variants = [tuple(dict.fromkeys(names_of(name))) for name in cells.names]
        self.first = np.cumsum([0, *(len(names) for names in self.variants)])
        every = [name for names in self.variants for name in names]
        self.nouns = [NounTokens.of(tokenizer, every, template, pad) for template in TEMPLATES]

    def forward(self, text: TextEncoder) -> Tensor:
        """Compute the loss of random cells and nouns.

        Args:
            text: The text encoder, which is trained.

        Returns:
            A scalar: the cross-entropy of the cells' nouns among those compared, mean over both stages.
        """
        device = next(self.parameters()).device
        chosen = torch.randint(len(self.cells.labels), (_CELLS,))
        labels = self.cells.labels[chosen]
        nouns = labels.unique()
        rest = torch.randperm(len(self.cells.names))
        rest = rest[~torch.isin(rest, nouns)][: max(0, _NOUNS - len(nouns))]
        nouns = torch.cat([nouns, rest])  # (w,)
        position = torch.zeros(len(self.cells.names), dtype=torch.int64)
        position[nouns] = torch.arange(len(nouns))
        target = position[labels].to(device)
        template = int(torch.randint(len(TEMPLATES), ()))
        rows = torch.tensor([_any_of(self.first, int(noun)) for noun in nouns])
        states = self.nouns[template].states(text, rows)  # (w, D) each
        loss = torch.zeros((), device=device)
        for part, (tokens, own) in enumerate(zip(self.cells.tokens, states, strict=True)):
            image = self.image_heads[part](tokens[chosen].to(device).float())  # (cells, shared)
            words = self.text_heads[part](own)  # (w, shared)
            loss = loss + F.cross_entropy(_SCALE * image @ words.T, target) / len(states)
        return loss


def _any_of(first: np.ndarray, noun: int) -> int:
    """Choose the noun itself half of the time, else one of its names."""
    count = int(first[noun + 1] - first[noun])
    chosen = int(torch.randint(count, ())) if torch.rand(()) < 0.5 else 0
    return int(first[noun]) + chosen
