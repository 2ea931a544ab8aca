"""Auxiliary task of the image encoder: classify the contents of each cell.

The published encoders of SAM and SAM2 were pretrained on images before they were trained on clicks. A small encoder
trained on clicks alone separates objects but hardly recognises them, and sentences over its frozen features then stay
at chance for shapes. This head replaces that pretraining; it is discarded afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.training.stages.world_tensors import COLOUR_NAMES, TEXTURE_NAMES, UNLABELLED
from refervos.training.step_means import Mean, mean_of_batch
from refervos.worlds import KINDS

GROUP_WEIGHTS = (1.0, 0.3, 0.3)
BACKGROUND_WEIGHT = 0.1
"""Class weight of the background, which fills most cells."""


class WordSpace(nn.Module):
    """Classifiers of kinds whose weights are projections of a text encoder's states of their nouns.

    A free classifier lets the image encoder tell kinds apart in any way. Adapters that compare image tokens with text
    tokens need features from which the noun's state can be predicted linearly.

    Args:
        widths: Channels of the parts of a token; each is a classifier's input.
        nouns: For each template, the states of the K nouns for each part, (K, D) each.
        width: Channels in which both are compared, those of an adapter.
    """

    def __init__(self, widths: Sequence[int], nouns: Sequence[Sequence[Tensor]], width: int = 64) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self._nouns = nouns
        self.scale = 0.25
        self.cells = nn.ModuleList(nn.Linear(part, width) for part in widths)
        self.words = nn.ModuleList(nn.Linear(states.shape[1], width) for states in nouns[0])
        self.background = nn.Parameter(torch.zeros(len(self.widths), width))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Compute the logits of the kinds and of the background from each part: (n, sum of widths) -> (n, K + 1)."""
        nouns = self._nouns[int(torch.randint(len(self._nouns), ()))]
        logits = []
        for number, part in enumerate(tokens.split(self.widths, dim=-1)):
            words = self.words[number](nouns[number].to(tokens.device))  # (K, width)
            classes = torch.cat([words, self.background[number : number + 1]])
            logits.append(self.cells[number](part) @ classes.T * self.scale)
        return logits


class RecognitionHead(nn.Module):
    """Linear classifiers over the tokens of an image encoder.

    Args:
        width: Channels of a token.
        kinds: Number of kinds of objects.
        words: Classifiers of the kinds in addition to the free ones; default none.
    """

    def __init__(self, width: int, kinds: int = len(KINDS), words: WordSpace | None = None) -> None:
        super().__init__()
        self.words = words
        self.groups = (kinds + 1, len(COLOUR_NAMES), len(TEXTURE_NAMES))
        self.norm = nn.LayerNorm(width)
        self.names = nn.Linear(width, sum(self.groups))

    def forward(self, tokens: Tensor, labels: Tensor, mean: Mean = mean_of_batch) -> Tensor:
        """Compute the cross-entropy of kind, colour and texture of each cell.

        Args:
            tokens: (N, g, g, width).
            labels: int64 (N, g, g, 3), see ``cell_labels``.
            mean: Averages over the labelled cells; called with ``recognition 0`` to ``recognition 2``.

        Returns:
            A scalar.
        """
        tokens = self.norm(tokens).flatten(0, -2)  # (N*g*g, width)
        all_logits = self.names(tokens)  # (N*g*g, sum of groups)
        labels = labels.flatten(0, -2)  # (N*g*g, 3)
        total = tokens.new_zeros(())
        groups = list(zip(range(3), all_logits.split(self.groups, dim=1), GROUP_WEIGHTS, strict=True))
        if self.words is not None:
            by_words = self.words(tokens)
            groups += [(0, logits, 1 / len(by_words)) for logits in by_words]
        for number, (group, logits, weight) in enumerate(groups):
            class_weights = torch.ones(self.groups[group], device=tokens.device)
            if group == 0:
                class_weights[-1] = BACKGROUND_WEIGHT
            label = labels[:, group]
            entropy = F.cross_entropy(logits, label, class_weights, ignore_index=UNLABELLED, reduction="sum")
            # Computed for all cells: the number of labelled ones would have to be read back from a GPU.
            weights = class_weights[label.clamp(min=0)] * (label != UNLABELLED)
            total = total + weight * mean(f"recognition {number}", entropy, weights.sum())
        return total
