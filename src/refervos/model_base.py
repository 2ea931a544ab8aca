"""Base classes of all models: opening sessions, saving and publishing; and of models trained on sentences."""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from refervos.checkpoints.card import (
    CARD,
    CardDetails,
    CardText,
    MeasuredResult,
    details_for_header,
    is_edited,
    write_card,
)
from refervos.checkpoints.hub import HubCommit, upload
from refervos.checkpoints.weights import (
    SHARD_BYTES,
    TYPE_PREFIX,
    WEIGHT_FILES,
    fingerprint,
    model_folder,
    weights_digest,
    write_model,
)
from refervos.errors import CheckpointError, ConfigError
from refervos.ops.borders import Borders
from refervos.ops.compilation import Stage
from refervos.ops.derived import Derived
from refervos.placement import Placement
from refervos.session.session import SessionMixin
from refervos.text.tokenizer import Tokenizer


class VideoSegmenterBase(SessionMixin, nn.Module):
    """Base class of all models: sessions, loading, saving, publishing.

    Attributes:
        model_type: Name of the family.
        config: All hyper-parameters.
        card: Licence, base models and data, for the model card.
        hub_commit: Repository and commit from which the model was loaded; None if it was not loaded from the hub.
        hub_tags: Tags by which the hub finds the model.
        example_prompt: Python expression of a prompt, for the example in the model card.
    """

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

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        **options: Any,
    ) -> Self:
        """Load a model of this class; see ``refervos.load``, which loads any.

        Args:
            model: Folder, hub id ``owner/name``, or name listed by ``refervos models``.
            revision: Branch, tag or commit on the hub; default the main branch.
            token: Access token for the hub; default the one stored by ``hf auth login``.
            cache_dir: Cache of the hub's files; default huggingface_hub's.
            local_files_only: Make no request: load only what is on disk.
            subfolder: Folder of the model inside the repository or folder.
            **options: Further arguments of ``refervos.load``, such as ``device`` and ``dtype``.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: When it is missing or unreadable, or a model of another class.
            ConfigError: When an option is unknown.
        """
        import refervos  # by its public name: this module is below ``loading``

        loaded = refervos.load(
            model,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            subfolder=subfolder,
            **options,
        )
        if not isinstance(loaded, cls):
            kind = type(loaded).__name__
            raise CheckpointError(f"{model} is a {kind}, not a {cls.__name__}; use {kind} or refervos.load.")
        return loaded

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        overwrite: bool = False,
        max_shard_size: int = SHARD_BYTES,
        card: CardDetails | None = None,
        results: Sequence[MeasuredResult] = (),
    ) -> None:
        """Save the model to a folder that ``load`` reads, with a model card.

        Args:
            folder: Created when absent. A ``README.md`` in it that was not written by this method is kept.
            dtype: Round the weights to this type, for instance ``torch.float16``; default unchanged.
            overwrite: Allow writing to a folder that is not empty.
            max_shard_size: Largest weight file in bytes; more weights are split into several files.
            card: Licence, base models and data for the card; default the model's ``card``.
            results: Results for the card, see ``refervos.evaluation.card_results.read_results``.

        Raises:
            CheckpointError: When the folder is not empty or not writable, or a result is that of other weights; no
                partial model is left.
        """
        self._check_results(results)
        details = card or self._derived_card()
        with model_folder(Path(folder), overwrite=overwrite) as staged:
            self._write(staged, dtype, max_shard_size, details)
            if not is_edited(Path(folder) / CARD):
                write_card(staged, self._card_text(None), details, results)

    def push_to_hub(
        self,
        repository: str,
        *,
        commit_message: str = "Upload a refervos model",
        revision: str | None = None,
        create_pr: bool = False,
        private: bool = False,
        token: str | bool | None = None,
        max_shard_size: int = SHARD_BYTES,
        card: CardDetails | None = None,
        results: Sequence[MeasuredResult] = (),
    ) -> str:
        """Publish the model on the Hugging Face hub, in one commit, with a model card.

        Args:
            repository: ``owner/name``, created when absent.
            commit_message: Message of the commit and title of the pull request.
            revision: Branch to commit to, created when absent; default the main branch.
            create_pr: Open a pull request instead of committing to the branch.
            private: Whether a new repository is private.
            token: Access token, default the one stored by ``hf auth login``.
            max_shard_size: See ``save_pretrained``.
            card: See ``save_pretrained``.
            results: See ``save_pretrained``.

        Returns:
            Address of the commit, or of the pull request.

        Raises:
            CheckpointError: When a result is that of other weights, or the upload fails; says what to do.
        """
        import tempfile

        self._check_results(results)
        details = card or self._derived_card(repository)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self._write(folder, None, max_shard_size, details)
            write_card(folder, self._card_text(repository), details, results)
            return upload(
                folder,
                repository,
                message=commit_message,
                replaced=WEIGHT_FILES,
                revision=revision,
                create_pr=create_pr,
                private=private,
                token=token,
            )

    def _check_results(self, results: Sequence[MeasuredResult]) -> None:
        """Check that results are those of this model's weights."""
        if not results:
            return
        digest = weights_digest(self)
        for each in results:
            if each.weights != digest:
                raise CheckpointError(
                    f"the result on {each.dataset} {each.split} was measured with other weights than this model's; "
                    "evaluate this model, in the data type in which it is loaded here."
                )

    def _derived_card(self, target: str | None = None) -> CardDetails:
        """Return the details for the card; a model from another repository of the hub names that as its base."""
        origin = None if self.hub_commit is None else self.hub_commit.repository
        if self.card.base_model or origin in (None, target):
            return self.card
        return replace(self.card, base_model=(origin,))

    def _card_text(self, repository: str | None) -> CardText:
        words = self.words
        prompt = '"the red circle"' if words else self.example_prompt
        return CardText(self.describe(), self.hub_tags, prompt, words, repository)

    def _write(self, folder: Path, dtype: torch.dtype | None, max_shard_size: int, card: CardDetails) -> None:
        stored_type = TYPE_PREFIX + self.model_type.removeprefix(TYPE_PREFIX)
        details = details_for_header(card)
        write_model(folder, self, stored_type, self.config, dtype, card=details, shard_bytes=max_shard_size)
        tokenizer = getattr(self, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the model: family, parts and parameter counts."""

    model_type: str
    config: Any
    card: CardDetails = CardDetails()
    hub_commit: HubCommit | None = None
    hub_tags: tuple[str, ...] = ("referring-video-object-segmentation", "video-segmentation")
    example_prompt: str = '"the dog that jumps over the fence"'
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
