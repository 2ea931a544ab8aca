"""Classes by which transformers' ``AutoConfig`` and ``AutoModel`` know the model families."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from refervos.checkpoints.weights import SHARD_BYTES
from refervos.errors import CheckpointError, ConfigError
from refervos.loading import load
from refervos.model_base import VideoSegmenterBase
from refervos.prompts import Prompt
from refervos.session.session import Session


class RefervosConfig(PreTrainedConfig):
    """A model's ``config.json``; the attribute ``config`` holds the hyper-parameters as plain values."""

    config: dict[str, Any] | None = None


class RefervosModel(PreTrainedModel):
    """A model of this project behind the interface of transformers.

    ``from_pretrained`` is ``refervos.load``, and ``save_pretrained`` that of the model.

    Args:
        config: Its configuration, as read by ``AutoConfig``.
        segmenter: The model.

    Attributes:
        segmenter: The model, with all methods of this project.
    """

    config_class = RefervosConfig
    base_model_prefix = "segmenter"
    main_input_name = "pixels"

    def __init__(self, config: RefervosConfig, segmenter: VideoSegmenterBase | None = None) -> None:
        super().__init__(config)
        if segmenter is None:
            raise CheckpointError(
                "a model with random weights cannot be made from a configuration; use AutoModel.from_pretrained, or "
                "'refervos train' for a new model."
            )
        self.segmenter = segmenter
        self.all_tied_weights_keys: dict[str, str] = {}  # which transformers expects; no weights are tied
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *_: Any,
        config: PreTrainedConfig | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: str | None = "cpu",
        **options: Any,
    ) -> Self:
        """Load a model by ``refervos.load``, on the CPU unless a device is named, as transformers does.

        Args:
            pretrained_model_name_or_path: Folder or hub id.
            config: Its configuration, if it has been read already.
            dtype: Data type of the computation; default and ``auto`` are float32, whatever the type of the weights.
            device_map: Device such as ``cuda:1``; ``auto`` for a GPU if available.
            **options: Further arguments of ``refervos.load``, ``revision`` and ``token`` among them.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: When the model is missing or unreadable.
            ConfigError: When an option is unknown.
        """
        model = str(pretrained_model_name_or_path)
        chosen = {name: value for name, value in options.items() if not _is_internal(name)}
        if Path(model).exists():
            chosen.pop("revision", None)  # which transformers also passes for folders
        loaded = load(
            model,
            dtype=None if dtype == "auto" else dtype,
            device=None if device_map == "auto" else device_map,
            **chosen,
        )
        if config is None:
            hub = {name: value for name, value in chosen.items() if name in _HUB_OPTIONS}
            config = cls.config_class.from_pretrained(model, **hub)
        return cls(config, loaded)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *_: Any,
        max_shard_size: int = SHARD_BYTES,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Save the model as its own ``save_pretrained`` does; files in the folder are replaced, as by transformers.

        Args:
            save_directory: The folder.
            max_shard_size: Largest weight file in bytes.
            push_to_hub: Not supported; call ``push_to_hub``.
            **options: Further arguments of the model's ``save_pretrained``.

        Raises:
            ConfigError: When ``push_to_hub`` is set.
            CheckpointError: When the folder cannot be written.
        """
        if push_to_hub:
            raise ConfigError("save_pretrained does not push to the hub; call push_to_hub(repository) afterwards.")
        self.segmenter.save_pretrained(save_directory, overwrite=True, max_shard_size=max_shard_size, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publish the model by its own ``push_to_hub``, which has the options.

        Args:
            repo_id: ``owner/name``.
            **options: Its further arguments.

        Returns:
            Address of the commit, or of the pull request.
        """
        return self.segmenter.push_to_hub(repo_id, **options)

    def open(self, prompts: Iterable[Prompt | str] | str = (), **options: Any) -> Session:
        """Start a session, which segments frame by frame; see ``Session`` for the arguments."""
        return self.segmenter.open(prompts, **options)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Call the ``forward`` of the model's family."""
        return self.segmenter(*inputs, **options)


_HUB_OPTIONS = frozenset({"revision", "token", "cache_dir", "local_files_only", "subfolder"})

_INTERNAL = frozenset({"adapter_kwargs", "code_revision", "force_download", "proxies", "trust_remote_code"})
"""Arguments that ``AutoModel`` and ``pipeline`` add; there is no remote code and there are no adapters."""


def _is_internal(name: str) -> bool:
    return name.startswith("_") or name in _INTERNAL


# Their names begin with that of this project because transformers looks classes up by name, too.


class RefervosSamwiseConfig(RefervosConfig):
    """``config.json`` of a SAMWISE."""

    model_type = "refervos-samwise"


class RefervosSamwiseModel(RefervosModel):
    """A SAMWISE for ``AutoModel``."""

    config_class = RefervosSamwiseConfig


class RefervosRefSamConfig(RefervosConfig):
    """``config.json`` of a RefSAM."""

    model_type = "refervos-refsam"


class RefervosRefSamModel(RefervosModel):
    """A RefSAM for ``AutoModel``."""

    config_class = RefervosRefSamConfig


class RefervosVideoGlammConfig(RefervosConfig):
    """``config.json`` of a VideoGLaMM."""

    model_type = "refervos-videoglamm"


class RefervosVideoGlammModel(RefervosModel):
    """A VideoGLaMM for ``AutoModel``."""

    config_class = RefervosVideoGlammConfig


class RefervosSam2Config(RefervosConfig):
    """``config.json`` of a SAM2 saved by this project."""

    model_type = "refervos-sam2"


class RefervosSam2Model(RefervosModel):
    """A SAM2 for ``AutoModel``, which takes clicks, boxes and masks."""

    config_class = RefervosSam2Config


class RefervosFirstSamwiseConfig(RefervosConfig):
    """``config.json`` of a SAMWISE, in the first folders of this project."""

    model_type = "samwise"


class RefervosFirstSamwiseModel(RefervosModel):
    """A SAMWISE in the first folders of this project."""

    config_class = RefervosFirstSamwiseConfig


class RefervosFirstRefSamConfig(RefervosConfig):
    """``config.json`` of a RefSAM, in the first folders of this project."""

    model_type = "refsam"


class RefervosFirstRefSamModel(RefervosModel):
    """A RefSAM in the first folders of this project."""

    config_class = RefervosFirstRefSamConfig


class RefervosFirstVideoGlammConfig(RefervosConfig):
    """``config.json`` of a VideoGLaMM, in the first folders of this project."""

    model_type = "videoglamm"


class RefervosFirstVideoGlammModel(RefervosModel):
    """A VideoGLaMM in the first folders of this project."""

    config_class = RefervosFirstVideoGlammConfig


MODELS: tuple[type[RefervosModel], ...] = (
    RefervosSamwiseModel,
    RefervosRefSamModel,
    RefervosVideoGlammModel,
    RefervosSam2Model,
)
"""Classes of the families."""

FIRST_MODELS: tuple[type[RefervosModel], ...] = (
    RefervosFirstSamwiseModel,
    RefervosFirstRefSamModel,
    RefervosFirstVideoGlammModel,
)
"""Classes for ``model_type`` without the prefix, which transformers may one day use for its own models."""
