"""The shape of a SAM2 tracker: one typed configuration, the four published sizes, both published versions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from refervos.errors import ConfigError


@dataclass(frozen=True)
class Sam2Config:
    """Hyper-parameters of SAM2 (Ravi et al. 2024, arXiv 2408.00714). Defaults: version 1, base-plus.

    Attributes:
        image_size: Side of the square input in pixels, a multiple of 64.
        hiera_width: Channels of the first Hiera stage; each next stage has twice as many.
        hiera_heads: Attention heads of the first stage, doubled at each next one.
        hiera_blocks: Blocks of the four stages.
        hiera_windows: Attention window of the four stages, in tokens.
        hiera_global_blocks: Positions (over all blocks) that attend globally.
        hiera_background: Side of the coarse position embedding.
        hidden: Width of everything after the backbone (features, prompts, pointers); a multiple of ``memory_width``.
        memory_width: Channels of a memory map; transformers' memory attention supports 64 only.
        memory_layers: Layers of the memory attention.
        memory_feedforward: Width of their feed-forward networks.
        fuser_feedforward: Width inside the memory encoder's fuser blocks.
        decoder_layers: Layers of the mask decoder's two-way transformer.
        decoder_heads: Attention heads in it.
        decoder_feedforward: Width of its feed-forward networks.
        decoder_downsample: Factor by which its cross-attention is narrower than ``hidden``.
        memory_slots: ``num_maskmem``: one slot for conditioning frames and this many minus one past frames.
        pointer_limit: ``max_obj_ptrs_in_encoder``: pointers of frames 1 .. limit-1 back are read.
        object_score: Whether there is an object score head (off in referring-image checkpoints).
        occlusion_embedding: SAM2.1: an embedding is added to memories of frames where the object is absent.
        pointer_time_encoding: SAM2.1: object pointers carry a projected encoding of their age.
        multimask_stability: Meta's video builder replaces an unstable single mask by the best of the three multimask
            outputs when it is given clicks; SAMWISE does not.
    """

    image_size: int = 1024
    hiera_width: int = 112
    hiera_heads: int = 2
    hiera_blocks: tuple[int, ...] = (2, 3, 16, 3)
    hiera_windows: tuple[int, ...] = (8, 4, 14, 7)
    hiera_global_blocks: tuple[int, ...] = (12, 16, 20)
    hiera_background: int = 14
    hidden: int = 256
    memory_width: int = 64
    memory_layers: int = 4
    memory_feedforward: int = 2048
    fuser_feedforward: int = 1024
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_feedforward: int = 2048
    decoder_downsample: int = 2
    memory_slots: int = 7
    pointer_limit: int = 16
    object_score: bool = True
    occlusion_embedding: bool = False
    pointer_time_encoding: bool = False
    multimask_stability: bool = False

    def __post_init__(self) -> None:
        if self.image_size <= 0 or self.image_size % 64:
            raise ConfigError(f"image_size is {self.image_size}; it must be a positive multiple of 64.")
        if len(self.hiera_blocks) != 4 or len(self.hiera_windows) != 4:
            raise ConfigError("hiera_blocks and hiera_windows must have four entries, one for each Hiera stage.")
        if self.memory_width != 64:
            raise ConfigError(f"memory_width is {self.memory_width}; SAM2's memory attention reads 64 channels.")
        if self.hidden % self.memory_width:
            raise ConfigError(f"hidden is {self.hidden}; it must be a multiple of memory_width {self.memory_width}.")

    @property
    def stage_widths(self) -> tuple[int, int, int, int]:
        """Channels of the four Hiera stages."""
        width = self.hiera_width
        return (width, 2 * width, 4 * width, 8 * width)

    @property
    def grid(self) -> int:
        """Side of the top-level feature map (stride 16)."""
        return self.image_size // 16

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits (stride 4)."""
        return self.image_size // 4


SAM2_PRESETS: dict[str, Sam2Config] = {
    "tiny": Sam2Config(
        hiera_width=96,
        hiera_heads=1,
        hiera_blocks=(1, 2, 7, 2),
        hiera_global_blocks=(5, 7, 9),
        hiera_background=7,
    ),
    "small": Sam2Config(
        hiera_width=96,
        hiera_heads=1,
        hiera_blocks=(1, 2, 11, 2),
        hiera_global_blocks=(7, 10, 13),
        hiera_background=7,
    ),
    "base-plus": Sam2Config(),
    "large": Sam2Config(
        hiera_width=144,
        hiera_blocks=(2, 6, 36, 4),
        hiera_windows=(8, 4, 16, 8),
        hiera_global_blocks=(23, 33, 43),
        hiera_background=7,
    ),
}
"""The published sizes, version 1 weights."""


def as_version_2_1(config: Sam2Config) -> Sam2Config:
    """The same size with the additions of SAM2.1 (released September 2024)."""
    return replace(config, occlusion_embedding=True, pointer_time_encoding=True)


