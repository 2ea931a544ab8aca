"""The SAM2 tracker as pure tensor functions: encode (stage by stage), condition, decode, remember.

No function keeps state between calls: memory is passed in, and new memory is returned.

Shapes: N tracks (or frames), C = ``hidden``, g = ``grid`` (image_size / 16), S = ``image_size``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refervos.ops.compilation import Stage
from refervos.ops.derived import Derived
from refervos.ops.precision import KeepsPrecision, without_autocast
from refervos.placement import enlarge
from refervos.sam.layers import FourierPositions, Mlp, PromptEncoder, channels_first, channels_last, draw_weights
from refervos.sam2.config import Sam2Config
from refervos.sam2.image_encoder import ImageEncoder
from refervos.sam2.mask_decoder import Decoded, MaskDecoder
from refervos.sam2.memory import MemoryReading, MemoryTensors
from refervos.sam2.memory_attention import MemoryAttention, rotary_tables
from refervos.sam2.memory_encoder import MemoryEncoder
from refervos.sam2.positions import age_encoding, grid_encoding

NO_OBJECT_LOGIT = -1024.0
"""Mask logit of every pixel when the object score says that the object is absent."""


@dataclass(frozen=True)
class FrameFeatures:
    """Features of N frames for the mask decoder.

    Attributes:
        fine: Stride-4 features (N, C/8, 4g, 4g).
        middle: Stride-8 features (N, C/4, 2g, 2g).
        top: Stride-16 features (N, C, g, g), before any memory.
    """

    fine: Tensor
    middle: Tensor
    top: Tensor

    def take(self, indices: Tensor | slice | Sequence[int]) -> FrameFeatures:
        """Select some of the N frames."""
        return FrameFeatures(self.fine[indices], self.middle[indices], self.top[indices])


class Sam2(nn.Module):
    """SAM2's modules, with parameter names as in transformers' files; initialised as before training.

    Args:
        config: The tracker's shape.
    """

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        hidden, width = config.hidden, config.memory_width
        self.no_memory_embedding = nn.Parameter(torch.zeros(1, 1, hidden))
        # Never used, not even in Meta's code: frames without memory skip the memory attention.
        self.no_memory_positional_encoding = nn.Parameter(torch.zeros(1, 1, hidden))
        self.memory_temporal_positional_encoding = nn.Parameter(torch.zeros(config.memory_slots, 1, 1, width))
        self.no_object_pointer = nn.Parameter(torch.zeros(1, hidden)) if config.object_score else None
        self.occlusion_spatial_embedding_parameter = (
            nn.Parameter(torch.zeros(1, width)) if config.occlusion_embedding else None
        )
        # Image positions and clicks share one Fourier table.
        self.shared_image_embedding = FourierPositions(hidden)
        self.vision_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(hidden, config.image_size, self.shared_image_embedding, stacked=True)
        self.mask_decoder = MaskDecoder(config)
        self.memory_attention = MemoryAttention(config)
        self.memory_encoder = MemoryEncoder(config)
        self.mask_downsample = nn.Conv2d(1, 1, kernel_size=4, stride=4)
        self.object_pointer_proj = Mlp(hidden, hidden, hidden)
        self.temporal_positional_encoding_projection_layer = (
            nn.Linear(hidden, width) if config.pointer_time_encoding else None
        )
        self.apply(draw_weights)


class Sam2Tracker(KeepsPrecision):
    """SAM2 as pure tensor functions.

    Args:
        config: The tracker's shape.
    """

    sine_top: Tensor
    sine_memory: Tensor
    rotary: Tensor
    in_float32 = ("sine_top", "sine_memory", "rotary")

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.config = config
        self.sam = Sam2(config)
        # Position maps are computed once, in float32: in bfloat16 they would be off by up to 0.15.
        for name, width in (("sine_top", config.hidden), ("sine_memory", config.memory_width)):
            places = grid_encoding(config.grid, width).t().unflatten(1, (config.grid, config.grid))
            self.register_buffer(name, places.unsqueeze(0), persistent=False)  # (1, width, g, g)
        self.register_buffer("rotary", rotary_tables(config.grid, config.hidden), persistent=False)  # (2, g*g, C/2)
        self.derived = Derived()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.sam.no_memory_embedding.dtype

    @property
    def memory_dtype(self) -> torch.dtype:
        """Type of memory maps."""
        return torch.bfloat16 if self.config.bfloat16_memory else self.dtype

    def stages_to_compile(self) -> tuple[Stage, ...]:
        """List the stages: image stages, memory attention for a full memory, decoder and memory encoder.

        While a memory fills up, the shapes differ at every frame.
        """
        config = self.config
        maps = config.memory_slots - 1
        pointers = (config.pointer_limit - 1) * (config.hidden // config.memory_width)

        def memory_is_full(_: Tensor, remembered: Tensor, codes: Tensor, tokens: Tensor, *others: Any) -> bool:
            return remembered.shape[1] >= maps and tokens.shape[1] >= pointers

        return (
            Stage(self, "embed_patches", launches_only=True),
            Stage(self, "encode_stage"),
            Stage(self, "fine_level", launches_only=True),
            Stage(self, "coarse_levels", launches_only=True),
            Stage(self, "attend_to_memory", recurs=memory_is_full),
            Stage(self, "decode"),
            Stage(self, "pointer", launches_only=True),
            Stage(self, "remember"),
        )

    # Encode.

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Embed patches and add the position embedding.

        Args:
            pixels: Normalised frames (N, 3, S, S).

        Returns:
            Tokens (N, 4g, 4g, hiera_width), channels last.
        """
        return self.sam.vision_encoder.backbone.embed_patches(pixels)

    def encode_stage(self, stage: int, tokens: Tensor) -> Tensor:
        """Run the blocks of one Hiera stage.

        Args:
            stage: 0 to 3.
            tokens: Output of the previous stage (or the patch embedding), channels last.

        Returns:
            Tokens of this stage, channels last; each stage after the first halves the grid and doubles the channels.
        """
        return self.sam.vision_encoder.backbone.run_stage(stage, tokens)

    def encode(self, pixels: Tensor) -> list[Tensor]:
        """Run the whole image encoder.

        Args:
            pixels: Normalised frames (N, 3, S, S).

        Returns:
            The four stage outputs, channels last.
        """
        tokens = self.embed_patches(pixels)
        stages = []
        for stage in range(4):
            tokens = self.encode_stage(stage, tokens)
            stages.append(tokens)
        return stages

    def pyramid(self, stages: Sequence[Tensor]) -> FrameFeatures:
        """Compute the feature pyramid from the four stage outputs.

        Only the two coarsest levels are summed (SAM2's ``fpn_top_down_levels``); the coarsest is then dropped.

        Args:
            stages: Four stage outputs, channels last.

        Returns:
            The frame's features.
        """
        first, second, third, fourth = stages
        return FrameFeatures(self.fine_level(first), *self.coarse_levels(second, third, fourth))

    def fine_level(self, first: Tensor) -> Tensor:
        """Compute the finest level from the first stage: (N, 4g, 4g, width) -> (N, C/8, 4g, 4g)."""
        return channels_first(self.sam.vision_encoder.neck.lateral(0, first, self.sam.mask_decoder.conv_s0))

    def coarse_levels(self, second: Tensor, third: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the other two levels, (N, C/4, 2g, 2g) and (N, C, g, g), from the later stages."""
        neck = self.sam.vision_encoder.neck
        middle = neck.lateral(1, second, self.sam.mask_decoder.conv_s1)
        return channels_first(middle), channels_first(neck.coarsest(third, fourth))

    # Condition.

    def condition(self, top: Tensor, memory: MemoryReading) -> Tensor:
        """Condition the current frame on its tracks' memory (SAM2 paper, "memory attention").

        Args:
            top: Stride-16 features (N, C, g, g).
            memory: Memory of the N tracks, stacked; all with the same layout.

        Returns:
            Conditioned features (N, C, g, g); without any memory, ``top`` plus the "no memory" embedding.
        """
        if memory.empty:
            return self.without_memory(top)
        return self.condition_on(top, memory.as_tensors(self.config.hidden))

    def condition_on(self, top: Tensor, memory: MemoryTensors) -> Tensor:
        """Condition the current frame on memory given as tensors; no size is read, so that export can leave them open.

        Args:
            top: Stride-16 features (N, C, g, g).
            memory: Memory of the N tracks, with at least one map.

        Returns:
            Conditioned features (N, C, g, g).
        """
        codes = self._place_and_time_codes(top.dtype)[memory.slots.to(top.device, non_blocking=True)]
        maps = memory.maps.flatten(3).transpose(2, 3).to(top.dtype)  # (N, M, g*g, 64)
        return self.attend_to_memory(top, maps, codes, *self._pointer_tokens(memory, top))

    def attend_to_memory(self, top: Tensor, maps: Tensor, codes: Tensor, pointers: Tensor, positions: Tensor) -> Tensor:
        """Run the memory attention; every argument that changes between frames is a tensor.

        Args:
            top: Stride-16 features (N, C, g, g).
            maps: Memory maps (N, M, g*g, 64).
            codes: Spatial and temporal encodings of each map's tokens (M, g*g, 64).
            pointers: Pointer tokens (N, P, 64); P may be 0.
            positions: Positions of the pointers (P, 64).

        Returns:
            Conditioned features (N, C, g, g).
        """
        conditioned = self.sam.memory_attention(
            tokens_of((top + 0.1 * self.sine_top).to(top.dtype)),  # (N, g*g, C)
            maps,
            codes,
            pointers,
            positions,
            self.rotary,
        )  # (N, g*g, C)
        return conditioned.transpose(1, 2).unflatten(2, top.shape[2:])

    def _place_and_time_codes(self, dtype: torch.dtype) -> Tensor:
        """Compute the spatial and temporal encoding of a map's tokens for each slot, (slots, g*g, 64)."""
        slots = self.sam.memory_temporal_positional_encoding  # (slots, 1, 1, 64)

        def compute() -> Tensor:
            return (tokens_of(self.sine_memory) + slots[:, 0]).to(dtype)

        return self.derived.get(("codes", dtype), [slots, self.sine_memory], compute)

    def without_memory(self, top: Tensor) -> Tensor:
        """Add the "no memory" embedding, in place of memory attention."""
        return top + self.sam.no_memory_embedding.reshape(1, -1, 1, 1)

    def _pointer_tokens(self, memory: MemoryTensors, top: Tensor) -> tuple[Tensor, Tensor]:
        """Split each pointer into tokens of memory width; in SAM2.1 their positions encode their age.

        Returns:
            Tokens (N, P*split, 64) and their positions (P*split, 64), in the type of ``top``.
        """
        width = self.config.memory_width
        split = self.config.hidden // width
        tokens = memory.pointers.to(top.dtype).unflatten(-1, (split, width)).flatten(1, 2)
        projection = self.sam.temporal_positional_encoding_projection_layer
        if projection is None:
            return tokens, tokens.new_zeros(tokens.shape[1:])
        ages = memory.ages.to(torch.float32).to(tokens.device, non_blocking=True)
        with without_autocast(ages):
            waves = age_encoding(ages / (self.config.pointer_limit - 1), self.config.hidden)  # (P, C)
        positions = projection(waves.to(top.dtype))  # (P, 64)
        return tokens, positions.to(top.dtype).repeat_interleave(split, dim=0)

    # Decode.

    def padding_points(self, count: int) -> Tensor:
        """Return the two "not a point" tokens that SAM2 uses without clicks, (count, 2, C)."""
        return self.sam.prompt_encoder.padding(2).expand(count, -1, -1)

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Embed clicks and box corners as prompt tokens.

        Args:
            points: Pixel positions x, y in the square (N, P, 2).
            labels: 1 on the object, 0 off it, 2 and 3 the corners of a box, -1 padding; (N, P).

        Returns:
            Tokens (N, P + 1, C), the last one padding.
        """
        encoder = self.sam.prompt_encoder
        tokens = encoder.embed_points(points, labels)
        return torch.cat([tokens, encoder.padding(1).expand(len(tokens), -1, -1)], dim=1)

    def embed_mask(self, mask: Tensor) -> Tensor:
        """Embed a mask in [0, 1] as a dense prompt, (N, 1, S, S) -> (N, C, g, g)."""
        dense: Tensor = self.sam.prompt_encoder.mask_embed(self.sam.mask_downsample(mask.to(self.dtype)))
        return dense

    def decode(
        self,
        conditioned: Tensor,
        features: FrameFeatures,
        sparse: Tensor,
        *,
        dense: Tensor | None = None,
        multimask: bool = False,
        stability: bool | None = None,
        extra: tuple[Tensor, Tensor] | None = None,
    ) -> Decoded:
        """Predict masks from conditioned features and prompt tokens.

        Args:
            conditioned: Features with memory (N, C, g, g).
            features: The frame's features; only the two finer levels are used.
            sparse: Prompt tokens (N, P, C), for instance two padding points and a text token.
            dense: Dense prompt (N, C, g, g), default SAM2's "no mask" embedding.
            multimask: Return the three ambiguity masks instead of the single one.
            stability: Replace an unstable single mask by the best ambiguity mask; default as configured, and never in
                training mode.
            extra: Features (K, C, g, g) and prompt tokens (K, P, C) of more rows, for which only ``early_token`` is
                computed, in the same pass.

        Returns:
            The masks and tokens.
        """
        decoded: Decoded = self.sam.mask_decoder(
            self._with_dense_prompt(conditioned, dense),
            self._image_positions(),
            sparse,
            channels_last(features.middle),
            channels_last(features.fine),
            multimask=multimask,
            stability=stability,
            extra=None if extra is None else (self._with_dense_prompt(extra[0], None), extra[1]),
        )
        return decoded

    def early_token(self, conditioned: Tensor, sparse: Tensor) -> Tensor:
        """Compute mask token 0 after the decoder's first layer, without running the rest of the decoder.

        Args:
            conditioned: Features (N, C, g, g).
            sparse: Prompt tokens (N, P, C).

        Returns:
            Tokens (N, C).
        """
        image = self._with_dense_prompt(conditioned, None)
        return self.sam.mask_decoder.early_token(image, self._image_positions(), sparse)

    def _with_dense_prompt(self, conditioned: Tensor, dense: Tensor | None) -> Tensor:
        """Add a dense prompt to features and flatten them to tokens (N, g*g, C)."""
        return tokens_of(conditioned + (self.sam.prompt_encoder.no_mask() if dense is None else dense))

    def _image_positions(self) -> Tensor:
        """Compute Fourier features of the grid cells (g*g, C), in float32 whatever the weights' type."""
        positions, side = self.sam.shared_image_embedding, self.config.grid
        return self.derived.get("positions", [positions.positional_embedding], lambda: positions.grid(side))

    def pointer(self, token: Tensor, score: Tensor | None) -> Tensor:
        """Compute object pointers from mask tokens; the learned "no object" pointer where the score is not positive.

        Args:
            token: Output mask token (N, C).
            score: Object score logits (N,), or None.

        Returns:
            Pointers (N, C).
        """
        pointer: Tensor = self.sam.object_pointer_proj(token)
        if score is None or self.sam.no_object_pointer is None:
            return pointer
        return torch.where((score > 0).unsqueeze(1), pointer, self.sam.no_object_pointer)

    # Remember.

    def remember(self, top: Tensor, mask_logits: Tensor, score: Tensor | None, *, binary: bool = False) -> Tensor:
        """Encode a frame and its mask into a memory map (SAM2 paper, "memory encoder").

        Args:
            top: The frame's stride-16 features without memory (N, C, g, g).
            mask_logits: Mask logits at full size (N, 1, S, S).
            score: Object score logits (N,); used by SAM2.1 only.
            binary: Threshold the mask first, as SAM2 does for frames prompted by the user.

        Returns:
            Memory maps (N, 64, g, g), in bfloat16 if configured so.
        """
        mask = (mask_logits > 0).to(top.dtype) if binary else torch.sigmoid(mask_logits)
        scaled = (mask * 20.0 - 10.0).to(top.dtype)
        maps: Tensor = self.sam.memory_encoder(channels_last(top), channels_last(scaled))  # (N, g, g, 64)
        occlusion = self.sam.occlusion_spatial_embedding_parameter
        if occlusion is not None and score is not None:
            maps = maps + (score <= 0).to(maps.dtype).reshape(-1, 1, 1, 1) * occlusion
        return channels_first(maps.to(self.memory_dtype))

    def upsample(self, mask_logits: Tensor) -> Tensor:
        """Upsample low-resolution mask logits (N, M, 4g, 4g) to the square (N, M, S, S), bilinear."""
        return enlarge(mask_logits, self.config.image_size)


def tokens_of(features: Tensor) -> Tensor:
    """Flatten a feature map to tokens: (N, C, g, g) -> (N, g*g, C), a view."""
    return features.flatten(2).transpose(1, 2)


def gate(mask_logits: Tensor, score: Tensor | None) -> Tensor:
    """Replace mask logits by ``NO_OBJECT_LOGIT`` where the object score is not positive.

    Args:
        mask_logits: (N, M, h, w).
        score: Object score logits (N,), or None to gate nothing.

    Returns:
        Gated logits, same shape.
    """
    if score is None:
        return mask_logits
    return torch.where((score > 0).reshape(-1, 1, 1, 1), mask_logits, NO_OBJECT_LOGIT)
