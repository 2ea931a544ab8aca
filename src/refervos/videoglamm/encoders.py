"""The two visual encoders, their projectors and the pooling of visual tokens.

Shapes: F frames, chunks K of f frames, g = grid, S = image size, D = the language model's width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.videoglamm.config import ClipConfig, InternVideoConfig


class ImageEncoder(nn.Module):
    """CLIP's vision transformer up to its last layer but one, without the class token; it is frozen.

    Args:
        config: Its shape.
    """

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        shape = CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=config.feedforward,
            num_hidden_layers=config.layers - 1,
            num_attention_heads=config.heads,
            image_size=config.image_size,
            patch_size=config.patch,
        )
        model = CLIPVisionModel(shape)
        # Some versions of transformers nest the transformer one level deeper.
        self.clip: nn.Module = getattr(model, "vision_model", model)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode frames one by one.

        Args:
            pixels: Normalised frames (F, 3, S, S).

        Returns:
            Features (F, g*g, width), row by row; no norm after the last block.
        """
        states: Tensor = self.clip(pixel_values=pixels).last_hidden_state  # (F, 1 + g*g, width)
        return states[:, 1:]


class VideoEncoder(nn.Module):
    """InternVideo2 up to its last block but one, without the class token (Wang et al. 2024, arXiv 2403.15377); frozen.

    Its blocks are the vision layers of InternVL, which transformers has.

    Args:
        config: Its shape.
    """

    def __init__(self, config: InternVideoConfig) -> None:
        super().__init__()
        from transformers.models.internvl.configuration_internvl import InternVLVisionConfig
        from transformers.models.internvl.modeling_internvl import InternVLVisionLayer

        shape = InternVLVisionConfig(
            hidden_size=config.width,
            num_attention_heads=config.heads,
            intermediate_size=config.feedforward,
            use_qk_norm=True,
            norm_type="rms_norm",
            attention_bias=False,
            layer_norm_eps=1e-6,
            layer_scale_init_value=1e-5,
            hidden_act="gelu",
        )
        shape._attn_implementation = "sdpa"
        self.patch_embed = nn.Conv2d(3, config.width, kernel_size=config.patch, stride=config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        tokens = 1 + config.frames * config.grid**2
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, config.width))
        self.layers = nn.ModuleList(InternVLVisionLayer(shape) for _ in range(config.layers - 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode chunks of frames independently; attention is joint over the tokens of a chunk.

        Args:
            pixels: Normalised frames (K, f, 3, S, S).

        Returns:
            Features (K, f, g*g, width), row by row; no norm after the last block.
        """
        chunks, frames = pixels.shape[:2]
        patches = self.patch_embed(pixels.flatten(0, 1)).flatten(2).transpose(1, 2)  # (K*f, g*g, width)
        tokens = patches.unflatten(0, (chunks, frames)).flatten(1, 2)  # (K, f*g*g, width)
        tokens = torch.cat([self.cls_token.expand(chunks, -1, -1), tokens], dim=1) + self.pos_embed
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens[:, 1:].unflatten(1, (frames, -1))


def projector(inputs: int, outputs: int) -> nn.Sequential:
    """Build the projector of an encoder's features: two linear layers with GELU between them."""
    return nn.Sequential(nn.Linear(inputs, outputs), nn.GELU(), nn.Linear(outputs, outputs))


def pool(tokens: Tensor, factor: int) -> Tensor:
    """Average-pool the tokens of each frame.

    Args:
        tokens: (F, g*g, D).
        factor: Side of the pooling window; a divisor of g.

    Returns:
        (F, (g/factor)**2, D).
    """
    side = round(tokens.shape[1] ** 0.5)
    grid = tokens.transpose(1, 2).unflatten(2, (side, side))  # (F, D, g, g)
    return F.avg_pool2d(grid, factor).flatten(2).transpose(1, 2)
