"""transformers' own SAM2 video tracker, unchanged: the baseline of speed comparisons."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from refervos.errors import MissingDependencyError
from refervos.placement import as_rgb, stretch
from refervos.sam2.config import Sam2Config


class PlainSam2:
    """Tracker of one object from a click on the first frame, frame by frame, with random weights.

    Only the resizing of frames and masks, for which transformers' processor needs torchvision, is done by this package.
    Like transformers' streaming session, it keeps every frame and every mask.

    Args:
        config: Shape of the tracker.
        dtype: Type of weights and frames.
        device: Device of the tracker.

    Raises:
        MissingDependencyError: When transformers is not installed.
    """

    def __init__(
        self, config: Sam2Config, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)
        self.model = _transformers().Sam2VideoModel(hf_config(config)).to(self.device, dtype).eval()
        self._session: Any = None

    @property
    def image_size(self) -> int:
        """Side of the tracker's square image."""
        return self.config.image_size

    @torch.inference_mode()
    def step(self, frame: Any) -> np.ndarray:
        """Track the object in the next frame; the first frame gets a click at its centre.

        Args:
            frame: uint8 RGB (H, W, 3) or gray (H, W), array or tensor; all of one size.

        Returns:
            bool (H, W).
        """
        image = as_rgb(frame).to(self.device)
        height, width = image.shape[1:]
        placement = stretch((height, width), self.image_size)
        if self._session is None:
            self._session = self._open_session(height, width)
        output = self.model(self._session, frame=placement.place(image))
        return (placement.restore(output.pred_masks[:, 0])[0] > 0).cpu().numpy()

    def _open_session(self, height: int, width: int) -> Any:
        """Open a session with a click at the centre of the first frame."""
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        session = Sam2VideoInferenceSession(
            None,
            height,
            width,
            inference_device=self.device,
            inference_state_device=self.device,
            video_storage_device=self.device,
            dtype=self.dtype,
        )
        middle = self.image_size / 2
        click = {
            "point_coords": torch.tensor([[[[middle, middle]]]], dtype=self.dtype),  # (1, 1, 1, 2)
            "point_labels": torch.ones(1, 1, 1, dtype=torch.int32),
        }
        session.add_point_inputs(session.obj_id_to_idx(1), 0, click)
        session.obj_with_new_inputs = [1]
        return session


def hf_config(config: Sam2Config) -> Any:
    """Convert a tracker's shape to the configuration of transformers' own SAM2.

    Args:
        config: The tracker's shape.

    Returns:
        A ``transformers.Sam2VideoConfig``.

    Raises:
        MissingDependencyError: When transformers is not installed.
    """
    library = _transformers()
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
    return library.Sam2VideoConfig(
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


def _transformers() -> Any:
    """Import transformers, which only the benchmark needs.

    Raises:
        MissingDependencyError: When it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "the comparison with transformers' SAM2 needs transformers: pip install 'refervos[transformers]'."
        ) from error
    return transformers
