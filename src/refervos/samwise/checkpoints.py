"""Loading official SAMWISE checkpoints (``.pth`` of the released code)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from refervos.checkpoints.card import CardDetails
from refervos.checkpoints.weights import (
    Rules,
    as_checkpoint_error,
    build_from_weights,
    model_tensors,
    read_torch_file,
    read_weights,
    rename,
    require_shape,
)
from refervos.errors import CheckpointError, ConfigError
from refervos.sam2.checkpoints import infer_sam2_config, meta_names
from refervos.sam2.config import SAM2_PRESETS, Sam2Config
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.text.encoder import TextConfig
from refervos.text.tokenizer import Tokenizer

_ADAPTERS = "cmt_adapters."
_TEXT = "text_encoder.model.encoder.sentence_encoder."

_TO_FAIRSEQ: Rules = (
    (r"^text\.roberta\.embeddings\.word_embeddings\.", f"{_TEXT}embed_tokens."),
    (r"^text\.roberta\.embeddings\.position_embeddings\.", f"{_TEXT}embed_positions."),
    (r"^text\.roberta\.embeddings\.LayerNorm\.", f"{_TEXT}layernorm_embedding."),
    (r"^text\.roberta\.encoder\.layer\.", f"{_TEXT}layers."),
    (r"\.attention\.self\.(query|key|value)\.", r".self_attn.\1."),
    (r"\.self_attn\.(q|k|v)(uery|ey|alue)\.", r".self_attn.\1_proj."),
    (r"\.attention\.output\.dense\.", ".self_attn.out_proj."),
    (r"\.attention\.output\.LayerNorm\.", ".self_attn_layer_norm."),
    (r"\.intermediate\.dense\.", ".fc1."),
    (r"\.output\.dense\.", ".fc2."),
    (r"\.output\.LayerNorm\.", ".final_layer_norm."),
)

_TO_OFFICIAL: Rules = (
    (r"^adapters\.(\d+)\.hsa\.spatial_embedding$", r"cmt_adapters.\1.spatial_pos_embed"),
    (r"^adapters\.(\d+)\.hsa\.norm\.", r"cmt_adapters.\1.norm_pre_HSA."),
    (r"^adapters\.(\d+)\.hsa\.attention\.", r"cmt_adapters.\1.hsa.self_attn."),
    (r"^adapters\.(\d+)\.vision_to_text\.", r"cmt_adapters.\1.ca_V2T.multihead_attn."),
    (r"^adapters\.(\d+)\.text_to_vision\.", r"cmt_adapters.\1.ca_T2V.multihead_attn."),
    (r"^adapters\.(\d+)\.vision_(down|up)\.", r"cmt_adapters.\1.proj_vis_\2.0."),
    (r"^adapters\.(\d+)\.vision_(down|up)_norm\.", r"cmt_adapters.\1.proj_vis_\2.1."),
    (r"^adapters\.(\d+)\.text_(down|up)\.", r"cmt_adapters.\1.proj_text_\2.0."),
    (r"^adapters\.", "cmt_adapters."),
    (r"^text_prompt\.", "sam.sam_prompt_encoder.project_text."),
    (r"^motion_prompt\.", "sam.sam_prompt_encoder.project_motion_prompts."),
    (r"^cme\.decision_token$", "conditional_memory_encoder.decision_token.weight"),
    (r"^cme\.head\.", "conditional_memory_encoder.decision_class_head."),
    (r"^cme\.attention\.", "conditional_memory_encoder.transformerBlock.self_attn."),
    (r"^cme\.", "conditional_memory_encoder.transformerBlock."),
    (r"\.in_proj\.(weight|bias)$", r".in_proj_\1"),
)

_UNUSED = (
    r"text_encoder\._float_tensor",
    r"text_encoder\.model\.encoder\.sentence_encoder\.version",
    r"text_encoder\.model\.encoder\.lm_head\..*",  # the language-model head: loaded by the released code, never run
)


def official_names(name: str) -> tuple[str, ...]:
    """Convert the name of one of our tensors to the released code's names.

    Args:
        name: A name of ``Samwise``'s state dict.

    Returns:
        The names in an official checkpoint: one, several to concatenate, or none (RoBERTa's single token type, which
        fairseq does not have and which stays zero).
    """
    if name.startswith("tracker.sam."):
        return tuple(f"sam.{part}" for part in meta_names(name.removeprefix("tracker.sam.")))
    if name == "text.roberta.embeddings.token_type_embeddings.weight":
        return ()
    if name.startswith("text."):
        return (rename(name, _TO_FAIRSEQ),)
    return (rename(name, _TO_OFFICIAL),)


def infer_samwise_config(source: Mapping[str, Tensor], args: Namespace | None, where: str) -> SamwiseConfig:
    """Infer the configuration from the weights and, for settings that weights do not reveal, from ``args``.

    Args:
        source: An official state dict.
        args: The training arguments that the released code stores with the weights, if any.
        where: The checkpoint, for error messages.

    Returns:
        The model's configuration.

    Raises:
        CheckpointError: When it is not a SAMWISE checkpoint.
    """
    if not any(name.startswith(_ADAPTERS) for name in source):
        raise CheckpointError(f"{where} has no cmt_adapters.*; it is not a SAMWISE checkpoint.")
    sam2 = infer_sam2_config({n.removeprefix("sam."): t for n, t in source.items() if n.startswith("sam.")}, where)
    adapter = require_shape(source, "cmt_adapters.0.proj_text_down.0.weight", 2, where, "SAMWISE checkpoint")
    known: dict[str, Any] = {} if args is None else vars(args)
    inferred: dict[str, Any] = {}
    if isinstance(known.get("cme_decision_window"), int):
        inferred["cme_window"] = known["cme_decision_window"]
    if known.get("switch_mem") in ("reweight", "all_mask", "avg"):
        inferred["switch_memory"] = known["switch_mem"]
    if hsa := "cmt_adapters.0.hsa.linear.weight" in source:
        patches = (_cells(source, f"cmt_adapters.{index}.spatial_pos_embed", where) for index in range(3))
        inferred["hsa_patches"] = tuple(round(cells**0.5) for cells in patches)
    try:
        return SamwiseConfig(
            sam2=sam2,
            text=_infer_text(source, where),
            adapter_width=adapter[0],
            hsa=hsa,
            motion_prompt="sam.sam_prompt_encoder.project_motion_prompts.layers.0.weight" in source,
            # Without an object score the model was trained on single images, where the CME never runs.
            cme=bool(known.get("use_cme_head", sam2.object_score)),
            **inferred,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where} does not fit: {error}") from error


def _cells(source: Mapping[str, Tensor], name: str, where: str) -> int:
    """Return the number of cells in a patch of an adapter's temporal attention."""
    if name not in source or source[name].ndim < 2:
        raise CheckpointError(f"{where} has no {name} with cells; it is not a SAMWISE checkpoint.")
    return source[name].shape[-2]


