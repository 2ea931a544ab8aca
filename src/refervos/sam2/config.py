"""Configuration of a SAM2 tracker: the four published sizes in both published versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from refervos.errors import ConfigError
from refervos.typed_config import LAYERS, WIDTH, check_divides, check_range, config_from_mapping, nested_value

LARGEST_IMAGE = 4096
"""Largest input side in pixels. Tables computed for every position are not in the weights, which cannot limit it."""


@dataclass(frozen=True)
class Sam2Config:
    """Hyper-parameters of SAM2 (Ravi et al. 2024, arXiv 2408.00714). Defaults: version 1, base-plus.

    Attributes:
        image_size: Side of the square input in pixels, a multiple of 64.
        hiera_width: Channels of the first Hiera stage; each next stage has twice as many.
        hiera_heads: Attention heads of the first stage, doubled at each next one.
        hiera_blocks: Blocks of the four stages.
        hiera_windows: Attention window of the four stages, in tokens.
        hiera_global_blocks: Indices (over all blocks) of the blocks that attend globally.
        hiera_background: Side of the coarse position embedding, in cells.
        hidden: Width of everything after the backbone (features, prompts, pointers); a multiple of ``memory_width``.
        memory_width: Channels of a memory map, 64.
        memory_layers: Layers of the memory attention.
        memory_feedforward: Width of their feed-forward networks.
        fuser_feedforward: Width inside the memory encoder's fuser blocks.
        decoder_layers: Layers of the mask decoder's two-way transformer.
        decoder_heads: Attention heads in it.
        decoder_feedforward: Width of its feed-forward networks.
        decoder_iou_feedforward: Width of the head that predicts the masks' quality; None for ``hidden``, as published.
        decoder_downsample: Factor by which its cross-attention is narrower than ``hidden``.
        memory_slots: ``num_maskmem``: one slot for conditioning frames and this many minus one past frames.
        pointer_limit: ``max_obj_ptrs_in_encoder``: pointers of frames 1 .. limit-1 back are read.
        object_score: Whether the decoder has an object score head (off in referring-image checkpoints).
        occlusion_embedding: SAM2.1: add an embedding to the memories of frames where the object is absent.
        pointer_time_encoding: SAM2.1: object pointers carry a projected encoding of their age.
        multimask_stability: Replace an unstable single mask by the best of the three multimask outputs, as Meta's video
            builder does for clicks; SAMWISE does not.
        bfloat16_memory: Round memory maps to bfloat16 whatever the dtype of the model, as Meta's video predictor does.
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
    decoder_iou_feedforward: int | None = None
    decoder_downsample: int = 2
    memory_slots: int = 7
    pointer_limit: int = 16
    object_score: bool = True
    occlusion_embedding: bool = False
    pointer_time_encoding: bool = False
    multimask_stability: bool = False
    bfloat16_memory: bool = False

    def __post_init__(self) -> None:
        if self.image_size <= 0 or self.image_size % 64:
            raise ConfigError(f"image_size is {self.image_size}; it must be a positive multiple of 64.")
        if len(self.hiera_blocks) != 4 or len(self.hiera_windows) != 4:
            raise ConfigError("hiera_blocks and hiera_windows must have four entries, one for each Hiera stage.")
        check_range(
            self,
            image_size=(64, LARGEST_IMAGE),
            hiera_width=WIDTH,
            hiera_heads=WIDTH,
            hiera_blocks=LAYERS,
            hiera_windows=(1, LARGEST_IMAGE),
            hiera_background=(1, LARGEST_IMAGE),
            hidden=WIDTH,
            memory_layers=LAYERS,
            memory_feedforward=WIDTH,
            fuser_feedforward=WIDTH,
            decoder_layers=LAYERS,
            decoder_heads=WIDTH,
            decoder_feedforward=WIDTH,
            decoder_iou_feedforward=WIDTH,
            decoder_downsample=WIDTH,
            memory_slots=(2, 1000),
            pointer_limit=(2, 1000),
        )
        check_range(self, hiera_global_blocks=(0, sum(self.hiera_blocks) - 1))
        if any(side % 2 for side in self.hiera_windows[:3]) or self.mask_size % self.hiera_windows[0]:
            raise ConfigError(
                f"hiera_windows is {self.hiera_windows}; the first three must be even, because they are halved, "
                f"and the first must divide the grid side of {self.mask_size} patches."
            )
        check_divides(self, "hiera_width", "hiera_heads")
        if self.memory_width != 64:
            raise ConfigError(f"memory_width is {self.memory_width}; SAM2's memory attention reads 64 channels.")
        if self.hidden % self.memory_width:
            raise ConfigError(f"hidden is {self.hidden}; it must be a multiple of memory_width {self.memory_width}.")
        check_divides(self, "hidden", "decoder_heads", self.decoder_downsample)

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
    """Add the changes of SAM2.1 (released September 2024) to a configuration."""
    return replace(config, occlusion_embedding=True, pointer_time_encoding=True)


