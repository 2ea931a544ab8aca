"""From the text encoder's states to vectors in the mask decoder's space: the Cross-Modal MLP.

Shapes: N sentences, L tokens of which some are padding, E = text width, C = SAM's hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SentenceVectors:
    """What a sentence is in the mask decoder's space, all of length 1.

    Attributes:
        words: One for each token (N, L, C).
        sentence: One for the whole (N, C).
        keep: bool (N, L), False where there is padding.
    """

    words: Tensor
    sentence: Tensor
    keep: Tensor

    def rows(self, with_sentence: bool) -> tuple[Tensor, Tensor]:
        """What Dense Attention looks at, (N, P, C) and bool (N, P): the words, perhaps the sentence after them."""
        if not with_sentence:
            return self.words, self.keep
        return torch.cat([self.words, self.sentence.unsqueeze(1)], dim=1), F.pad(self.keep, (0, 1), value=True)


class CrossModalMlp(nn.Module):
    """The Cross-Modal MLP: one network for words and sentences.

    With one hidden layer (published): E -> E/2 -> C, ReLU between.

    Args:
        text_width: E.
        width: C.
        layers: Hidden layers, all E/2 wide; 0 for a single linear layer.
    """

    def __init__(self, text_width: int, width: int, layers: int = 1) -> None:
        super().__init__()
        widths = [text_width, *[text_width // 2] * layers, width]
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))

    def forward(self, states: Tensor, keep: Tensor) -> SentenceVectors:
        """Project a text encoder's output.

        The mean over the sentence is taken before the MLP. The released code takes it over padding too, which changes
        nothing where one sentence is asked at a time.

        Args:
            states: (N, L, E).
            keep: bool (N, L), False where there is padding.
        """
        weights = keep.to(states.dtype).unsqueeze(-1)  # (N, L, 1)
        mean = (states * weights).sum(1) / weights.sum(1)  # (N, E)
        return SentenceVectors(self._project(states), self._project(mean), keep)

    def _project(self, states: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            states = torch.relu(layer(states))
        return F.normalize(self.layers[-1](states), dim=-1)