def _infer_text(source: Mapping[str, Tensor], where: str) -> TextConfig:
    def shape(name: str) -> tuple[int, ...]:
        return require_shape(source, f"{_TEXT}{name}.weight", 2, where, "SAMWISE checkpoint")

    vocabulary, width = shape("embed_tokens")
    return TextConfig(
        vocabulary=vocabulary,
        width=width,
        feedforward=shape("layers.0.fc1")[0],
        positions=shape("embed_positions")[0],
    )


def is_official(path: Path) -> bool:
    """Return True if a file contains an official SAMWISE checkpoint.

    Raises:
        CheckpointError: When it is not a file of weights.
    """
    return any(name.startswith(_ADAPTERS) for name in read_weights(path))


def load_official(path: Path, tokenizer: Tokenizer | None = None, **overrides: Any) -> Samwise:
    """Read an official SAMWISE checkpoint.

    Args:
        path: A ``.pth`` of the released code: ``{"model": state_dict, "args": Namespace, ...}``, with or without
            ``module.`` prefixes.
        tokenizer: Tokenizer for sentences.
        **overrides: Fields of ``SamwiseConfig`` that weights do not reveal, such as ``protocol`` or ``cme``;
            ``image_size`` is accepted too.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: When the file is unreadable or does not fit; names that do not match are listed.
    """
    with as_checkpoint_error(path):
        return _load_official(path, tokenizer, overrides)


def _load_official(path: Path, tokenizer: Tokenizer | None, overrides: dict[str, Any]) -> Samwise:
    loaded = read_torch_file(path)
    source = model_tensors(loaded, path)
    args = loaded.get("args")
    config = infer_samwise_config(source, args if isinstance(args, Namespace) else None, str(path))
    if "image_size" in overrides:
        size = overrides.pop("image_size")
        overrides["sam2"] = replace(config.sam2, image_size=size)
        overrides.setdefault("short_side", round(config.short_side * size / config.sam2.image_size))
    config = replace(config, **overrides)
    model = build_from_weights(
        lambda: Samwise(config, tokenizer), source, official_names, unused=_UNUSED, where=str(path)
    ).eval()
    model.card = CardDetails(base_model=_base_models(config.sam2))
    return model


def _base_models(config: Sam2Config) -> tuple[str, ...]:
    """Return the hub ids of the frozen parts: a SAM2, if its size is a published one, and RoBERTa."""
    depth = config.stage_widths, config.hiera_blocks
    sizes = [name for name, preset in SAM2_PRESETS.items() if (preset.stage_widths, preset.hiera_blocks) == depth]
    return (*(f"facebook/sam2-hiera-{name}" for name in sizes), "FacebookAI/roberta-base")
