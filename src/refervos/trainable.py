"""The contract between models that learn sentences and the stage that trains them, and what all of these share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from refervos.errors import ConfigError
from refervos.placement import Placement
from refervos.pretrained import Pretrained
from refervos.text.tokenizer import Tokenizer


@dataclass
class ClipOutput:
    """A training clip's predictions for N sentences.

    Attributes:
        mask_logits: Low-resolution logits, not gated by anything (N, T, h, w).
        score: Object score logits (N, T) as the decoder gives them, or None.
        shown: In evaluation mode the logits whose sign is the mask that a session shows (N, T, h, w).
    """

    mask_logits: Tensor
    score: Tensor | None
    shown: Tensor | None = field(default=None, kw_only=True)


class TrainableModel(Pretrained):
    """A model that learns sentences over frozen parts.

    Args:
        config: Every hyper-parameter; ``config.text`` tells the text encoder's ``vocabulary`` and ``pad``.
        tokenizer: Turns sentences into token ids; may be left out where ids are given.

    Raises:
        ConfigError: When the tokenizer has more tokens than the text encoder.
    """

    def __init__(self, config: Any, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        if tokenizer is not None and len(tokenizer) > config.text.vocabulary:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} tokens and the text encoder {config.text.vocabulary}; "
                "they do not belong together."
            )
        self.config = config
        self.tokenizer = tokenizer
        self.compute_dtype = torch.float32
        self.memory_budget: int | None = None

    def train(self, mode: bool = True) -> Self:
        """Switch the trained parts to training mode; the frozen ones stay in evaluation mode (no dropout)."""
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    @property
    def pad(self) -> int:
        """Id of the padding token."""
        pad: int = self.config.text.pad
        return pad

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side S of the square that the model looks at."""

    @abstractmethod
    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """How a frame of this height and width goes into the square."""

    @abstractmethod
    def read(self, expression: str, verbs: Sequence[str] | None = None) -> tuple[list[int], list[bool]]:
        """A sentence as token ids, and for each whether it tells motion (its words, where they are known)."""

    @abstractmethod
    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """The parts that never train."""

    @abstractmethod
    def trained_parts(self) -> Mapping[str, nn.Module]:
        """The parts that train, by name."""

    @abstractmethod
    def upsample(self, mask_logits: Tensor) -> Tensor:
        """Low-resolution mask logits (N, M, h, w) to the square (N, M, S, S)."""

    @abstractmethod
    def forward(
        self, pixels: Tensor, ids: Tensor, verbs: Tensor | None = None, *, chunk: int | None = None
    ) -> ClipOutput:
        """Answer a clip.

        Args:
            pixels: Placed frames (V, T, 3, S, S); V divides N, and the N / V sentences about a video are neighbours.
            ids: Token ids (N, L), padded on the right.
            verbs: bool (N, L), tokens that tell motion.
            chunk: Frames that the model sees at once; default all.
        """
