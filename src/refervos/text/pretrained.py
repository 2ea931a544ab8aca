"""Text encoders with their tokenizers as folders: ``config.json``, ``model.safetensors``, tokenizer files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from refervos.checkpoints.weights import (
    CONFIG,
    build_from_weights,
    model_folder,
    read_header,
    read_tensors,
    write_model,
)
from refervos.errors import CheckpointError
from refervos.text.encoder import TextConfig, TextEncoder
from refervos.text.t5 import T5Config, T5TextEncoder
from refervos.text.tokenizer import Tokenizer
from refervos.typed_config import config_from_mapping

Encoder = TypeVar("Encoder", TextEncoder, T5TextEncoder)


@dataclass(frozen=True)
class _Format(Generic[Encoder]):
    """Folder format of one kind of encoder.

    Attributes:
        name: Name of the kind.
        encoder: Class of the encoder.
        config: Class of its configuration.
        own_type: ``model_type`` in our folders.
        published_type: ``model_type`` in transformers' folders.
        fields: Required fields of a published ``config.json``, by our names.
        derived: Computes our other fields from a published ``config.json``.
        fixed: Supported values of further published fields.
        sources: Maps our name of a weight to its published names, given all published weights.
        unused: Regular expressions of published weights that are not part of the encoder.
    """

    name: str
    encoder: Callable[[Any], Encoder]
    config: type
    own_type: str
    published_type: str
    fields: Mapping[str, str]
    derived: Callable[[Mapping[str, Any]], dict[str, Any]]
    fixed: Mapping[str, tuple[Any, ...]]
    sources: Callable[[str, Mapping[str, Any]], tuple[str, ...]]
    unused: tuple[str, ...]


def _roberta_sources(name: str, published: Mapping[str, Any]) -> tuple[str, ...]:
    headless = not any(other.startswith("roberta.") for other in published)  # saved without the language-model head
    return (name.removeprefix("roberta.") if headless else name,)


def _t5_sources(name: str, published: Mapping[str, Any]) -> tuple[str, ...]:
    within = name.removeprefix("t5.")
    return ("shared.weight" if within == "embed_tokens.weight" else f"encoder.{within}",)


def _t5_from_recent_headers(header: Mapping[str, Any]) -> dict[str, Any]:
    """Read the fields that the ``config.json`` of the first T5s omits, because they had only one value."""
    return {
        "position_distance": header.get("relative_attention_max_distance", T5Config.position_distance),
        "gated": header.get("feed_forward_proj") == "gated-gelu",
    }


_ROBERTA = _Format(
    name="RoBERTa",
    encoder=TextEncoder,
    config=TextConfig,
    own_type="refervos-text",
    published_type="roberta",
    fields={
        "vocabulary": "vocab_size",
        "width": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "feedforward": "intermediate_size",
        "positions": "max_position_embeddings",
        "pad": "pad_token_id",
    },
    derived=lambda header: {},
    fixed={"layer_norm_eps": (1e-5,), "type_vocab_size": (1,)},
    sources=_roberta_sources,
    unused=(r"lm_head\..*", r"(roberta\.)?pooler\..*", r"(roberta\.)?embeddings\.position_ids"),
)

_T5 = _Format(
    name="T5",
    encoder=T5TextEncoder,
    config=T5Config,
    own_type="refervos-t5",
    published_type="t5",
    fields={
        "vocabulary": "vocab_size",
        "width": "d_model",
        "head_width": "d_kv",
        "heads": "num_heads",
        "layers": "num_layers",
        "feedforward": "d_ff",
        "position_buckets": "relative_attention_num_buckets",
        "pad": "pad_token_id",
    },
    derived=_t5_from_recent_headers,
    fixed={"layer_norm_epsilon": (1e-6,), "feed_forward_proj": ("relu", "gated-gelu")},
    sources=_t5_sources,
    unused=(r"decoder\..*", r"lm_head\..*", r"encoder\.embed_tokens\.weight"),
)


def save_text(encoder: TextEncoder | T5TextEncoder, tokenizer: Tokenizer, folder: Path) -> None:
    """Save a text encoder and its tokenizer to a folder that ``load_text`` or ``load_t5`` reads.

    Args:
        encoder: The encoder.
        tokenizer: Its tokenizer.
        folder: Created when absent; existing files are replaced.

    Raises:
        CheckpointError: When it cannot be written; no partial folder is left.
    """
    model_type = (_T5 if isinstance(encoder, T5TextEncoder) else _ROBERTA).own_type
    with model_folder(folder, overwrite=True) as staged:
        write_model(staged, encoder, model_type, encoder.config)
        tokenizer.save_pretrained(staged)


def load_text(folder: Path) -> tuple[TextEncoder, Tokenizer]:
    """Read a RoBERTa.

    Args:
        folder: Written by ``save_text``, or a Hugging Face RoBERTa such as ``FacebookAI/roberta-base``.

    Returns:
        The encoder in evaluation mode, and its tokenizer.

    Raises:
        CheckpointError: When it is not such a folder, or its files do not fit.
        ConfigError: When its configuration is invalid.
    """
    return _load(folder, _ROBERTA)


def load_t5(folder: Path) -> tuple[T5TextEncoder, Tokenizer]:
    """Load the encoder of a T5.

    Args:
        folder: Written by ``save_text``, or a Hugging Face T5, T5 v1.1 or Flan-T5 such as ``google-t5/t5-3b``, with or
            without its decoder.

    Returns:
        The encoder in evaluation mode, and its tokenizer.

    Raises:
        CheckpointError: When it is not such a folder, or its files do not fit.
        ConfigError: When its configuration is invalid.
        MissingDependencyError: When reading its tokenizer needs a package that is not installed.
    """
    return _load(folder, _T5)


def _load(folder: Path, form: _Format[Encoder]) -> tuple[Encoder, Tokenizer]:
    advice = f"give the result of a language stage, or a {form.name}"
    header = read_header(folder, advice)
    kind, where = header.get("model_type"), str(folder / CONFIG)
    if kind not in (form.own_type, form.published_type):
        raise CheckpointError(f"{folder} has model_type {kind!r}; {advice}.")
    published = kind == form.published_type
    values = _from_published(header, form, where) if published else header.get("config", {})
    config: Any = config_from_mapping(form.config, values, where)
    tensors = read_tensors(folder)
    encoder = build_from_weights(
        lambda: form.encoder(config),
        tensors,
        lambda name: form.sources(name, tensors) if published else (name,),
        unused=form.unused if published else (),
        where=str(folder),
    )
    return encoder.eval(), Tokenizer.from_pretrained(folder)


def _from_published(header: Mapping[str, Any], form: _Format[Any], where: str) -> dict[str, Any]:
    """Convert a published ``config.json`` to our configuration."""
    missing = [name for name in form.fields.values() if name not in header]
    if missing:
        raise CheckpointError(f"{where} has no {missing[0]}; give the folder of a {form.name}.")
    for name, known in form.fixed.items():
        if header.get(name, known[0]) not in known:
            raise CheckpointError(
                f"{where} is an unsupported variant of {form.name}: {name} is {header[name]!r}; it must be "
                f"{' or '.join(map(repr, known))}."
            )
    return {**{ours: header[theirs] for ours, theirs in form.fields.items()}, **form.derived(header)}
