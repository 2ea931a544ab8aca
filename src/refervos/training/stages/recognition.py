"""Auxiliary task of the image encoder: classify the contents of each cell.

The published encoders of SAM and SAM2 were pretrained on images before they were trained on clicks. A small encoder
trained on clicks alone separates objects but hardly recognises them, and sentences over its frozen features then stay
at chance for shapes. This head replaces that pretraining; it is discarded afterwards.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.training.stages.world_tensors import COLOUR_NAMES, TEXTURE_NAMES, UNLABELLED
from refervos.training.step_means import Mean, mean_of_batch
from refervos.worlds import KINDS

GROUP_WEIGHTS = (1.0, 0.3, 0.3)
BACKGROUND_WEIGHT = 0.1
"""Class weight of the background, which fills most cells."""


class RecognitionHead(nn.Module):
    """Linear classifiers over the tokens of an image encoder.

    Args:
        width: Channels of a token.
        kinds: Number of kinds of objects.
    """

    def __init__(self, width: int, kinds: int = len(KINDS)) -> None:
        super().__init__()
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
        all_logits = self.names(self.norm(tokens)).flatten(0, -2)  # (N*g*g, sum of groups)
        labels = labels.flatten(0, -2)  # (N*g*g, 3)
        total = tokens.new_zeros(())
        for group, (logits, weight) in enumerate(zip(all_logits.split(self.groups, dim=1), GROUP_WEIGHTS, strict=True)):
            class_weights = torch.ones(self.groups[group], device=tokens.device)
            if group == 0:
                class_weights[-1] = BACKGROUND_WEIGHT
            label = labels[:, group]
            entropy = F.cross_entropy(logits, label, class_weights, ignore_index=UNLABELLED, reduction="sum")
            # Computed for all cells: the number of labelled ones would have to be read back from a GPU.
            weights = class_weights[label.clamp(min=0)] * (label != UNLABELLED)
            total = total + weight * mean(f"recognition {group}", entropy, weights.sum())
        return total