def hf_config(config: Sam2Config) -> Any:
    """The transformers configuration that builds this tracker's modules.

    Args:
        config: The tracker's shape.

    Returns:
        A ``transformers.Sam2VideoConfig``.
    """
    from transformers import Sam2VideoConfig
    from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig
    from transformers.models.sam2_video.configuration_sam2_video import (
        Sam2VideoMaskDecoderConfig,
        Sam2VideoPromptEncoderConfig,
    )

    size, hidden, grid = config.image_size, config.hidden, config.grid
    backbone = Sam2HieraDetConfig(
        hidden_size=config.hiera_width,
        num_attention_heads=config.hiera_heads,
        image_size=[size, size],
        blocks_per_stage=list(config.hiera_blocks),
        embed_dim_per_stage=list(config.stage_widths),
        num_attention_heads_per_stage=[config.hiera_heads * 2**stage for stage in range(4)],
        window_size_per_stage=list(config.hiera_windows),
        global_attention_blocks=list(config.hiera_global_blocks),
        window_positional_embedding_background_size=[config.hiera_background, config.hiera_background],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=list(reversed(config.stage_widths)),
        backbone_feature_sizes=[[4 * grid, 4 * grid], [2 * grid, 2 * grid], [grid, grid]],
        fpn_hidden_size=hidden,
    )
    # Config objects, never partial dicts: some transformers releases build a dict into the wrong class.
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=Sam2VideoPromptEncoderConfig(hidden_size=hidden, image_size=size),
        mask_decoder_config=Sam2VideoMaskDecoderConfig(
            hidden_size=hidden,
            mlp_dim=config.decoder_feedforward,
            num_hidden_layers=config.decoder_layers,
            num_attention_heads=config.decoder_heads,
            attention_downsample_rate=config.decoder_downsample,
            iou_head_hidden_dim=hidden,
            dynamic_multimask_via_stability=config.multimask_stability,
        ),
        image_size=size,
        num_maskmem=config.memory_slots,
        max_object_pointers_in_encoder=config.pointer_limit,
        enable_occlusion_spatial_embedding=config.occlusion_embedding,
        enable_temporal_pos_encoding_for_object_pointers=config.pointer_time_encoding,
        memory_attention_hidden_size=hidden,
        memory_attention_num_layers=config.memory_layers,
        memory_attention_feed_forward_hidden_size=config.memory_feedforward,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_encoder_hidden_size=hidden,
        memory_encoder_output_channels=config.memory_width,
        mask_downsampler_embed_dim=hidden,
        memory_fuser_embed_dim=hidden,
        memory_fuser_intermediate_dim=config.fuser_feedforward,
    )


_PUBLISHED_BEHAVIOUR: dict[str, Any] = {
    "multimask_output_in_sam": True,
    "multimask_output_for_tracking": True,
    "multimask_min_pt_num": 0,
    "multimask_max_pt_num": 1,
    "sigmoid_scale_for_mem_enc": 20.0,
    "sigmoid_bias_for_mem_enc": -10.0,
    "memory_attention_num_attention_heads": 1,
    "mask_decoder_config.dynamic_multimask_stability_delta": 0.05,
    "mask_decoder_config.dynamic_multimask_stability_thresh": 0.98,
}
"""Fields of a ``Sam2VideoConfig`` that change what the model does but no shape."""


def config_from_hf(hf: Any) -> Sam2Config:
    """Read our configuration off a ``Sam2VideoConfig`` (the ``config.json`` of a Hugging Face SAM2 folder).

    Args:
        hf: A ``transformers.Sam2VideoConfig``.

    Returns:
        The tracker's shape. Fields that we do not model must have their published values: loading the weights
        strictly checks every shape, and what no shape shows is checked here.

    Raises:
        ConfigError: When the model was made to behave in a way that we do not know.
    """
    for field, published in _PUBLISHED_BEHAVIOUR.items():
        section, _, name = field.rpartition(".")
        value = getattr(getattr(hf, section) if section else hf, name)
        if value != published:
            raise ConfigError(f"{field} is {value}; only the published value {published} is supported.")
    backbone, decoder = hf.vision_config.backbone_config, hf.mask_decoder_config
    background = backbone.window_positional_embedding_background_size
    return Sam2Config(
        image_size=int(hf.image_size if isinstance(hf.image_size, int) else hf.image_size[0]),
        hiera_width=backbone.hidden_size,
        hiera_heads=backbone.num_attention_heads,
        hiera_blocks=tuple(backbone.blocks_per_stage),
        hiera_windows=tuple(backbone.window_size_per_stage),
        hiera_global_blocks=tuple(backbone.global_attention_blocks),
        hiera_background=int(background[0]),
        hidden=hf.vision_config.fpn_hidden_size,
        memory_width=hf.memory_encoder_output_channels,
        memory_layers=hf.memory_attention_num_layers,
        memory_feedforward=hf.memory_attention_feed_forward_hidden_size,
        fuser_feedforward=hf.memory_fuser_intermediate_dim,
        decoder_layers=decoder.num_hidden_layers,
        decoder_heads=decoder.num_attention_heads,
        decoder_feedforward=decoder.mlp_dim,
        decoder_downsample=decoder.attention_downsample_rate,
        memory_slots=hf.num_maskmem,
        pointer_limit=hf.max_object_pointers_in_encoder,
        occlusion_embedding=hf.enable_occlusion_spatial_embedding,
        pointer_time_encoding=hf.enable_temporal_pos_encoding_for_object_pointers,
        multimask_stability=decoder.dynamic_multimask_via_stability,
    )
