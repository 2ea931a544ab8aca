"""SAM as pure tensor functions: encode, embed prompts, decode. No function keeps state between calls.

Shapes: N rows, V frames, C = ``hidden``, D = ``vit_width``, g = ``grid``, S = ``image_size``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refervos.ops.derived import Derived
from refervos.placement import enlarge
from refervos.sam.config import SamConfig
from refervos.sam.image_encoder import BlockAdapters, ImageEncoder
from refervos.sam.layers import FourierPositions, PromptEncoder, draw_weights
from refervos.sam.mask_decoder import Decoded, MaskDecoder


@dataclass(frozen=True)
class ImageFeatures:
    """Output of the image encoder for V frames.

    Attributes:
        top: Output of the neck (V, C, g, g).
        between: Outputs of the global-attention blocks except the last, channels last (V, g, g, D).
    """

    top: Tensor
    between: tuple[Tensor, ...]


class SamModules(nn.Module):
    """SAM's modules, with parameter names as in transformers' files; initialised as before training.

    Args:
        config: The model's shape.
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        # Image positions and clicks share one Fourier table.
        self.shared_image_embedding = FourierPositions(config.hidden, parameter=True)
        self.vision_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(
            config.hidden, config.image_size, self.shared_image_embedding, stacked=False
        )
        self.mask_decoder = MaskDecoder(config)
        self.apply(draw_weights)


class Sam(nn.Module):
    """SAM as pure tensor functions.

    Args:
        config: The model's shape.
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.config = config
        self.sam = SamModules(config)
        self.derived = Derived()

    @property
    def vision_encoder(self) -> ImageEncoder:
        """ViT and neck."""
        return self.sam.vision_encoder

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """Encoder of clicks, boxes and masks."""
        return self.sam.prompt_encoder

    @property
    def mask_decoder(self) -> MaskDecoder:
        """Two-way transformer, upscaling and heads."""
        return self.sam.mask_decoder

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.sam.prompt_encoder.no_mask_embed.weight.dtype

    def encode(
        self,
        pixels: Tensor,
        adapters: Mapping[int, BlockAdapters] | None = None,
        *,
        gradient_checkpointing: bool = False,
    ) -> ImageFeatures:
        """Run the image encoder.

        Args:
            pixels: Placed frames (V, 3, S, S).
            adapters: Adapters by index of the block.
            gradient_checkpointing: Recompute the adapted blocks in the backward pass, which saves memory.

        Returns:
            The features.
        """
        encoder = self.sam.vision_encoder
        tokens = encoder.patch_embed(pixels) + encoder.pos_embed  # (V, g, g, D)
        between = []
        learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in encoder.parameters())
        for index, block in enumerate(encoder.layers):
            changed = None if adapters is None else adapters.get(index)
            learns = learns or changed is not None  # before the first adapter, gradients would only cost time
            with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                if gradient_checkpointing and changed is not None and torch.is_grad_enabled():
                    tokens = checkpoint(block, tokens, changed, use_reentrant=False)
                else:
                    tokens = block(tokens, changed)
            if index in self.config.vit_global_blocks[:-1]:
                between.append(tokens)
        return ImageFeatures(encoder.neck(tokens), tuple(between))

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Embed clicks and box corners as prompt tokens.

        Args:
            points: Pixel positions x, y in the square (N, P, 2).
            labels: 1 on the object, 0 off it, 2 and 3 the corners of a box, -1 padding; (N, P).

        Returns:
            Tokens (N, P, C).
        """
        return self.sam.prompt_encoder.embed_points(points, labels)

    def embed_mask(self, mask_logits: Tensor) -> Tensor:
        """Embed low-resolution mask logits as a dense prompt, (N, 1, 4g, 4g) -> (N, C, g, g)."""
        dense: Tensor = self.sam.prompt_encoder.mask_embed(mask_logits.to(self.dtype))
        return dense

    def no_mask(self) -> Tensor:
        """Return the dense prompt for the absence of a mask, (1, C, 1, 1)."""
        return self.sam.prompt_encoder.no_mask()

    def decode(
        self,
        image: Tensor,
        prompts: Tensor,
        keep: Tensor | None = None,
        *,
        multimask: bool = False,
        shift: Tensor | None = None,
    ) -> Decoded:
        """Predict masks from features plus a dense prompt (N, C, g, g) and tokens (N, P, C); see ``MaskDecoder``."""
        positions, side = self.sam.shared_image_embedding, self.config.grid
        places = self.derived.get("positions", [positions.positional_embedding], lambda: positions.grid(side))
        decoded: Decoded = self.sam.mask_decoder(image, places, prompts, keep, multimask=multimask, shift=shift)
        return decoded

    def upsample(self, mask_logits: Tensor) -> Tensor:
        """Upsample low-resolution mask logits (N, M, 4g, 4g) to the square (N, M, S, S), bilinear."""
        return enlarge(mask_logits, self.config.image_size)
