"""transformers' SAM as the reference for ours."""

from __future__ import annotations

from typing import Any

from refervos.sam.config import SamConfig
from refervos.sam.model import Sam


def transformers_own(sam: Sam) -> Any:
    """Make transformers' SAM with the weights of ours."""
    from transformers import SamModel

    model = SamModel(hf_config(sam.config)).to(sam.dtype).eval()
    model.load_state_dict(sam.sam.state_dict())
    return model


def hf_config(config: SamConfig) -> Any:
    """Make the transformers configuration of these modules.

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
