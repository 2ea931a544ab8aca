"""Checkpoints of the released VideoGLaMM code, merged or not, and those of the parts that it was built from."""

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
"""What peft puts before every name."""

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
    # Of InternVideo2: what only its pre-training reads.
    re.escape(_TOWER) + r"vision_encoder\.(img_pos_embed|clip_pos_embed|clip_img_pos_embed)",
    re.escape(_TOWER) + r"vision_encoder\.(clip_projector|clip_decoder|final_clip_decoder)\..*",
    re.escape(_TOWER) + r"vision_proj\..*",
    # A buffer of older versions of transformers.
    re.escape(_CLIP_TOWER) + r"embeddings\.position_ids",
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",
)


def official_names(name: str) -> tuple[str, ...]:
    """Name one of our tensors as the released code does, after ``as_merged``.

    Args:
        name: A name of ``VideoGlamm``'s state dict.

    Returns:
        One name, or several whose tensors are to be concatenated.
    """
    if name.startswith("tracker.sam."):
        return tuple(f"{_SAM2}{part}" for part in meta_names(name.removeprefix("tracker.sam.")))
    return (rename(name, _TO_OFFICIAL),)


def as_merged(source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring a checkpoint's names to one form, whatever wrote it.

    peft's prefix goes, InternVideo2's fused projections are taken apart, and scales that some versions of transformers
    rename when they save are called as in SAM2 again.

    Args:
        source: Names and tensors of a merged or an unmerged checkpoint.

    Returns:
        The same tensors; those of low-rank adaptation keep their names.
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
    """Tell the configuration of a checkpoint of the published size from its weights and its ``config.json``.

    Args:
        source: Names and tensors, see ``as_merged``.
        header: What its ``config.json`` holds; may be empty.
        where: The checkpoint, for error messages.

    Returns:
        The published configuration, with the vocabulary, the token ``[SEG]``, the window of attention, the low-rank
        adaptation and the SAM2 of this checkpoint.

    Raises:
        CheckpointError: When it is no VideoGLaMM checkpoint.
    """
    config = VideoGlammConfig()
    vocabulary, _ = require_shape(source, "model.embed_tokens.weight", 2, where, "VideoGLaMM checkpoint")
    require_shape(source, "model.text_hidden_fcs.0.0.weight", 2, where, "VideoGLaMM checkpoint")
    window, seg = header.get("sliding_window"), header.get("seg_token_idx")
    phi = replace(config.phi, vocabulary=vocabulary)
    if isinstance(window, int):
        phi = replace(phi, window=window + 1)  # the released code's transformers see one position more
    ranks = {value.shape[0] for name, value in source.items() if name.endswith(_LORA)}
    if len(ranks) > 1:
        raise CheckpointError(f"{where} has low-rank adaptation of the ranks {sorted(ranks)}; one is expected.")
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
            merged, or as peft and DeepSpeed leave it.
        clip: A folder or hub id of the image encoder, where the checkpoint leaves it out.
        internvideo: InternVideo2's ``.pt``, where the checkpoint leaves the video encoder out.
        sam2: A SAM2 folder, ``.pt`` or hub id, where the checkpoint leaves the tracker out.
        tokenizer: For asking with text.
        config: Every hyper-parameter; default told from the checkpoint, which must then be of the published size. Its
            adaptation is taken from the checkpoint.
        dtype: What the weights are converted to; None for the type of the language model in the checkpoint.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: When a file is unreadable or does not fit; what does not fit is listed.
    """
    with as_checkpoint_error(checkpoint):
        source = as_merged(read_tensors(checkpoint) if checkpoint.is_dir() else read_weights(checkpoint))
        header = read_settings(checkpoint / CONFIG) if (checkpoint / CONFIG).is_file() else {}
    where = str(checkpoint)
    told = infer_config(source, header if isinstance(header, Mapping) else {}, where) if config is None else config
    if config is not None and not any(name.endswith(_LORA) for name in source):
        told = replace(config, lora=None)
    if not _has(source, _CLIP_TOWER) and clip is not None:
        source |= _clip_tensors(_found(clip, "give a folder or hub id of a CLIP model"))
        where += f", with {clip},"
    if internvideo is not None and not _has(source, _TOWER):
        source |= _internvideo_tensors(internvideo)
        where += f", with {internvideo},"
    separate = sam2 is not None and not _has(source, _SAM2)
    if sam2 is not None and separate:
        tracker = load_sam2(_found(sam2, "give a SAM2 checkpoint, or its hub id"))
        told = replace(told, sam2=as_decoder(tracker.config))
        source |= {f"{_SEPARATE_SAM2}{name}": value for name, value in tracker.sam.state_dict().items()}
        where += f", with {sam2},"

    def sources_of(name: str) -> tuple[str, ...]:
        if separate and name.startswith("tracker.sam."):
            return (_SEPARATE_SAM2 + name.removeprefix("tracker.sam."),)
        return official_names(name)

    chosen, kind = told, dtype or source["lm_head.weight"].dtype
    return build_from_weights(
        lambda: VideoGlamm(chosen, tokenizer).to(kind),
        source,
        sources_of,
        unused=[*_UNUSED, *_skipped_layers(chosen)],
        where=where,
    ).eval()


def is_official(checkpoint: Path) -> bool:
    """Tell whether a folder or file is a checkpoint of the released VideoGLaMM code.

    Raises:
        CheckpointError: When it holds no weights that can be read.
    """
    source = read_tensors(checkpoint) if checkpoint.is_dir() else read_weights(checkpoint)
    return any(name.removeprefix(_WRAPPED).startswith("model.text_hidden_fcs.") for name in source)


def _has(source: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in source)


def _skipped_layers(config: VideoGlammConfig) -> list[str]:
    """The last layer of each encoder, which no feature comes from; all of a video encoder that the model leaves out."""
    skipped = [re.escape(f"{_CLIP_TOWER}encoder.layers.{config.clip.layers - 1}.") + ".*"]
    if config.internvideo is None:
        return [*skipped, re.escape(_TOWER) + ".*", r"model\.mm_projector\..*"]
    return [*skipped, re.escape(f"{_TOWER}vision_encoder.blocks.{config.internvideo.layers - 1}.") + ".*"]


def _found(model: str | Path, advice: str) -> Path:
    """A folder or file, downloaded where it is none here."""
    path = Path(model)
    return path if path.exists() else fetch(str(model), ["*.json", "*.safetensors"], advice)


def _clip_tensors(folder: Path) -> dict[str, Tensor]:
    """The vision half of a CLIP model, by the names that it has in a VideoGLaMM."""
    source = read_tensors(folder) if folder.is_dir() else read_weights(folder)
    inside = "vision_model."
    found = {
        _CLIP_TOWER + name.removeprefix(inside): value for name, value in source.items() if name.startswith(inside)
    }
    if not found:
        raise CheckpointError(f"{folder} has no vision_model.*; give a CLIP model of Hugging Face's layout.")
    return found


def _internvideo_tensors(file: Path) -> dict[str, Tensor]:
    """The vision encoder of an InternVideo2 checkpoint, by the names that it has in a VideoGLaMM."""
    source = model_tensors(read_torch_file(file), file)
    inside = "vision_encoder."
    found = {_TOWER + name: value for name, value in source.items() if name.startswith(inside)}
    if not found:
        raise CheckpointError(f"{file} has no vision_encoder.*; give InternVideo2's Stage-2 checkpoint.")
    return as_merged(found)
