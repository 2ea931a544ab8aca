"""A text encoder with its tokenizer as a folder: ``config.json``, ``model.safetensors``, tokenizer files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refervos.errors import CheckpointError
from refervos.text.encoder import TextConfig, TextEncoder
from refervos.text.tokenizer import Tokenizer
from refervos.typed_config import config_from_mapping
from refervos.weights import CONFIG, load_renamed, read_header, read_tensors, write_folder_atomically, write_model

MODEL_TYPE = "refervos-text"

_ROBERTA_FIELDS = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feedforward": "intermediate_size",
    "positions": "max_position_embeddings",
    "pad": "pad_token_id",
}
"""Our names of what a Hugging Face RoBERTa's ``config.json`` tells."""

_ROBERTA_UNUSED = (r"lm_head\..*", r"(roberta\.)?pooler\..*", r"(roberta\.)?embeddings\.position_ids")
"""What such a checkpoint holds besides the encoder."""


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
        write_model(staged, encoder, MODEL_TYPE, encoder.config)
        tokenizer.save_pretrained(staged)

    write_folder_atomically(folder, write, overwrite=True)


def load_text(folder: Path) -> tuple[TextEncoder, Tokenizer]:
    """Read a text encoder.

    Args:
        folder: Written by ``save_text``, or a Hugging Face RoBERTa such as ``FacebookAI/roberta-base``.

    Returns:
        The encoder in evaluation mode, and its tokenizer.

    Raises:
        CheckpointError: When it is not such a folder, or its files do not fit.
        ConfigError: When it has another shape than this encoder can have.
    """
    advice = "give the result of a language stage, or a RoBERTa"
    header = read_header(folder, advice)
    kind, where = header.get("model_type"), str(folder / CONFIG)
    if kind not in (MODEL_TYPE, "roberta"):
        raise CheckpointError(f"{folder} is no text encoder; {advice}.")
    values = _from_roberta(header, where) if kind == "roberta" else header.get("config", {})
    encoder = TextEncoder(config_from_mapping(TextConfig, values, where))
    tensors = read_tensors(folder)
    bare = kind == "roberta" and not any(name.startswith("roberta.") for name in tensors)  # saved without a head
    load_renamed(
        encoder,
        tensors,
        lambda name: (name.removeprefix("roberta.") if bare else name,),
        unused=_ROBERTA_UNUSED if kind == "roberta" else (),
        where=str(folder),
    )
    return encoder.eval(), Tokenizer.from_pretrained(folder)


def _from_roberta(header: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our configuration of a Hugging Face RoBERTa."""
    missing = [name for name in _ROBERTA_FIELDS.values() if name not in header]
    if missing:
        raise CheckpointError(f"{where} does not tell {missing[0]}; give the folder of a RoBERTa.")
    if header.get("layer_norm_eps", 1e-5) != 1e-5 or header.get("type_vocab_size", 1) != 1:
        raise CheckpointError(f"{where} is no RoBERTa of the usual kind (layer_norm_eps 1e-5, type_vocab_size 1).")
    return {ours: header[theirs] for ours, theirs in _ROBERTA_FIELDS.items()}
