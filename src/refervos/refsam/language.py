"""The Cross-Modal MLP, from the text encoder's states to vectors in the mask decoder's space.

Shapes: N sentences, L tokens, some of them padding, E = text width, C = SAM's hidden width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SentenceVectors:
    """Vectors of sentences in the mask decoder's space, all of length 1.

    Attributes:
        words: A vector for each token (N, L, C).
        sentence: A vector for the whole sentence (N, C).
        keep: bool (N, L), False for padding.
    """

    words: Tensor
    sentence: Tensor
    keep: Tensor

    def rows(self, with_sentence: bool) -> tuple[Tensor, Tensor]:
        """Return the rows for Dense Attention, (N, P, C), and bool (N, P): the words and optionally the sentence."""
        if not with_sentence:
            return self.words, self.keep
        return torch.cat([self.words, self.sentence.unsqueeze(1)], dim=1), F.pad(self.keep, (0, 1), value=True)


class CrossModalMlp(nn.Module):
    """The Cross-Modal MLP, shared by words and sentences.

    With one hidden layer (published): E -> E/2 -> C, with ReLU.

    Args:
        text_width: Channels E.
        width: Channels C.
        layers: Number of hidden layers of width E/2; 0 for a single linear layer.
    """

    def __init__(self, text_width: int, width: int, layers: int = 1) -> None:
        super().__init__()
        widths = [text_width, *[text_width // 2] * layers, width]
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))

    def forward(self, states: Tensor, keep: Tensor) -> SentenceVectors:
        """Project the output of the text encoder.

        The mean over the sentence is taken before the MLP. The released code includes padding in it, which makes no
        difference for single sentences.

        Args:
            states: (N, L, E).
            keep: bool (N, L), False for padding.
        """
        weights = keep.to(states.dtype).unsqueeze(-1)  # (N, L, 1)
        mean = (states * weights).sum(1) / weights.sum(1)  # (N, E)
        return SentenceVectors(self._project(states), self._project(mean), keep)

    def _project(self, states: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            states = torch.relu(layer(states))
        return F.normalize(self.layers[-1](states), dim=-1)
