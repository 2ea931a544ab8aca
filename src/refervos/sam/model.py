"""SAM as pure tensor functions: encode, embed prompts, decode. Nothing here keeps state between calls.

The modules are those of transformers' ``SamModel``; its own orchestration is not used: it computes image embeddings
without gradients, and its decoder neither takes further tokens nor tells what became of them.

Shapes: N rows, V frames, C = ``hidden``, D = ``vit_width``, g = ``grid``, S = ``image_size``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from refervos.derived import Derived
from refervos.frames import enlarge
from refervos.precision import without_autocast
from refervos.sam.config import SamConfig, hf_config
from refervos.sam.image_encoder import BlockAdapters, run_block
from refervos.sam.mask_decoder import Decoded, decode


@dataclass(frozen=True)
class ImageFeatures:
    """What the image encoder says of V frames.

    Attributes:
        top: Output of the neck (V, C, g, g).
        between: Outputs of the blocks that attend globally, channels last (V, g, g, D), without the last one.
    """

    top: Tensor
    between: tuple[Tensor, ...]


class Sam(nn.Module):
    """SAM's modules behind tensor functions.

    Args:
        config: The shape.
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        from transformers import SamModel

        self.config = config
        self.sam = SamModel(hf_config(config))
        # One Fourier table serves the image's positions and the clicks'. SAM draws it with deviation 1; transformers,
        # which always loads it, with half the encoder's width, under which neighbouring places have nothing in common.
        fourier = self.sam.shared_image_embedding.positional_embedding
        nn.init.normal_(fourier)
        fourier.requires_grad_(False)
        self.sam.prompt_encoder.shared_embedding.positional_embedding = fourier
        self.derived = Derived()

    @property
    def vision_encoder(self) -> nn.Module:
        """ViT and neck."""
        return self.sam.vision_encoder

    @property
    def prompt_encoder(self) -> nn.Module:
        """Clicks, boxes and masks to tokens and maps."""
        return self.sam.prompt_encoder

    @property
    def mask_decoder(self) -> nn.Module:
        """Two-way transformer, upscaling and heads."""
        return self.sam.mask_decoder

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        dtype: torch.dtype = self.sam.prompt_encoder.no_mask_embed.weight.dtype
        return dtype

    def compute_in(self, dtype: torch.dtype) -> Sam:
        """Convert the weights, but not the Fourier table: positions stay exact.

        Args:
            dtype: Type of weights and activations.

        Returns:
            Itself.
        """
        exact = self.sam.shared_image_embedding.positional_embedding
        return self._apply(lambda own: own.to(dtype) if own is not exact and own.is_floating_point() else own)

    def encode(
        self, pixels: Tensor, adapters: Mapping[int, BlockAdapters] | None = None, *, checkpointed: bool = False
    ) -> ImageFeatures:
        """Run the image encoder.

        Args:
            pixels: Placed frames (V, 3, S, S).
            adapters: By position of the block, what changes it.
            checkpointed: Compute the adapted blocks again for the gradients, instead of keeping what is inside them.

        Returns:
            The features.
        """
        encoder = self.sam.vision_encoder
        tokens = encoder.patch_embed(pixels.to(self.dtype)) + encoder.pos_embed  # (V, g, g, D)
        between = []
        learns = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in encoder.parameters())
        for index, block in enumerate(encoder.layers):
            changed = None if adapters is None else adapters.get(index)
            learns = learns or changed is not None  # before that, gradients would only cost time
            with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                if checkpointed and changed is not None and torch.is_grad_enabled():
                    tokens = checkpoint(run_block, block, tokens, changed, use_reentrant=False)
                else:
                    tokens = run_block(block, tokens, changed)
            if index in self.config.vit_global_blocks[:-1]:
                between.append(tokens)
        return ImageFeatures(encoder.neck(tokens), tuple(between))

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Prompt tokens of clicks and box corners.

        Args:
            points: Pixel positions x, y in the placed image (N, P, 2).
            labels: 1 on the object, 0 off it, 2 and 3 the corners of a box, -1 padding; (N, P).

        Returns:
            Tokens (N, P, C).
        """
        encoder = self.sam.prompt_encoder
        size = (self.config.image_size, self.config.image_size)
        with without_autocast(points):
            places = encoder.shared_embedding((points + 0.5).unsqueeze(1), size).squeeze(1).to(self.dtype)  # (N, P, C)
        kinds = torch.cat([embedding.weight for embedding in encoder.point_embed])  # (4, C)
        known = places + kinds[labels.clamp(min=0)]
        return torch.where(labels.unsqueeze(-1) < 0, encoder.not_a_point_embed.weight, known)

    def embed_mask(self, mask_logits: Tensor) -> Tensor:
        """Dense prompt of low-resolution mask logits, (N, 1, 4g, 4g) -> (N, C, g, g)."""
        dense: Tensor = self.sam.prompt_encoder.mask_embed(mask_logits.to(self.dtype))
        return dense

    def no_mask(self) -> Tensor:
        """The dense prompt where there is no mask, (1, C, 1, 1)."""
        return self.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)

    def decode(
        self,
        image: Tensor,
        prompts: Tensor,
        keep: Tensor | None = None,
        *,
        multimask: bool = False,
        shift: Tensor | None = None,
    ) -> Decoded:
        """Turn features with a dense prompt added (N, C, g, g) and tokens (N, P, C) into masks, see ``decode``."""
        return decode(
            self.sam.mask_decoder, image, self._image_positions(), prompts, keep, multimask=multimask, shift=shift
        )

    def _image_positions(self) -> Tensor:
        """Fourier features of the places of the grid (1, C, g, g), exact whatever the weights' type."""
        table = self.sam.shared_image_embedding.positional_embedding

        def compute() -> Tensor:
            with without_autocast(table):
                positions: Tensor = self.sam.get_image_wide_positional_embeddings()
            return positions

        return self.derived.get("image positions", [table], compute)

    def upsample(self, mask_logits: Tensor) -> Tensor:
        """Low-resolution mask logits (N, M, 4g, 4g) to the placed image (N, M, S, S), bilinear."""
        return enlarge(mask_logits, self.config.image_size)
