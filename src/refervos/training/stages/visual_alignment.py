"""Alignment of a small VideoGLaMM's visual tokens with words and places. Not published.

A language model that starts from nothing learns slowly which visual token shows what: the published one starts from a
Phi-3 that has read everything, and projectors that were aligned with captions before. Here two readings are trained
directly. The words of the sentence about an object are read from the visual tokens of its cells through the token
table, so that visual tokens resemble the words for what they show. The object's place is read from the same tokens, and
with the same weights from the hidden state before its ``[SEG]``, which therefore has to retrieve it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.training.stages.conversation_sources import DescribedObjects
from refervos.training.stages.vision_labels import centre_square, centres
from refervos.training.step_means import Mean
from refervos.videoglamm.model import VisualTokens

LEAST_COVER = 0.08
"""Share of a cell that objects must cover for its tokens to count."""

LEAST_SEEN = 1e-3
"""Share of the frame that an object must cover for its place to count."""

UNINFORMATIVE = ("the", ".", "and", "a", "an")
"""Words that say nothing about an object."""


@dataclass(frozen=True, eq=False)
class CellLabels:
    """What the tokens of each cell show, for F frames of n x n pooled cells.

    Attributes:
        cover: Share of each cell that each of K objects covers, float32 (K, F, n, n).
        words: Token ids of the words about each object.
        places: Centre of each object in each frame, in [0, 1], float32 (K, F, 2); NaN where it is hidden.
    """

    cover: Tensor
    words: tuple[tuple[int, ...], ...]
    places: Tensor

    @classmethod
    def of(
        cls,
        described: DescribedObjects,
        frames: Sequence[int],
        cells: int,
        encode: Callable[[str], list[int]],
        *,
        cropped: bool = False,
    ) -> CellLabels:
        """Label the cells of a video.

        Args:
            described: Its objects.
            frames: The frames that the encoders see.
            cells: Pooled cells n along each side.
            encode: Splits a text into token ids.
            cropped: Whether the encoder sees the square in the centre alone, from which places in the frame cannot be
                known unless that is a square.
        """
        masks = torch.from_numpy(described.masks[:, list(frames)]).float()  # (K, F, H, W)
        places = centres(masks, LEAST_SEEN * masks.shape[2] * masks.shape[3])
        if cropped and masks.shape[2] != masks.shape[3]:
            masks, places = centre_square(masks), torch.full_like(places, torch.nan)
        dropped = {id for word in UNINFORMATIVE for id in encode(word)}
        words = tuple(
            tuple(dict.fromkeys(id for id in encode(sentence) if id not in dropped)) for sentence in described.sentences
        )
        return cls(F.adaptive_avg_pool2d(masks, cells), words, places)

    @property
    def shown(self) -> Tensor:
        """Indices of the cells that objects cover, int64 (p,)."""
        return torch.nonzero(self.cover.flatten(1).sum(0) > LEAST_COVER)[:, 0]

    @property
    def owners(self) -> Tensor:
        """The object that covers most of each of these cells, int64 (p,)."""
        return self.cover.flatten(1)[:, self.shown].argmax(0) if len(self.words) else self.shown

    @property
    def place(self) -> Tensor:
        """The centres of these objects in the frames of the cells, (p, 2); NaN where unknown."""
        return self.places[self.owners, self.shown // self.cover[0, 0].numel()] if len(self.words) else self.places[0:0]

    @property
    def known(self) -> Tensor:
        """Which of these centres are known, bool (p,)."""
        return ~self.place.isnan().any(-1)

    def mixture(self, vocabulary: int) -> Tensor:
        """Distributions over the words of the objects in these cells, weighted by the area that they cover.

        Args:
            vocabulary: Number V of tokens.

        Returns:
            (p, V).
        """
        wanted = torch.zeros(len(self.words), vocabulary)
        for row, ids in zip(wanted, self.words, strict=True):
            row[list(ids)] = 1 / max(len(ids), 1)
        cells = self.cover.flatten(1)[:, self.shown]  # (K, p)
        return (cells / cells.sum(0)).T @ wanted


class VisualAlignment(nn.Module):
    """The two readings and their losses.

    Args:
        table: Token table of the language model (V, D).
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.place = nn.Linear(table.embedding_dim, 2)
        self._table = [table]  # in a list, so that it is not a part of this module

    def forward(
        self, videos: Sequence[VisualTokens | None], labels: Sequence[Sequence[CellLabels]], mean: Mean
    ) -> tuple[Tensor, Tensor]:
        """Read words and places from visual tokens.

        Args:
            videos: Visual tokens of each video.
            labels: What their cells show to the image encoder, and to the video encoder, whose tokens may be missing.
            mean: Averages over the tokens of objects; called with ``words`` and ``cells``.

        Returns:
            The cross-entropy of words; the mean distance of places along both axes.
        """
        table = self._table[0]
        tokens, words, places = [], [], []
        for video, views in zip(videos, labels, strict=True):
            if video is None or not len(views[0].words):
                continue
            parts = video.tokens.unflatten(0, (-1, views[0].cover[0].numel()))  # (encoders, P', D)
            for part, own in zip(parts, views, strict=False):
                tokens.append(part[own.shown])  # (p, D)
                words.append(own.mixture(table.num_embeddings))
                places.append(own.place)
        device = self.place.weight.device
        if not tokens:
            zero = 0.0 * self.place.weight.sum()
            none = torch.zeros((), device=device)
            return mean("words", zero, none), mean("cells", zero, none)
        # Normalised as by the language model's first layer.
        read = F.rms_norm(torch.cat(tokens), tokens[0].shape[-1:])
        logits = F.linear(read, table.weight).float()  # (n, V)
        entropy = -(torch.cat(words).to(device) * logits.log_softmax(-1)).sum()
        count = torch.tensor(float(len(read)), device=device)
        return mean("words", entropy, count), self.distance(read, torch.cat(places).to(device), "cells", mean)

    def distance(self, states: Tensor, places: Tensor, name: str, mean: Mean) -> Tensor:
        """Compute the mean distance along both axes of places that are read.

        Args:
            states: Visual tokens or hidden states (n, D).
            places: In [0, 1], (n, 2); NaN where unknown.
            name: Name of the mean.
            mean: Averages over the known places.
        """
        known = ~places.isnan().any(1)
        distance = (self.place(states).float() - torch.nan_to_num(places)).abs().mean(1)
        return mean(name, (distance * known).sum(), known.sum())
