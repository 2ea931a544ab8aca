"""The contract between models that learn sentences and the stage that trains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from refervos.frames import Placement
from refervos.text.tokenizer import Tokenizer


@dataclass
class ClipOutput:
    """A training clip's predictions for N sentences.

    Attributes:
        mask_logits: Low-resolution logits, not gated by anything (N, T, h, w).
        score: Object score logits (N, T), or None.
    """

    mask_logits: Tensor
    score: Tensor | None


class TrainableModel(Protocol):
    """What the stage asks of a model, which is a ``torch.nn.Module`` and ``Pretrained`` besides."""

    tokenizer: Tokenizer | None

    @property
    def image_size(self) -> int:
        """Side S of the square that the model looks at."""
        ...

    @property
    def pad(self) -> int:
        """Id of the padding token."""
        ...

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """How a frame of this height and width goes into the square."""
        ...

    def read(self, expression: str, verbs: Sequence[str] | None = None) -> tuple[list[int], list[bool]]:
        """A sentence as token ids, and for each whether it tells motion (its words, where they are known)."""
        ...

    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """The parts that never train."""
        ...

    def trained_parts(self) -> Mapping[str, nn.Module]:
        """The parts that train, by name."""
        ...

    def upsample(self, mask_logits: Tensor) -> Tensor:
        """Low-resolution mask logits (N, M, h, w) to the square (N, M, S, S)."""
        ...

    def __call__(self, pixels: Tensor, ids: Tensor, verbs: Tensor, *, chunk: int | None = None) -> ClipOutput:
        """Answer a clip.

        Args:
            pixels: Placed frames (V, T, 3, S, S); V divides N, and the N / V sentences about a video are neighbours.
            ids: Token ids (N, L), padded on the right.
            verbs: bool (N, L), tokens that tell motion.
            chunk: Frames that the model sees at once; default all.
        """
        ...
