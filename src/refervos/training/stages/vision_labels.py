"""Dense labels of a drawn clip for visual encoders: the object of every cell, and what is true of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.training.stages.world_tensors import COLOUR_NAMES, TEXTURE_NAMES, UNLABELLED
from refervos.worlds import KINDS, Claim, Clip, Facts, Noun
from refervos.worlds.facts import CLAIM_FAMILIES, WITH_REFERENCE

KIND_NAMES = tuple(KINDS)

CLAIM_WORDS = tuple(word for word in CLAIM_FAMILIES if word not in WITH_REFERENCE)
"""The claims about one object alone: its place, size and movement."""

MOTION_CLAIMS = tuple(index for index, word in enumerate(CLAIM_WORDS) if CLAIM_FAMILIES[word] == "motion")

SHARED_LOOKS = ("kind", "colour", "kind and colour")
"""What an object may have in common with another, on which its name depends."""

MOST_OBJECTS = 16
"""Objects of a scene at most."""

BACKGROUND, UNCLEAR_CELL = -1, -2
"""Cells without an object, and cells that are no object's clearly."""

PARTS = 4
"""Parts along each side of a cell for which coverage is labelled."""

_COVERED, _FREE = 0.35, 0.02
_FEWEST_PIXELS = 10


@dataclass(frozen=True, eq=False)
class DenseLabels:
    """What is to be read from the cells of a clip of F frames and K objects.

    Attributes:
        cells: The object of each cell, or ``BACKGROUND``, or ``UNCLEAR_CELL``; int64 (F, n, n).
        cover: How much of each cell each object covers, in [0, 1], float32 (K, F, n, n).
        outlines: How much of each of 4 x 4 parts of each cell is covered by its objects, float32 (F, n, n, 16).
        looks: Index of the kind, the colour and the pattern of each object, int64 (K, 3).
        claims: Of each object whether each of ``CLAIM_WORDS``, and then of ``SHARED_LOOKS``, is true: 1, 0 for unclear,
            -1 for false; int8 (K, C).
        ranks: How many of the objects that show enough have their mean place further left, int64 (K,).
        places: Centre of the visible part in each frame, in [0, 1], float32 (K, F, 2); NaN where it is hidden.
    """

    cells: Tensor
    cover: Tensor
    outlines: Tensor
    looks: Tensor
    claims: Tensor
    ranks: Tensor
    places: Tensor

    @classmethod
    def of(cls, facts: Facts, shown: Sequence[int], cells: int, *, cropped: bool = False) -> DenseLabels:
        """Label a clip.

        Args:
            facts: Of the whole clip.
            shown: The frames that the encoders see.
            cells: Cells n along each side of the frame.
            cropped: Whether the encoder sees the square in the centre alone; places are then those in the square.
        """
        masks = torch.from_numpy(facts.clip.masks[:, list(shown)])  # (K, F, H, W)
        if cropped:
            masks = centre_square(masks)
        cover = F.adaptive_avg_pool2d(masks.float(), cells)  # (K, F, n, n)
        return cls(
            _cells(cover),
            cover,
            _outlines(masks, cells),
            _looks(facts.clip),
            torch.from_numpy(np.concatenate([_claims(facts), _shared_looks(facts)], axis=1)),
            _ranks(facts),
            centres(masks, _FEWEST_PIXELS),
        )

    def padded(self) -> dict[str, Tensor]:
        """Return the labels for ``MOST_OBJECTS`` objects, so that those of several clips can be stacked."""
        missing = MOST_OBJECTS - len(self.ranks)
        return {
            "cells": self.cells,
            "cover": F.pad(self.cover, (0, 0, 0, 0, 0, 0, 0, missing)),
            "outlines": self.outlines,
            "looks": F.pad(self.looks, (0, 0, 0, missing), value=UNLABELLED),
            "claims": F.pad(self.claims, (0, 0, 0, missing)),
            "ranks": F.pad(self.ranks, (0, missing), value=UNLABELLED),
            "places": F.pad(self.places, (0, 0, 0, 0, 0, missing), value=torch.nan),
        }


def centre_square(masks: Tensor) -> Tensor:
    """Crop masks (..., H, W) to the square in their centre, as the image encoder's frames are."""
    height, width = masks.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return masks[..., top : top + side, left : left + side]


def _cells(cover: Tensor) -> Tensor:
    most, which = cover.max(dim=0)
    found = torch.where(most > _COVERED, which, UNCLEAR_CELL)
    return torch.where(cover.sum(0) < _FREE, BACKGROUND, found)


def _outlines(masks: Tensor, cells: int) -> Tensor:
    parts = F.adaptive_avg_pool2d(masks.any(0).float(), PARTS * cells)  # (F, 4n, 4n)
    parts = parts.unflatten(2, (cells, PARTS)).unflatten(1, (cells, PARTS))  # (F, n, 4, n, 4)
    return parts.transpose(2, 3).flatten(3)


def _looks(clip: Clip) -> Tensor:
    names = (KIND_NAMES, COLOUR_NAMES, TEXTURE_NAMES)
    return torch.tensor(
        [
            [known.index(word) for known, word in zip(names, (thing.kind, thing.colour, thing.texture), strict=True)]
            for thing in clip.scene.objects
        ]
    )


def _claims(facts: Facts) -> np.ndarray:
    everything = facts.evaluate_noun(Noun())
    return np.stack([facts.evaluate_claim(Claim(word), everything) for word in CLAIM_WORDS], axis=1)


def _shared_looks(facts: Facts) -> np.ndarray:
    """For each object whether another visible one has its kind, its colour, both: int8 (K, 3)."""
    things = facts.clip.scene.objects
    visible = [index for index in range(len(things)) if facts.ever_visible[index]]
    shared = np.full((len(things), len(SHARED_LOOKS)), -1, np.int8)
    for index, thing in enumerate(things):
        others = [things[other] for other in visible if other != index]
        same = [(thing.kind == other.kind, thing.colour == other.colour) for other in others]
        for number, holds in enumerate((any(k for k, _ in same), any(c for _, c in same), (True, True) in same)):
            shared[index, number] = 1 if holds else -1
    return shared


def _ranks(facts: Facts) -> Tensor:
    """The order in which captions name the objects; ``UNLABELLED`` for those that show too little."""
    main = np.flatnonzero(facts.recognisable)
    across = [float(facts.clip.centres[index, facts.seen[index], 0].mean()) for index in main]
    ranks = torch.full((len(facts.recognisable),), UNLABELLED)
    ranks[torch.from_numpy(main[np.argsort(across)])] = torch.arange(len(main))
    return ranks


def centres(masks: Tensor, least: float) -> Tensor:
    """Compute the centres of masks.

    Args:
        masks: 0 or 1, (K, F, H, W).
        least: Pixels that a mask must have.

    Returns:
        x and y in [0, 1], float32 (K, F, 2); NaN for masks with fewer pixels.
    """
    height, width = masks.shape[2:]
    seen = masks.float()
    area = seen.sum((2, 3))  # (K, F)
    x = (seen.sum(2) * (torch.arange(width) + 0.5)).sum(-1) / area / width
    y = (seen.sum(3) * (torch.arange(height) + 0.5)).sum(-1) / area / height
    places = torch.stack([x, y], dim=-1)
    places[area < least] = torch.nan
    return places
