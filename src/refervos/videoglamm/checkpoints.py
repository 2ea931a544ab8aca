"""Checkpoints of the released VideoGLaMM code, with merged or separate LoRA weights, and of its pre-trained parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from refervos.checkpoints.hub import fetch
from refervos.checkpoints.weight_files import read_settings
from refervos.checkpoints.weights import (
    CONFIG,
    Rules,
    as_checkpoint_error,
    build_from_weights,
    model_tensors,
    read_tensors,
    read_torch_file,
    read_weights,
    rename,
    require_shape,
)
from refervos.errors import CheckpointError, ConfigError
from refervos.sam2.checkpoints import infer_sam2_config, load_sam2, meta_names
from refervos.videoglamm.config import LoraConfig, VideoGlammConfig, as_decoder
from refervos.videoglamm.model import VideoGlamm

CLIP = "openai/clip-vit-large-patch14-336"
"""The image encoder of the published model, which its checkpoints leave out."""

_WRAPPED = "base_model.model."
"""Prefix that peft adds to every name."""

_TOWER = "model.vision_tower."
_CLIP_TOWER = "model.image_vision_tower.vision_tower.vision_model."
_SAM2 = "model.visual_model."
_SEPARATE_SAM2 = "sam2:"
_LORA = ".lora_A.default.weight"

_TO_OFFICIAL: Rules = (
    (r"^image_encoder\.clip\.", _CLIP_TOWER),
    (r"^video_encoder\.patch_embed\.", f"{_TOWER}vision_encoder.patch_embed.proj."),
    (r"^video_encoder\.layers\.", f"{_TOWER}vision_encoder.blocks."),
    (r"^video_encoder\.", f"{_TOWER}vision_encoder."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),  # of attn.qkv, which is taken apart before
    (r"\.attention\.([qk])_norm\.", r".attn.\1_norm."),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.lambda_([12])$", r".ls\1.gamma"),
    (r"^image_projector\.", "model.image_mm_projector."),
    (r"^video_projector\.", "model.mm_projector."),
    (r"^seg_projector\.", "model.text_hidden_fcs.0."),
    (r"^language\.", ""),
)

_UNUSED = (
    # Parts of InternVideo2 that only its pre-training uses.
    re.escape(_TOWER) + r"vision_encoder\.(img_pos_embed|clip_pos_embed|clip_img_pos_embed)",
    re.escape(_TOWER) + r"vision_encoder\.(clip_projector|clip_decoder|final_clip_decoder)\..*",
    re.escape(_TOWER) + r"vision_proj\..*",
    # Buffers saved by older versions of transformers.
    re.escape(_CLIP_TOWER) + r"embeddings\.position_ids",
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)


def official_names(name: str) -> tuple[str, ...]:
    """Return the released code's names for one of our tensors, in the form that ``as_merged`` returns.

    Args:
        name: A name of ``VideoGlamm``'s state dict.

    Returns:
        One name, or several whose tensors are concatenated.
    """
    if name.startswith("tracker.sam."):
        return tuple(f"{_SAM2}{part}" for part in meta_names(name.removeprefix("tracker.sam.")))
    return (rename(name, _TO_OFFICIAL),)


def as_merged(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Normalise the names of a checkpoint.

    The prefix of peft is removed, InternVideo2's fused projections are split, and the scales of SAM2's memory fuser,
    which some versions of transformers rename on saving, get their original names.

    Args:
        source: Names and tensors of a checkpoint with merged or separate LoRA weights.

    Returns:
        The same tensors; LoRA weights keep their names.
    """
    adapted = any(name.endswith(_LORA) for name in source)
    plain: dict[str, Tensor] = {}
    for full, value in source.items():
        name = full.removeprefix(_WRAPPED)
        if not adapted:
            name = name.replace(".base_layer.", ".")
        name = re.sub(r"(memory_encoder\.fuser\.layers\.\d+)\.weight$", r"\1.gamma", name)
        fused = re.fullmatch(r"(.*vision_encoder\.blocks\.\d+\.attn)\.qkv\.weight", name)
        if fused and len(value) % 3 == 0:
            plain |= {f"{fused[1]}.{kind}.weight": part for kind, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            plain[name] = value
    return plain


def infer_config(source: Mapping[str, Tensor], header: Mapping[str, Any], where: str) -> VideoGlammConfig:
    """Infer the configuration of a checkpoint of the published size from its weights and its ``config.json``.

    Args:
        source: Names and tensors, see ``as_merged``.
        header: Content of its ``config.json``; may be empty.
        where: The checkpoint, for error messages.

    Returns:
        The published configuration, with this checkpoint's vocabulary size, ``[SEG]`` id, attention window, LoRA rank
        and SAM2 size.

    Raises:
        CheckpointError: When it is no VideoGLaMM checkpoint.
    """
    config = VideoGlammConfig()
    vocabulary, _ = require_shape(source, "model.embed_tokens.weight", 2, where, "VideoGLaMM checkpoint")
    require_shape(source, "model.text_hidden_fcs.0.0.weight", 2, where, "VideoGLaMM checkpoint")
    window, seg = header.get("sliding_window"), header.get("seg_token_idx")
    phi = replace(config.phi, vocabulary=vocabulary)
    if isinstance(window, int):
        phi = replace(phi, window=window + 1)  # transformers 4.41 attends to one more position
    ranks = {value.shape[0] for name, value in source.items() if name.endswith(_LORA)}
    if len(ranks) > 1:
        raise CheckpointError(f"{where} has LoRA weights of ranks {sorted(ranks)}; a single rank is expected.")
    sam2 = {name.removeprefix(_SAM2): value for name, value in source.items() if name.startswith(_SAM2)}
    try:
        return replace(
            config,
            phi=phi,
            seg=seg if isinstance(seg, int) else vocabulary - 1,
            lora=LoraConfig(rank=ranks.pop()) if ranks else None,
            sam2=as_decoder(infer_sam2_config(sam2, where)) if sam2 else config.sam2,
        )
    except ConfigError as error:
        raise CheckpointError(f"{where} does not fit: {error}") from error


def load_official(
    checkpoint: Path,
    *,
    clip: str | Path | None = CLIP,
    internvideo: Path | None = None,
    sam2: str | Path | None = None,
    tokenizer: Any = None,
    config: VideoGlammConfig | None = None,
    dtype: torch.dtype | None = torch.float32,
) -> VideoGlamm:
    """Read a checkpoint of the released code.

    Args:
        checkpoint: A folder with ``model.safetensors`` or ``pytorch_model.bin``, whole or in shards, or one such file;
            with merged LoRA weights, or as written by peft and DeepSpeed.
        clip: Folder or hub id of the image encoder, used if the checkpoint does not contain it.
        internvideo: InternVideo2's ``.pt``, used if the checkpoint does not contain the video encoder.
        sam2: SAM2 folder, ``.pt`` or hub id, used if the checkpoint does not contain the tracker.
        tokenizer: Tokenizer for text prompts.
        config: Hyper-parameters; default inferred from the checkpoint, which must then be of the published size. LoRA
            is configured as in the checkpoint.
        dtype: Data type of the weights; None for that of the language model in the checkpoint.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: When a file is unreadable or does not match the model; lists all mismatches.
    """
    with as_checkpoint_error(checkpoint):
        source = as_merged(read_tensors(checkpoint) if checkpoint.is_dir() else read_weights(checkpoint))
        header = read_settings(checkpoint / CONFIG) if (checkpoint / CONFIG).is_file() else {}
    where = str(checkpoint)
    inferred = infer_config(source, header if isinstance(header, Mapping) else {}, where) if config is None else config
    if config is not None and not any(name.endswith(_LORA) for name in source):
        inferred = replace(config, lora=None)
    if not _has(source, _CLIP_TOWER) and clip is not None:
        source |= _clip_tensors(_found(clip, "give a folder or hub id of a CLIP model"))
        where += f", with {clip},"
    if internvideo is not None and not _has(source, _TOWER):
        source |= _internvideo_tensors(internvideo)
        where += f", with {internvideo},"
    separate = sam2 is not None and not _has(source, _SAM2)
    if sam2 is not None and separate:
        tracker = load_sam2(_found(sam2, "give a SAM2 checkpoint, or its hub id"))
        inferred = replace(inferred, sam2=as_decoder(tracker.config))
        source |= {f"{_SEPARATE_SAM2}{name}": value for name, value in tracker.sam.state_dict().items()}
        where += f", with {sam2},"

    def sources_of(name: str) -> tuple[str, ...]:
        if separate and name.startswith("tracker.sam."):
            return (_SEPARATE_SAM2 + name.removeprefix("tracker.sam."),)
        return official_names(name)

    chosen, kind = inferred, dtype or source["lm_head.weight"].dtype
    return build_from_weights(
        lambda: VideoGlamm(chosen, tokenizer).to(kind),
        source,
        sources_of,
        unused=[*_UNUSED, *_skipped_layers(chosen)],
        where=where,
    ).eval()


def is_official(checkpoint: Path) -> bool:
    """Return whether a folder or file is a checkpoint of the released VideoGLaMM code.

    Raises:
        CheckpointError: When it contains no readable weights.
    """
    source = read_tensors(checkpoint) if checkpoint.is_dir() else read_weights(checkpoint)
    return any(name.removeprefix(_WRAPPED).startswith("model.text_hidden_fcs.") for name in source)


def _has(source: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in source)


def _skipped_layers(config: VideoGlammConfig) -> list[str]:
    """Name patterns of unused layers: the last layer of each encoder, and a video encoder that the model omits."""
    skipped = [re.escape(f"{_CLIP_TOWER}encoder.layers.{config.clip.layers - 1}.") + ".*"]
    if config.internvideo is None:
        return [*skipped, re.escape(_TOWER) + ".*", r"model\.mm_projector\..*"]
    return [*skipped, re.escape(f"{_TOWER}vision_encoder.blocks.{config.internvideo.layers - 1}.") + ".*"]


def _found(model: str | Path, advice: str) -> Path:
    """Return the path of a local model, or download it from the hub."""
    path = Path(model)
    return path if path.exists() else fetch(str(model), ["*.json", "*.safetensors"], advice)


def _clip_tensors(folder: Path) -> dict[str, Tensor]:
    """Read the vision weights of a CLIP model, under their names in a VideoGLaMM checkpoint."""
    source = read_tensors(folder) if folder.is_dir() else read_weights(folder)
    inside = "vision_model."
    found = {
        _CLIP_TOWER + name.removeprefix(inside): value for name, value in source.items() if name.startswith(inside)
    }
    if not found:
        raise CheckpointError(f"{folder} has no vision_model.*; give a CLIP model of Hugging Face's layout.")
    return found


def _internvideo_tensors(file: Path) -> dict[str, Tensor]:
    """Read the vision encoder of an InternVideo2 checkpoint, under its names in a VideoGLaMM checkpoint."""
    source = model_tensors(read_torch_file(file), file)
    inside = "vision_encoder."
    found = {_TOWER + name: value for name, value in source.items() if name.startswith(inside)}
    if not found:
        raise CheckpointError(f"{file} has no vision_encoder.*; give InternVideo2's Stage-2 checkpoint.")
    return as_merged(found)
