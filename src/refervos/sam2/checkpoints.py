"""Loading SAM2 checkpoints, versions 1 and 2.1: Meta's ``.pt`` files and Hugging Face folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from refervos.checkpoints.sam_names import (
    HF_UNUSED,
    MASK_DECODER_TO_META,
    PROMPT_ENCODER_TO_META,
    heads_to_meta,
    hf_names,
)
from refervos.checkpoints.weights import (
    CONFIG,
    Rules,
    build_from_weights,
    read_header,
    read_tensors,
    read_weights,
    rename,
    require_shape,
)
from refervos.errors import CheckpointError, ConfigError
from refervos.sam2.config import SAM2_PRESETS, Sam2Config, as_version_2_1, config_from_folder
from refervos.sam2.tracker import Sam2Tracker

_TO_META: Rules = (
    *PROMPT_ENCODER_TO_META,
    *MASK_DECODER_TO_META,
    (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
    (r"\.patch_embed\.projection\.", ".patch_embed.proj."),
    (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.", "sam_mask_decoder."),
    (r"^object_pointer_proj\.", "obj_ptr_proj."),
    *heads_to_meta(r"output_hypernetworks_mlps\.\d+|iou_prediction_head|pred_obj_score_head|obj_ptr_proj"),
    (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
    (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    (r"^(image_encoder|memory_attention)(.*)\.layer_norm", r"\1\2.norm"),
    (r"^(sam_mask_decoder|memory_attention)(.*)\.o_proj\.", r"\1\2.out_proj."),
    (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
    (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
    (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
    (r"\.depthwise_conv\.", ".dwconv."),
    (r"\.pointwise_conv(\d)\.", r".pwconv\1."),
    (r"(fuser\.layers\.\d+)\.layer_norm\.", r"\1.norm."),
    (r"(fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
    (r"\.mask_downsampler\.final_conv\.", ".mask_downsampler.encoder.12."),
    (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
    (r"^no_memory_embedding$", "no_mem_embed"),
    (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
    (r"^no_object_pointer$", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
    (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
)


def meta_names(name: str) -> tuple[str, ...]:
    """Convert the name of a tensor of transformers' ``Sam2VideoModel`` to Meta's.

    Args:
        name: A name of the model's state dict, such as ``mask_decoder.iou_token.weight``.

    Returns:
        One name, or four where transformers stacks tensors that Meta stores separately.
    """
    if name == "prompt_encoder.point_embed.weight":
        return tuple(f"sam_prompt_encoder.point_embeddings.{index}.weight" for index in range(4))
    if name.startswith("memory_encoder.mask_downsampler.layers."):
        # Each of Meta's encoder steps is convolution, norm, activation.
        _, _, _, index, kind, last = name.split(".")
        return (f"memory_encoder.mask_downsampler.encoder.{3 * int(index) + (kind == 'layer_norm')}.{last}",)
    return (rename(name, _TO_META),)


def infer_sam2_config(names_to_tensors: Mapping[str, Tensor], where: str) -> Sam2Config:
    """Infer which published SAM2 a checkpoint is from the shapes of its weights (Meta's names).

    Args:
        names_to_tensors: A Meta-format state dict.
        where: The checkpoint, for error messages.

    Returns:
        The tracker's configuration: size, version, and whether it has an object score head.

    Raises:
        CheckpointError: When it has none of the published sizes.
    """
    prefix = "image_encoder.trunk."
    width = require_shape(names_to_tensors, prefix + "patch_embed.proj.weight", 4, where, "SAM2 checkpoint")[0]
    blocks = len({name.split(".")[3] for name in names_to_tensors if name.startswith(prefix + "blocks.")})
    config = next((c for c in SAM2_PRESETS.values() if c.hiera_width == width and sum(c.hiera_blocks) == blocks), None)
    if config is None:
        sizes = ", ".join(f"{n} ({c.hiera_width}, {sum(c.hiera_blocks)})" for n, c in SAM2_PRESETS.items())
        raise CheckpointError(
            f"{where} has a Hiera of width {width} with {blocks} blocks; the published (width, blocks) are {sizes}."
        )
    if "no_obj_embed_spatial" in names_to_tensors:
        config = as_version_2_1(config)
    return replace(config, object_score="sam_mask_decoder.pred_obj_score_head.layers.0.weight" in names_to_tensors)


def load_sam2(path: Path) -> Sam2Tracker:
    """Read a SAM2 tracker from Meta's ``.pt`` file or a Hugging Face folder.

    Args:
        path: ``sam2_hiera_*.pt``, ``sam2.1_hiera_*.pt`` or a file of any name trained from these; or a folder
            with ``config.json`` and ``model.safetensors``.

    Returns:
        The tracker, in evaluation mode.

    Raises:
        CheckpointError: When the file is unreadable or does not fit, with the names that do not match.
    """
    if path.is_dir():
        return _load_hf_folder(path)
    source = read_weights(path)
    _refuse_others(source, path)
    # Meta's video builder falls back to the ambiguity masks when the single mask is unstable.
    config = replace(infer_sam2_config(source, str(path)), multimask_stability=True)
    tracker = build_from_weights(
        lambda: Sam2Tracker(config), source, meta_names, inside=lambda made: made.sam, where=str(path)
    )
    return tracker.eval()


def _refuse_others(source: Mapping[str, Tensor], path: Path) -> None:
    """Refuse checkpoints that are easily mistaken for SAM2's, with a specific message."""
    if any(name.startswith("cmt_adapters.") for name in source):
        raise CheckpointError(f"{path} is an official SAMWISE checkpoint; run 'refervos convert {path} FOLDER' first.")
    if "image_encoder.patch_embed.proj.weight" in source:
        raise CheckpointError(
            f"{path} is a SAM, which takes neither videos nor sentences; use it to train RefSAM, as the weights 'sam' "
            "of a recipe."
        )


def _load_hf_folder(folder: Path) -> Sam2Tracker:
    config = _read_hf_config(folder)
    source = read_tensors(folder)
    tracker = build_from_weights(
        lambda: Sam2Tracker(config),
        source,
        hf_names(source),
        inside=lambda made: made.sam,
        unused=HF_UNUSED,
        where=str(folder),
    )
    return tracker.eval()


def _read_hf_config(folder: Path) -> Sam2Config:
    file = folder / CONFIG
    header = read_header(folder, "give a Hugging Face SAM2 folder")
    kind = header.get("model_type")
    if kind not in ("sam2_video", "sam2"):
        raise CheckpointError(f"{file} has model_type {kind}; give a Hugging Face SAM2 folder (sam2_video).")
    try:
        return config_from_folder(header)
    except ConfigError as error:
        raise CheckpointError(f"{file} does not fit: {error}") from error
