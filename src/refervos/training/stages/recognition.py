"""An auxiliary task for the image encoder: name what fills each cell.

The published encoders of SAM and SAM2 were pretrained on images before they ever saw a click. So small an encoder that
learns from clicks alone tells objects apart but hardly sees what they are, and sentences over its frozen features then
stay at chance for shapes. This head stands for that pretraining; it is thrown away afterwards.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.training.distributed import mean_over_processes
from refervos.training.stages.pictures import COLOUR_NAMES, TEXTURE_NAMES, UNCLEAR
from refervos.worlds import KINDS

GROUP_WEIGHTS = (1.0, 0.3, 0.3)
BACKGROUND_WEIGHT = 0.1
"""There is much background, so it counts little."""


class RecognitionHead(nn.Module):
    """One linear layer over the tokens of an image encoder.

    Args:
        width: Channels of a token.
        kinds: How many kinds of things there are to name.
    """

    def __init__(self, width: int, kinds: int = len(KINDS)) -> None:
        super().__init__()
        self.groups = (kinds + 1, len(COLOUR_NAMES), len(TEXTURE_NAMES))
        self.norm = nn.LayerNorm(width)
        self.names = nn.Linear(width, sum(self.groups))

    def forward(self, tokens: Tensor, names: Tensor) -> Tensor:
        """Cross-entropy of kind, colour and texture of each cell.

        Args:
            tokens: (N, g, g, width).
            names: int64 (N, g, g, 3), see ``cell_names``.

        Returns:
            A scalar.
        """
        answers = self.names(self.norm(tokens)).flatten(0, -2)  # (N*g*g, sum of groups)
        labels = names.flatten(0, -2)  # (N*g*g, 3)
        total = tokens.new_zeros(())
        for group, (answer, weight) in enumerate(zip(answers.split(self.groups, dim=1), GROUP_WEIGHTS, strict=True)):
            classes = torch.ones(self.groups[group], device=tokens.device)
            if group == 0:
                classes[-1] = BACKGROUND_WEIGHT
            label = labels[:, group]
            known = label != UNCLEAR
            wrong = F.cross_entropy(answer, label, classes, ignore_index=UNCLEAR, reduction="sum")
            weights = classes[label.clamp(min=0)] * known  # of all: how many are known a GPU would have to be asked
            total = total + weight * mean_over_processes(wrong, weights.sum())
        return total
