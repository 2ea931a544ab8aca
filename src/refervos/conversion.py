"""Turn an official checkpoint into a folder that ``refervos.load`` reads."""

from __future__ import annotations

import os
from pathlib import Path

from refervos.errors import CheckpointError
from refervos.samwise.checkpoints import load_official
from refervos.samwise.model import Samwise
from refervos.text.tokenizer import Tokenizer

DEFAULT_TOKENIZER = "FacebookAI/roberta-base"
"""The tokenizer of every released SAMWISE checkpoint."""


def convert(
    checkpoint: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = DEFAULT_TOKENIZER,
    overwrite: bool = False,
) -> Samwise:
    """Convert an official SAMWISE ``.pth``.

    Args:
        checkpoint: The file.
        folder: Where ``config.json``, ``model.safetensors`` and the tokenizer's files go.
        tokenizer: A folder or hub id of a RoBERTa tokenizer, or None to write none.
        overwrite: Whether a folder that has files may be written to.

    Returns:
        The model that was written.

    Raises:
        CheckpointError: When the checkpoint is unreadable or does not fit, the tokenizer cannot be had, or the folder
            cannot be written.
    """
    target = Path(folder)
    if target.is_dir() and any(target.iterdir()) and not overwrite:  # before minutes of reading
        raise CheckpointError(f"{target} is not empty; give a new folder, or allow overwriting.")
    words = None if tokenizer is None else Tokenizer.from_pretrained(tokenizer)
    model = load_official(Path(checkpoint), words)
    model.save_pretrained(target, overwrite=overwrite)
    return model
