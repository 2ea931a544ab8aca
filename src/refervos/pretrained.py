"""Models as folders, in the manner of Hugging Face: ``config.json``, ``model.safetensors``, tokenizer files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refervos.checkpoints.weights import fingerprint, write_folder_atomically, write_model
from refervos.ops.borders import Borders
from refervos.ops.compilation import Stage
from refervos.ops.derived import Derived
from refervos.session.session import OpensSessions


class Pretrained(OpensSessions, nn.Module):
    """What every model can do besides segmenting: open a session, be saved, be published."""

    def fingerprint(self) -> str:
        """SHA-256 of the configuration and the weights, which are read again only when they have changed."""
        if self._fingerprints is None:
            self._fingerprints = Derived()
        weights = list(self.state_dict(keep_vars=True).values())
        with torch.no_grad():
            return self._fingerprints.get(self.config, weights, lambda: fingerprint(self, self.config))

    @property
    def borders(self) -> Borders:
        """How sessions bring masks to the frame's size unless they say otherwise."""
        return getattr(self.config, "borders", "bilinear")

    def stages_to_compile(self) -> Sequence[Stage]:
        """Methods in which time goes, for ``compile_stages``; none unless the family names them."""
        return ()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, overwrite: bool = False
    ) -> None:
        """Write a folder that ``load`` reads.

        Args:
            folder: Created when absent.
            dtype: Round the weights to this type, for instance ``torch.float16``; default as they are.
            overwrite: Whether a folder that has files may be written to.

        Raises:
            CheckpointError: When the folder is not empty or not writable; nothing is half-written.
        """
        write_folder_atomically(Path(folder), lambda staged: self._write(staged, dtype), overwrite=overwrite)

    def push_to_hub(self, repository: str, *, private: bool = False, token: str | None = None) -> str:
        """Publish the model on the Hugging Face hub.

        Args:
            repository: ``owner/name``, created when absent.
            private: Whether a new repository is private.
            token: Access token, default the one stored by ``hf auth login``.

        Returns:
            The address of the commit.
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
