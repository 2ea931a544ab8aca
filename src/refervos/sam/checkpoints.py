"""Loading and saving SAM: Meta's ``.pth`` files, Hugging Face folders and refervos folders."""

from __future__ import annotations

from collections.abc import Mapping
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
    model_folder,
    read_header,
    read_tensors,
    read_weights,
    rename,
    require_shape,
    write_model,
)
from refervos.errors import CheckpointError, ConfigError
from refervos.sam.config import SamConfig, config_from_folder
from refervos.sam.model import Sam
from refervos.typed_config import config_from_mapping

MODEL_TYPE = "refervos-sam"
HF_MODEL_TYPE = "sam"

_TO_META: Rules = (
    *PROMPT_ENCODER_TO_META,
    *MASK_DECODER_TO_META,
    *heads_to_meta(r"output_hypernetworks_mlps\.\d+|iou_prediction_head"),
    (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
    (r"^vision_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
    (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
    (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
    (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
    (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
    (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
    (r"^vision_encoder\.", "image_encoder."),
)


def save_sam(sam: Sam, folder: Path) -> None:
    """Save a SAM to a folder that ``load_sam`` reads.

    Args:
        sam: The weights.
        folder: Created when absent; existing files are replaced.

    Raises:
        CheckpointError: When it cannot be written; no partial model is left.
    """
    with model_folder(folder, overwrite=True) as staged:
        write_model(staged, sam, MODEL_TYPE, sam.config)


def load_sam(path: Path) -> Sam:
    """Load a SAM.

    Args:
        path: Meta's ``sam_vit_{b,l,h}_*.pth``, a Hugging Face folder such as ``facebook/sam-vit-base``, or a folder
            written by ``save_sam``.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: When it is unreadable or does not fit, with the names that do not match.
        ConfigError: When a refervos folder has an invalid configuration.
    """
    if not path.is_dir():
        return _load_meta_file(path)
    advice = "give a SAM: Meta's .pth, a Hugging Face folder, or the result of a SAM stage"
    header = read_header(path, advice)
    kind = header.get("model_type")
    if kind == HF_MODEL_TYPE:
        return _load_hf_folder(path)
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{path / CONFIG} has model_type {kind}; {advice}.")
    config = config_from_mapping(SamConfig, header.get("config", {}), str(path / CONFIG))
    return build_from_weights(lambda: Sam(config), read_tensors(path), lambda name: (name,), where=str(path)).eval()


def meta_name(name: str) -> str:
    """Convert the name of a tensor of transformers' ``SamModel`` to Meta's.

    Args:
        name: A name of the model's state dict, such as ``vision_encoder.layers.0.layer_norm1.weight``.
    """
    return rename(name, _TO_META)


def infer_sam_config(names_to_tensors: Mapping[str, Tensor], where: str) -> SamConfig:
    """Infer the configuration of a SAM from the shapes of its weights.

    The number of heads in the mask decoder cannot be inferred from weights. Only the published decoder is accepted, of
    width 256 with attention of width 128 and 8 heads.

    Args:
        names_to_tensors: A Meta-format state dict.
        where: The checkpoint, for error messages.

    Returns:
        The model's configuration. Sizes not inferred here are checked when the weights are loaded.

    Raises:
        CheckpointError: When it is not a SAM, or its shape cannot be inferred from the tensors.
    """

    def shape(name: str, axes: int) -> tuple[int, ...]:
        return require_shape(names_to_tensors, name, axes, where, "SAM checkpoint")

    def count(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in names_to_tensors if name.startswith(prefix)})

    width, _, _, patch = shape("image_encoder.patch_embed.proj.weight", 4)
    _, grid, _, _ = shape("image_encoder.pos_embed", 4)
    _, head_width = shape("image_encoder.blocks.0.attn.rel_pos_h", 2)
    layers = count("image_encoder.blocks.")
    # A map of n tokens a side has 2n - 1 relative positions, from -(n - 1) to n - 1.
    reach = [(shape(f"image_encoder.blocks.{index}.attn.rel_pos_h", 2)[0] + 1) // 2 for index in range(layers)]
    windows = sorted(set(reach) - {grid})
    if len(windows) != 1:
        raise CheckpointError(
            f"{where} has a map of {grid} tokens a side and attention over {sorted(set(reach))}; its configuration "
            "can be inferred only if some blocks attend over the whole map and all others over one window size."
        )
    hidden = shape("image_encoder.neck.0.weight", 4)[0]
    attention = shape("mask_decoder.transformer.final_attn_token_to_image.q_proj.weight", 2)[0]
    published = SamConfig()
    if (hidden, attention) != (published.hidden, published.hidden // published.decoder_downsample):
        raise CheckpointError(
            f"{where} has a mask decoder of width {hidden} with attention of width {attention}; only widths 256 and "
            "128 are supported, because the number of heads is not in the file."
        )
    try:
        return SamConfig(
            image_size=grid * patch,
            patch=patch,
            vit_width=width,
            vit_layers=layers,
            vit_heads=width // head_width,
            vit_global_blocks=tuple(index for index, tokens in enumerate(reach) if tokens == grid),
            vit_window=windows[0],
            decoder_layers=count("mask_decoder.transformer.layers."),
            decoder_feedforward=shape("mask_decoder.transformer.layers.0.mlp.lin1.weight", 2)[0],
        )
    except ConfigError as error:
        raise CheckpointError(f"{where} does not fit: {error}") from error


def _load_meta_file(path: Path) -> Sam:
    source = read_weights(path)
    config = infer_sam_config(source, str(path))
    return build_from_weights(
        lambda: Sam(config), source, lambda name: (meta_name(name),), inside=lambda made: made.sam, where=str(path)
    ).eval()


def _load_hf_folder(folder: Path) -> Sam:
    config = _read_hf_config(folder)
    source = read_tensors(folder)
    return build_from_weights(
        lambda: Sam(config),
        source,
        hf_names(source),
        inside=lambda made: made.sam,
        unused=HF_UNUSED,
        where=str(folder),
    ).eval()


def _read_hf_config(folder: Path) -> SamConfig:
    """Read the configuration of a Hugging Face folder."""
    file = folder / CONFIG
    try:
        return config_from_folder(read_header(folder, "give a SAM folder"), str(file))
    except ConfigError as error:
        raise CheckpointError(f"{file} does not fit: {error}") from error
