"""Configuration of SAM and the three published sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from refervos.errors import ConfigError
from refervos.typed_config import LAYERS, WIDTH, check_range, config_from_mapping, nested_value

LARGEST_IMAGE = 4096
"""Largest input side in pixels."""


@dataclass(frozen=True)
class SamConfig:
    """Hyper-parameters of SAM (Kirillov et al. 2023, arXiv 2304.02643). Defaults: ViT-B.

    Attributes:
        image_size: Side of the square input in pixels, a multiple of ``patch``.
        patch: Side of a patch.
        vit_width: Channels of the image encoder.
        vit_layers: Blocks of the image encoder.
        vit_heads: Attention heads of the image encoder.
        vit_global_blocks: Blocks (from 0) that attend globally; the last block is one of them.
        vit_window: Attention window of the other blocks, in tokens.
        hidden: Width of everything after the image encoder.
        decoder_layers: Layers of the mask decoder's two-way transformer.
        decoder_heads: Attention heads in it.
        decoder_feedforward: Width of its feed-forward networks.
        decoder_downsample: Factor by which its cross-attention is narrower than ``hidden``.
    """

    image_size: int = 1024
    patch: int = 16
    vit_width: int = 768
    vit_layers: int = 12
    vit_heads: int = 12
    vit_global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    vit_window: int = 14
    hidden: int = 256
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_feedforward: int = 2048
    decoder_downsample: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), int) and value < 1:
                raise ConfigError(f"{field.name} is {value}; a SAM needs at least 1.")
        sizes = dict.fromkeys(("image_size", "patch", "vit_window"), (1, LARGEST_IMAGE))
        layers = dict.fromkeys(("vit_layers", "decoder_layers"), LAYERS)
        others = {field.name for field in fields(self)} - {*sizes, *layers, "vit_global_blocks"}
        check_range(self, **sizes, **layers, **dict.fromkeys(sorted(others), WIDTH))
        if self.image_size % self.patch:
            raise ConfigError(f"image_size is {self.image_size}; it must be a multiple of patch {self.patch}.")
        if self.vit_width % self.vit_heads:
            raise ConfigError(f"vit_width is {self.vit_width}; it must be a multiple of vit_heads {self.vit_heads}.")
        unit = math.lcm(
            8, self.decoder_heads * self.decoder_downsample
        )  # 8: the upscaled map has an eighth of the channels
        if self.hidden % unit:
            raise ConfigError(
                f"hidden is {self.hidden}; it must be a multiple of 8 and of decoder_heads x decoder_downsample, "
                f"that is of {unit}."
            )
        ends = self.vit_global_blocks
        if not ends or list(ends) != sorted(set(ends)) or ends[0] < 0 or ends[-1] != self.vit_layers - 1:
            raise ConfigError(
                f"vit_global_blocks is {ends}; it must ascend and end with the last block, {self.vit_layers - 1}."
            )

    @property
    def grid(self) -> int:
        """Side of the feature map."""
        return self.image_size // self.patch

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits."""
        return 4 * self.grid


SAM_PRESETS: dict[str, SamConfig] = {
    "vit-b": SamConfig(),
    "vit-l": SamConfig(vit_width=1024, vit_layers=24, vit_heads=16, vit_global_blocks=(5, 11, 17, 23)),
    "vit-h": SamConfig(vit_width=1280, vit_layers=32, vit_heads=16, vit_global_blocks=(7, 15, 23, 31)),
}
"""The published sizes."""


FIELDS_IN_FOLDERS: dict[str, str] = {
    "image_size": "vision_config.image_size",
    "patch": "vision_config.patch_size",
    "vit_width": "vision_config.hidden_size",
    "vit_layers": "vision_config.num_hidden_layers",
    "vit_heads": "vision_config.num_attention_heads",
    "vit_global_blocks": "vision_config.global_attn_indexes",
    "vit_window": "vision_config.window_size",
    "hidden": "vision_config.output_channels",
    "decoder_layers": "mask_decoder_config.num_hidden_layers",
    "decoder_heads": "mask_decoder_config.num_attention_heads",
    "decoder_feedforward": "mask_decoder_config.mlp_dim",
    "decoder_downsample": "mask_decoder_config.attention_downsample_rate",
}
"""For each of our fields, its name in the ``config.json`` of a Hugging Face folder. Omitted fields have the values of
ViT-B, our defaults."""


def config_from_folder(header: Mapping[str, Any], where: str) -> SamConfig:
    """Convert the ``config.json`` of a Hugging Face SAM folder to our configuration.

    Args:
        header: Contents of the file.
        where: The file, for error messages.

    Returns:
        The configuration.

    Raises:
        ConfigError: When a value has the wrong type, or a setting has an unsupported value.
    """
    found = {ours: nested_value(header, theirs, None) for ours, theirs in FIELDS_IN_FOLDERS.items()}
    config = config_from_mapping(SamConfig, {n: v for n, v in found.items() if v is not None}, where)
    for name, expected in _behaviour(config).items():
        value = nested_value(header, name, expected)
        if value != expected:
            raise ConfigError(f"{name} is {value}; only {expected} is supported.")
    return config


def _behaviour(config: SamConfig) -> dict[str, Any]:
    """Return the required values of other fields of ``config.json``, if present, for a model of this shape."""
    vision, prompts, decoder = "vision_config", "prompt_encoder_config", "mask_decoder_config"
    return {
        f"{vision}.num_channels": 3,
        f"{vision}.hidden_act": "gelu",
        f"{vision}.layer_norm_eps": 1e-6,
        f"{vision}.qkv_bias": True,
        f"{vision}.use_abs_pos": True,
        f"{vision}.use_rel_pos": True,
        f"{vision}.num_pos_feats": config.hidden // 2,
        f"{vision}.mlp_dim": 4 * config.vit_width,
        f"{prompts}.hidden_size": config.hidden,
        f"{prompts}.image_size": config.image_size,
        f"{prompts}.patch_size": config.patch,
        f"{prompts}.mask_input_channels": 16,
        f"{prompts}.num_point_embeddings": 4,
        f"{prompts}.hidden_act": "gelu",
        f"{prompts}.layer_norm_eps": 1e-6,
        f"{prompts}.image_embedding_size": config.grid,
        f"{decoder}.hidden_size": config.hidden,
        f"{decoder}.hidden_act": "relu",
        f"{decoder}.num_multimask_outputs": 3,
        f"{decoder}.iou_head_depth": 3,
        f"{decoder}.iou_head_hidden_dim": 256,
        f"{decoder}.layer_norm_eps": 1e-6,
    }
