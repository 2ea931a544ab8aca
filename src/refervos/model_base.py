"""Base classes of all models: opening sessions, saving and publishing; and of models trained on sentences."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from refervos.checkpoints.weights import fingerprint, model_folder, write_model
from refervos.errors import ConfigError
from refervos.ops.borders import Borders
from refervos.ops.compilation import Stage
from refervos.ops.derived import Derived
from refervos.placement import Placement
from refervos.session.session import SessionMixin
from refervos.text.tokenizer import Tokenizer


class VideoSegmenterBase(SessionMixin, nn.Module):
    """Base class of all models: sessions, saving, publishing."""

    def fingerprint(self) -> str:
        """Compute the SHA-256 of the configuration and the weights, cached until the weights change."""
        if self._fingerprints is None:
            self._fingerprints = Derived()
        weights = list(self.state_dict(keep_vars=True).values())
        with torch.no_grad():
            return self._fingerprints.get(self.config, weights, lambda: fingerprint(self, self.config))

    @property
    def borders(self) -> Borders:
        """Default method by which sessions resize masks to the frame."""
        return getattr(self.config, "borders", "bilinear")

    def stages_to_compile(self) -> Sequence[Stage]:
        """List the methods that take most time, for ``compile_stages``; none by default."""
        return ()

    def compute_in(self, dtype: torch.dtype) -> Self:
        """Call ``to(dtype)``, which keeps position tables in float32."""
        warnings.warn("compute_in(dtype) is now to(dtype).", DeprecationWarning, stacklevel=2)
        return self.to(dtype)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, overwrite: bool = False
    ) -> None:
        """Save the model to a folder that ``load`` reads.

        Args:
            folder: Created when absent.
            dtype: Round the weights to this type, for instance ``torch.float16``; default unchanged.
            overwrite: Allow writing to a folder that is not empty.

        Raises:
            CheckpointError: When the folder is not empty or not writable; no partial model is left.
        """
        with model_folder(Path(folder), overwrite=overwrite) as staged:
            self._write(staged, dtype)

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Publish the model on the Hugging Face Hub.

        Args:
            repository: ``owner/name``, created when absent.
            private: Whether a new repository is private.
            token: Access token, default the one stored by ``hf auth login``.

        Returns:
            URL of the commit.
        """
        import tempfile

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repository, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as temporary:
            self.save_pretrained(Path(temporary) / "model")
            return str(api.upload_folder(repo_id=repository, folder_path=Path(temporary) / "model"))

    def _write(self, folder: Path, dtype: torch.dtype | None) -> None:
        write_model(folder, self, self.model_type, self.config, dtype)
        tokenizer = getattr(self, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    model_type: str
    config: Any
    _fingerprints: Derived | None = None


@dataclass
class ClipOutput:
    """Predictions of a training clip for N sentences.

    Attributes:
        mask_logits: Ungated low-resolution mask logits (N, T, h, w).
        score: Uncalibrated object score logits (N, T), or None.
        gated_logits: In evaluation mode, the logits whose sign is the mask that a session returns (N, T, h, w); None in
            training mode.
    """

    mask_logits: Tensor
    score: Tensor | None
    gated_logits: Tensor | None = field(default=None, kw_only=True)


class TrainableModel(VideoSegmenterBase):
    """Base class of models trained on sentences, with frozen parts.

    Args:
        config: All hyper-parameters; ``config.text`` has the text encoder's ``vocabulary`` and ``pad``.
        tokenizer: Tokenizer for sentences; not needed when token ids are passed.

    Raises:
        ConfigError: When the tokenizer has more tokens than the text encoder.
    """

    def __init__(self, config: Any, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        if tokenizer is not None and len(tokenizer) > config.text.vocabulary:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} tokens and the text encoder {config.text.vocabulary}; "
                "use the tokenizer of this text encoder."
            )
        self.config = config
        self.tokenizer = tokenizer
        self.memory_budget: int | None = None

    def train(self, mode: bool = True) -> Self:
        """Switch the trained parts to training mode; the frozen ones stay in evaluation mode (no dropout)."""
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    @property
    def pad(self) -> int:
        """ID of the padding token."""
        pad: int = self.config.text.pad
        return pad

    @property
    @abstractmethod
    def compute_dtype(self) -> torch.dtype:
        """Type of weights and activations."""

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Side S of the model's square input."""

    @abstractmethod
    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """Return the placement of a frame of this height and width in the square."""

    @abstractmethod
    def read(self, expression: str, verbs: Sequence[str] | None = None) -> tuple[list[int], list[bool]]:
        """Encode a sentence as token ids and a motion flag per token (``verbs``: its motion words, if known)."""

    @abstractmethod
    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """Return the parts that are never trained."""

    @abstractmethod
    def trained_parts(self) -> Mapping[str, nn.Module]:
        """Return the trained parts by name."""

    @abstractmethod
    def upsample(self, mask_logits: Tensor) -> Tensor:
        """Upsample low-resolution mask logits (N, M, h, w) to the square (N, M, S, S)."""

    @abstractmethod
    def forward(
        self, pixels: Tensor, ids: Tensor, verbs: Tensor | None = None, *, chunk: int | None = None
    ) -> ClipOutput:
        """Segment a training clip.

        Args:
            pixels: Placed frames (V, T, 3, S, S); V divides N, and the N / V sentences about a video are adjacent.
            ids: Token ids (N, L), padded on the right.
            verbs: bool (N, L), tokens of motion words.
            chunk: Frames that the model processes at once; default all.
        """
