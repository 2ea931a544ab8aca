"""The shape of a SAM: one typed configuration and the three published sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from refervos.errors import ConfigError


@dataclass(frozen=True)
class SamConfig:
    """Hyper-parameters of SAM (Kirillov et al. 2023, arXiv 2304.02643). Defaults: ViT-B.

    Attributes:
        image_size: Side of the square input in pixels, a multiple of ``patch``.
        patch: Side of a patch.
        vit_width: Channels of the image encoder.
        vit_layers: Its blocks.
        vit_heads: Its attention heads.
        vit_global_blocks: Blocks (from 0) that attend globally; the last block is one of them.
        vit_window: Attention window of the others, in tokens.
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
        if self.image_size % self.patch:
            raise ConfigError(f"image_size is {self.image_size}; it must be a multiple of patch {self.patch}.")
        if self.vit_width % self.vit_heads:
            raise ConfigError(f"vit_width is {self.vit_width}; it must be a multiple of vit_heads {self.vit_heads}.")
        unit = math.lcm(8, self.decoder_heads * self.decoder_downsample)  # 8: the upscaled map is an eighth as wide
        if self.hidden % unit:
            raise ConfigError(
                f"hidden is {self.hidden}; it must be a multiple of 8 and of decoder_heads x decoder_downsample, so of "
                f"{unit}."
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


def hf_config(config: SamConfig) -> Any:
    """The transformers configuration that builds these modules.

    Args:
        config: The shape.

    Returns:
        A ``transformers.SamConfig``.
    """
    from transformers import SamConfig as HfSamConfig
    from transformers import SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

    return HfSamConfig(
        vision_config=SamVisionConfig(
            hidden_size=config.vit_width,
            output_channels=config.hidden,
            num_hidden_layers=config.vit_layers,
            num_attention_heads=config.vit_heads,
            image_size=config.image_size,
            patch_size=config.patch,
            window_size=config.vit_window,
            global_attn_indexes=list(config.vit_global_blocks),
            num_pos_feats=config.hidden // 2,
        ).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(
            hidden_size=config.hidden, image_size=config.image_size, patch_size=config.patch
        ).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(
            hidden_size=config.hidden,
            mlp_dim=config.decoder_feedforward,
            num_hidden_layers=config.decoder_layers,
            num_attention_heads=config.decoder_heads,
            attention_downsample_rate=config.decoder_downsample,
        ).to_dict(),
    )
