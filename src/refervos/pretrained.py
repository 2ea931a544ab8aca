"""Models as folders, in the manner of Hugging Face: ``config.json``, ``model.safetensors``, tokenizer files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from refervos.prompts import Prompt
from refervos.segmenter import Segmenter
from refervos.session import Session
from refervos.weights import write_folder_atomically

WEIGHTS = "model.safetensors"
CONFIG = "config.json"


class Pretrained(nn.Module):
    """What every model can do besides segmenting: open a session, be saved, be published."""

    def open(self, prompts: Iterable[Prompt | str] | str = (), *, keep_logits: bool = False) -> Session:
        """Start a session on this model.

        Args:
            prompts: One sentence, or several sentences and prompts, to follow from the first frame on.
            keep_logits: Also return mask logits.

        Returns:
            The session, which holds all state; the model is not changed by it.
        """
        segmenter = cast(Segmenter[Any], self)  # every model that inherits this is one
        return Session(segmenter, [prompts] if isinstance(prompts, str) else prompts, keep_logits=keep_logits)

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
        from safetensors.torch import save_file

        import refervos

        config = {
            "model_type": self.model_type,
            "refervos_version": refervos.__version__,
            "config": dataclasses.asdict(self.config),
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        tensors = {name: _rounded(tensor, dtype) for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        # safetensors makes files that only their owner can read; this one is as public as its neighbour.
        (folder / WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
        tokenizer = getattr(self, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)

    model_type: str
    config: Any


def _rounded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A copy of its own (safetensors refuses shared storage), floats in the wanted type."""
    rounded = tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
    return rounded.detach().cpu().contiguous().clone()
