"""Convert an official checkpoint to a folder for ``refervos.load``."""

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
        folder: Output folder for ``config.json``, ``model.safetensors`` and the tokenizer's files.
        tokenizer: Folder or hub id of a RoBERTa tokenizer, or None to write none.
        overwrite: Whether to write to a folder that is not empty.

    Returns:
        The converted model.

    Raises:
        CheckpointError: When the checkpoint is unreadable or does not match, the tokenizer cannot be read, or the
            folder cannot be written.
    """
    target = Path(folder)
    if target.is_dir() and any(target.iterdir()) and not overwrite:  # before reading for minutes
        raise CheckpointError(f"{target} is not empty; give a new folder, or allow overwriting.")
    text_tokenizer = None if tokenizer is None else Tokenizer.from_pretrained(tokenizer)
    model = load_official(Path(checkpoint), text_tokenizer)
    model.save_pretrained(target, overwrite=overwrite)
    return model