FIELDS_IN_FOLDERS: dict[str, tuple[str, Any]] = {
    "image_size": ("image_size", 1024),
    "hiera_width": ("vision_config.backbone_config.hidden_size", 96),
    "hiera_heads": ("vision_config.backbone_config.num_attention_heads", 1),
    "hiera_blocks": ("vision_config.backbone_config.blocks_per_stage", (1, 2, 7, 2)),
    "hiera_windows": ("vision_config.backbone_config.window_size_per_stage", (8, 4, 14, 7)),
    "hiera_global_blocks": ("vision_config.backbone_config.global_attention_blocks", (5, 7, 9)),
    "hiera_background": ("vision_config.backbone_config.window_positional_embedding_background_size", (7, 7)),
    "hidden": ("vision_config.fpn_hidden_size", 256),
    "memory_width": ("memory_encoder_output_channels", 64),
    "memory_layers": ("memory_attention_num_layers", 4),
    "memory_feedforward": ("memory_attention_feed_forward_hidden_size", 2048),
    "fuser_feedforward": ("memory_fuser_intermediate_dim", 1024),
    "decoder_layers": ("mask_decoder_config.num_hidden_layers", 2),
    "decoder_heads": ("mask_decoder_config.num_attention_heads", 8),
    "decoder_feedforward": ("mask_decoder_config.mlp_dim", 2048),
    "decoder_downsample": ("mask_decoder_config.attention_downsample_rate", 2),
    "memory_slots": ("num_maskmem", 7),
    "pointer_limit": ("max_object_pointers_in_encoder", 16),
    "occlusion_embedding": ("enable_occlusion_spatial_embedding", True),
    "pointer_time_encoding": ("enable_temporal_pos_encoding_for_object_pointers", True),
    "multimask_stability": ("mask_decoder_config.dynamic_multimask_via_stability", True),
}
"""For each of our fields, its name in the ``config.json`` of a Hugging Face folder and its value where the file omits
it: transformers' default, which is SAM2.1 tiny's."""

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
"""Fields of a ``Sam2VideoConfig`` that change the model's behaviour but no shape."""


def config_from_folder(header: Mapping[str, Any]) -> Sam2Config:
    """Convert the ``config.json`` of a Hugging Face SAM2 folder to our configuration.

    Args:
        header: Contents of the file.

    Returns:
        The tracker's configuration. Settings without a field here must have their published values: strict loading of
        the weights checks every shape, and this function checks the settings that no shape reveals.

    Raises:
        ConfigError: When a setting has an unsupported value, or a value has the wrong type.
    """
    for name, published in _PUBLISHED_BEHAVIOUR.items():
        value = nested_value(header, name, published)
        if value != published:
            raise ConfigError(f"{name} is {value}; only the published value {published} is supported.")
    values = {ours: nested_value(header, theirs, default) for ours, (theirs, default) in FIELDS_IN_FOLDERS.items()}
    for name in ("image_size", "hiera_background"):  # these may be given as height and width
        if isinstance(values[name], Sequence) and not isinstance(values[name], str):
            values[name] = values[name][0]
    return config_from_mapping(Sam2Config, values, "config.json")
