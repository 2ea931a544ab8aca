"""A text encoder with its tokenizer as a folder: ``config.json``, ``model.safetensors``, tokenizer files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from refervos.errors import CheckpointError
from refervos.text.encoder import TextConfig, TextEncoder
from refervos.text.tokenizer import Tokenizer
from refervos.typed_config import config_from_mapping
from refervos.weights import load_renamed, write_folder_atomically

MODEL_TYPE = "refervos-text"


def save_text(encoder: TextEncoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that ``load_text`` reads.

    Args:
        encoder: The encoder.
        tokenizer: Its tokenizer.
        folder: Created when absent; files that exist are replaced.

    Raises:
        CheckpointError: When it cannot be written; nothing is half-written.
    """

    def write(staged: Path) -> None:
        header = {"model_type": MODEL_TYPE, "config": dataclasses.asdict(encoder.config)}
        (staged / "config.json").write_text(json.dumps(header, indent=2) + "\n")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
        save_file(tensors, staged / "model.safetensors", metadata={"format": "pt"})
        tokenizer.save_pretrained(staged)

    write_folder_atomically(folder, write, overwrite=True)


def load_text(folder: Path) -> tuple[TextEncoder, Tokenizer]:
    """Read a folder written by ``save_text``.

    Args:
        folder: The folder.

    Returns:
        The encoder in evaluation mode, and its tokenizer.

    Raises:
        CheckpointError: When it is not such a folder, or its files do not fit.
    """
    try:
        header = json.loads((folder / "config.json").read_text())
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is no readable text encoder ({error}).") from error
    if not isinstance(header, dict) or header.get("model_type") != MODEL_TYPE:
        raise CheckpointError(f"{folder} is no text encoder; give the result of a language stage.")
    encoder = TextEncoder(config_from_mapping(TextConfig, header["config"], str(folder / "config.json")))
    load_renamed(encoder, tensors, lambda name: (name,), where=str(folder))
    return encoder.eval(), Tokenizer.from_pretrained(folder)
