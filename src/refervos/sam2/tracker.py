"""The frozen SAM2 tracker as pure tensor functions: encode (stage by stage), condition, decode, remember.

The modules are those of transformers' ``Sam2VideoModel``; its own orchestration (sessions, conditioning frames, one
object at a time, bfloat16 memory, no gradients) is not used. Nothing here keeps state between calls.

Shapes: N tracks (or frames), C = ``hidden``, g = ``grid`` (image_size / 16), S = ``image_size``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from refervos.compilation import Stage
from refervos.derived import Derived
from refervos.frames import enlarge
from refervos.linear import product
from refervos.precision import without_autocast
from refervos.sam2.config import Sam2Config, hf_config
from refervos.sam2.hiera import embed_patches, run_stage
from refervos.sam2.memory import MemoryReading
from refervos.sam2.memory_attention import look_back, rotary_tables

NO_OBJECT_LOGIT = -1024.0
"""Mask logit of every pixel where the object score says that the object is absent."""


@dataclass(frozen=True)
class FrameFeatures:
    """What the mask decoder needs of a frame.

    Attributes:
        fine: Stride-4 features (N, C/8, 4g, 4g).
        middle: Stride-8 features (N, C/4, 2g, 2g).
        top: Stride-16 features (N, C, g, g), before any memory.
    """

    fine: Tensor
    middle: Tensor
    top: Tensor

    def take(self, indices: Tensor | slice | Sequence[int]) -> FrameFeatures:
        """The same for some of the N."""
        return FrameFeatures(self.fine[indices], self.middle[indices], self.top[indices])


@dataclass(frozen=True)
class Decoded:
    """What the mask decoder says, for M candidate masks (one, or three with ``multimask``).

    Attributes:
        mask_logits: (N, M, 4g, 4g), not gated by the object score, in float32 at least.
        ious: Predicted quality of each candidate, (N, M).
        tokens: Output mask tokens (N, M, C).
        early_tokens: The same tokens as they leave the first layer of the two-way transformer (N, M, C).
        score: Object score logit (N,), or None when the model has no object score head.
    """

    mask_logits: Tensor
    ious: Tensor
    tokens: Tensor
    early_tokens: Tensor
    score: Tensor | None


class Sam2Tracker(nn.Module):
    """SAM2's modules behind five tensor functions.

    Args:
        config: The tracker's shape.
    """

    sine_top: Tensor
    sine_memory: Tensor
    rotary: Tensor

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        from transformers import Sam2VideoModel

        self.config = config
        self.sam = Sam2VideoModel(hf_config(config))
        if not config.object_score:
            # Referring-image checkpoints are trained without these; absent, they can neither be used nor missed.
            self.sam.mask_decoder.obj_score_token = None
            self.sam.mask_decoder.pred_obj_score_head = None
            self.sam.no_object_pointer = None
        # Both buffers describe the same Fourier features; with random weights transformers draws them apart, and then
        # clicks cannot be matched to places.
        fourier = self.sam.shared_image_embedding.positional_embedding
        self.sam.prompt_encoder.shared_embedding.positional_embedding = fourier
        # Position maps are computed once, in float32: in bfloat16 they would be wrong by up to 0.15.
        top = (1, config.hidden, config.grid, config.grid)
        memory = (1, config.memory_width, config.grid, config.grid)
        cpu, exact = torch.device("cpu"), torch.float32
        sine_top = self.sam.vision_encoder.neck.position_encoding(top, cpu, exact)  # (1, C, g, g)
        sine_memory = self.sam.memory_encoder.position_encoding(memory, cpu, exact)  # (1, 64, g, g)
        self.register_buffer("sine_top", sine_top.clone(), persistent=False)
        self.register_buffer("sine_memory", sine_memory.clone(), persistent=False)
        self.register_buffer("rotary", rotary_tables(self.sam.memory_attention), persistent=False)  # (2, g*g, C/2)
        self.derived = Derived()

    def compute_in(self, dtype: torch.dtype) -> Sam2Tracker:
        """Convert the weights, but not what positions are computed from: those stay exact.

        ``to(torch.bfloat16)`` rounds positions too, which moves rotations by up to 0.07 and Fourier features by 0.15.

        Args:
            dtype: Type of weights and activations.

        Returns:
            Itself.
        """
        sam = self.sam
        backbone, rotation = sam.vision_encoder.backbone, sam.memory_attention.rotary_emb
        exact = {
            id(table)
            for table in (
                self.sine_top,
                self.sine_memory,
                self.rotary,
                rotation.inv_freq,
                rotation.original_inv_freq,
                sam.shared_image_embedding.positional_embedding,
                sam.prompt_encoder.shared_embedding.positional_embedding,
                backbone.pos_embed,
                backbone.pos_embed_window,
            )
        }
        return self._apply(lambda own: own if id(own) in exact or not own.is_floating_point() else own.to(dtype))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        dtype: torch.dtype = self.sam.no_memory_embedding.dtype
        return dtype

    def stages_to_compile(self) -> tuple[Stage, ...]:
        """Image stages, memory attention for a full memory, decoder and memory encoder.

        While a memory fills, every frame has a shape of its own.
        """
        config = self.config
        maps = config.memory_slots - 1
        pointers = (config.pointer_limit - 1) * (config.hidden // config.memory_width)

        def memory_is_full(_: Tensor, remembered: Sequence[Tensor], codes: Any, tokens: Tensor, *others: Any) -> bool:
            return len(remembered) >= maps and tokens.shape[1] >= pointers

        return (
            Stage(self, "encode_stage"),
            Stage(self, "attend_to_memory", recurs=memory_is_full),
            Stage(self, "decode"),
            Stage(self, "remember"),
        )

    # Encode.

    def embed_patches(self, pixels: Tensor) -> Tensor:
        """Patch embedding with its position embedding.

        Args:
            pixels: Normalised frames (N, 3, S, S).

        Returns:
            Tokens (N, 4g, 4g, hiera_width), channels last.
        """
        return embed_patches(self.sam.vision_encoder.backbone, pixels, self.derived)

    def encode_stage(self, stage: int, tokens: Tensor) -> Tensor:
        """Run the blocks of one Hiera stage.

        Args:
            stage: 0 to 3.
            tokens: Output of the stage before (or the patch embedding), channels last.

        Returns:
            Tokens of this stage, channels last; each stage after the first halves the grid and doubles the channels.
        """
        backbone = self.sam.vision_encoder.backbone
        start = 0 if stage == 0 else backbone.stage_ends[stage - 1] + 1
        return run_stage(backbone.blocks[start : backbone.stage_ends[stage] + 1], tokens, self.derived)

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
        """The feature pyramid over the four stage outputs, as the decoder wants it.

        Only the two lowest resolutions are summed (SAM2's ``fpn_top_down_levels``); the lowest is then dropped.

        Args:
            stages: Four stage outputs, channels last.

        Returns:
            The frame's features.
        """
        first, second, third, fourth = stages
        return FrameFeatures(self.fine_level(first), *self.coarse_levels(second, third, fourth))

    def fine_level(self, first: Tensor) -> Tensor:
        """The finest level of the pyramid, from the first stage alone: (N, 4g, 4g, width) -> (N, C/8, 4g, 4g)."""
        lateral, decoder = self.sam.vision_encoder.neck.convs, self.sam.mask_decoder
        return self._pointwise(first, lateral[3], decoder.conv_s0).permute(0, 3, 1, 2)

    def coarse_levels(self, second: Tensor, third: Tensor, fourth: Tensor) -> tuple[Tensor, Tensor]:
        """The other two levels, (N, C/4, 2g, 2g) and (N, C, g, g), from the stages after the first."""
        lateral, decoder = self.sam.vision_encoder.neck.convs, self.sam.mask_decoder
        coarse = self._pointwise(fourth, lateral[0])[:, :, None, :, None]  # (N, g/2, 1, g/2, 1, C)
        top = self._pointwise(third, lateral[1])  # (N, g, g, C)
        sums = top.reshape(*coarse.shape[:2], 2, coarse.shape[3], 2, -1) + coarse  # (N, g/2, 2, g/2, 2, C)
        middle = self._pointwise(second, lateral[2], decoder.conv_s1)  # (N, 2g, 2g, C/4)
        return middle.permute(0, 3, 1, 2), sums.reshape(top.shape).permute(0, 3, 1, 2)

    def _pointwise(self, image: Tensor, *convolutions: Any) -> Tensor:
        """1 x 1 convolutions, multiplied into one before they meet the image: (N, H, W, C) -> (N, H, W, D)."""

        def multiply() -> tuple[Tensor, Tensor]:
            weight, bias = convolutions[0].weight.flatten(1), convolutions[0].bias
            for each in convolutions[1:]:
                outer = each.weight.flatten(1)
                weight, bias = outer @ weight, outer @ bias + each.bias
            return weight, bias

        weights = [tensor for each in convolutions for tensor in (each.weight, each.bias)]
        return product(image, *self.derived.get(("pointwise", *map(id, convolutions)), weights, multiply))

    # Condition.

    def condition(self, top: Tensor, memory: MemoryReading) -> Tensor:
        """Let the current frame look at its tracks' memory (SAM2 paper, "memory attention").

        Args:
            top: Stride-16 features (N, C, g, g).
            memory: What the N tracks remember, stacked; all with the same layout.

        Returns:
            Conditioned features (N, C, g, g); without any memory, ``top`` plus the "no memory" embedding.
        """
        if memory.empty:
            return self.without_memory(top)
        codes = self._place_and_time_codes(top.dtype)
        return self.attend_to_memory(
            top, memory.maps, [codes[slot] for slot in memory.slots], *self._pointer_tokens(memory, top)
        )

    def attend_to_memory(
        self, top: Tensor, maps: Sequence[Tensor], codes: Sequence[Tensor], pointers: Tensor, positions: Tensor
    ) -> Tensor:
        """Run the memory attention; everything that changes from frame to frame is a tensor.

        Args:
            top: Stride-16 features (N, C, g, g).
            maps: M memory maps (N, 64, g, g) each.
            codes: Position of each map's tokens in place and time (g*g, 64).
            pointers: Pointer tokens (N, P, 64), P = 0 where there are none.
            positions: Their positions (P, 64).

        Returns:
            Conditioned features (N, C, g, g).
        """
        conditioned = look_back(
            self.sam.memory_attention,
            (top + 0.1 * self.sine_top).to(top.dtype).flatten(2).transpose(1, 2),  # (N, g*g, C)
            maps=[features.flatten(2).to(top.dtype) for features in maps],
            codes=codes,
            pointers=(pointers, positions) if pointers.shape[1] else None,
            rotary=self.rotary,
            derived=self.derived,
        )  # (N, g*g, C)
        return conditioned.transpose(1, 2).unflatten(2, top.shape[2:])

    def _place_and_time_codes(self, dtype: torch.dtype) -> Sequence[Tensor]:
        """For each slot of time, the position of a map's tokens in place and time (g*g, 64)."""
        slots = self.sam.memory_temporal_positional_encoding  # (slots, 1, 1, 64)

        def compute() -> Sequence[Tensor]:
            sine = self.sine_memory.flatten(2)[0].t()  # (g*g, 64)
            return (sine + slots[:, 0]).to(dtype).unbind()

        return self.derived.get(("codes", dtype), [slots, self.sine_memory], compute)

    def without_memory(self, top: Tensor) -> Tensor:
        """Features for a frame that looks at no memory: plus the "no memory" embedding, no attention."""
        return top + self.sam.no_memory_embedding.reshape(1, -1, 1, 1)

    def _pointer_tokens(self, memory: MemoryReading, top: Tensor) -> tuple[Tensor, Tensor]:
        """Split each pointer into memory-wide tokens; in SAM2.1 their positions encode their age.

        Returns:
            Tokens (N, P*split, 64) and their positions (P*split, 64), in the type of ``top``.
        """
        width = self.config.memory_width
        split = self.config.hidden // width
        if not memory.pointers:
            return top.new_zeros(len(top), 0, width), top.new_zeros(0, width)
        tokens = torch.stack(memory.pointers, dim=1).to(top.dtype).unflatten(-1, (split, width)).flatten(1, 2)
        if not self.config.pointer_time_encoding:
            return tokens, tokens.new_zeros(tokens.shape[1:])
        ages = torch.tensor(memory.ages, dtype=torch.float32).to(tokens.device, non_blocking=True)
        with without_autocast(ages):
            waves = sine_of_age(ages / (self.config.pointer_limit - 1), self.config.hidden)  # (P, C)
        positions = self.sam.temporal_positional_encoding_projection_layer(waves.to(top.dtype))  # (P, 64)
        return tokens, positions.to(top.dtype).repeat_interleave(split, dim=0)

    # Decode.

    def padding_points(self, count: int) -> Tensor:
        """The two "not a point" tokens that SAM2 feeds when there are no clicks, (count, 2, C)."""
        return self.sam.prompt_encoder.not_a_point_embed.weight.expand(count, 2, -1)

    def embed_points(self, points: Tensor, labels: Tensor) -> Tensor:
        """Prompt tokens of clicks and box corners.

        Args:
            points: Pixel positions x, y in the letterboxed image (N, P, 2).
            labels: 1 on the object, 0 off it, 2 and 3 the corners of a box, -1 padding; (N, P).

        Returns:
            Tokens (N, P + 1, C), the last one padding.
        """
        with without_autocast(points):
            sparse, _ = self.sam.prompt_encoder(points.unsqueeze(1), labels.unsqueeze(1), None, None)
        tokens: Tensor = sparse.squeeze(1).to(self.dtype)
        return tokens

    def embed_mask(self, mask: Tensor) -> Tensor:
        """Dense prompt of a mask in [0, 1], (N, 1, S, S) -> (N, C, g, g)."""
        return self.sam.prompt_encoder.mask_embed(self.sam.mask_downsample(mask.to(self.dtype)))

    def decode(
        self,
        conditioned: Tensor,
        features: FrameFeatures,
        sparse: Tensor,
        *,
        dense: Tensor | None = None,
        multimask: bool = False,
    ) -> Decoded:
        """Turn conditioned features and prompt tokens into masks.

        Args:
            conditioned: Features with memory (N, C, g, g).
            features: The frame's features; only the two fine levels are read.
            sparse: Prompt tokens (N, P, C), for instance two padding points and a text token.
            dense: Dense prompt (N, C, g, g), default SAM2's "no mask" embedding.
            multimask: Return the three ambiguity masks instead of the single one.

        Returns:
            The decoder's answer.
        """
        count = conditioned.shape[0]
        tokens = self._decoder_tokens(sparse)  # (N, 1, K, C)
        keys, key_positions = self._decoder_image(conditioned, dense)  # (N, 1, g*g, C)
        decoder = self.sam.mask_decoder
        transformer = decoder.transformer
        queries, early = tokens, tokens
        for depth, layer in enumerate(transformer.layers):
            queries, keys, _ = layer(queries, keys, tokens, key_positions, None)
            if depth == 0:
                early = queries
        attended, _ = transformer.final_attn_token_to_image(queries + tokens, keys + key_positions, keys)
        queries = transformer.layer_norm_final_attn(queries + attended)

        image = keys.transpose(2, 3).reshape(conditioned.shape)  # (N, C, g, g)
        upscaled = decoder.upscale_conv1(image) + features.middle  # (N, C/4, 2g, 2g)
        upscaled = decoder.activation(decoder.upscale_layer_norm(upscaled))
        upscaled = decoder.activation(decoder.upscale_conv2(upscaled) + features.fine)  # (N, C/8, 4g, 4g)

        first = self._first_mask_token
        stability = self.config.multimask_stability and not multimask and not self.training
        wanted = range(4) if stability else range(1, 4) if multimask else range(1)
        mask_tokens = queries[:, 0, first : first + 4]  # (N, 4, C)
        weights = torch.stack(
            [decoder.output_hypernetworks_mlps[index](mask_tokens[:, index]) for index in wanted], dim=1
        )  # (N, M, C/8)
        exact = torch.promote_types(weights.dtype, torch.float32)  # what is compared with zero is not rounded
        with without_autocast(weights):
            logits = weights.to(exact) @ upscaled.flatten(2).to(exact)
        logits = logits.reshape(count, -1, *upscaled.shape[-2:])  # (N, M, 4g, 4g)
        ious = decoder.iou_prediction_head(queries[:, 0, first - 1])[:, wanted.start : wanted.stop]  # (N, M)
        if stability:
            logits, ious = steadiest_mask(logits, ious)
        chosen = slice(1, 4) if multimask else slice(0, 1)
        return Decoded(
            mask_logits=logits,
            ious=ious,
            tokens=mask_tokens[:, chosen],
            early_tokens=early[:, 0, first : first + 4][:, chosen],
            score=decoder.pred_obj_score_head(queries[:, 0, 0])[:, 0] if self.config.object_score else None,
        )

    def early_token(self, conditioned: Tensor, sparse: Tensor) -> Tensor:
        """Mask token 0 as it leaves the decoder's first layer, without the rest of the decoder.

        Args:
            conditioned: Features (N, C, g, g).
            sparse: Prompt tokens (N, P, C).

        Returns:
            Tokens (N, C).
        """
        tokens = self._decoder_tokens(sparse)
        keys, key_positions = self._decoder_image(conditioned, None)
        queries, _, _ = self.sam.mask_decoder.transformer.layers[0](tokens, keys, tokens, key_positions, None)
        return queries[:, 0, self._first_mask_token]

    @property
    def _first_mask_token(self) -> int:
        """Position of mask token 0 among the decoder's tokens: after the object score (if any) and the IoU token."""
        return 2 if self.config.object_score else 1

    def _decoder_tokens(self, sparse: Tensor) -> Tensor:
        decoder = self.sam.mask_decoder
        learned = [decoder.iou_token.weight, decoder.mask_tokens.weight]
        if self.config.object_score:
            learned.insert(0, decoder.obj_score_token.weight)
        output = torch.cat(learned).expand(sparse.shape[0], -1, -1)  # (N, 5 or 6, C)
        return torch.cat([output, sparse.to(output.dtype)], dim=1).unsqueeze(1)  # (N, 1, K, C)

    def _decoder_image(self, conditioned: Tensor, dense: Tensor | None) -> tuple[Tensor, Tensor]:
        if dense is None:
            dense = self.sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        keys = (conditioned + dense).flatten(2).transpose(1, 2).unsqueeze(1)  # (N, 1, g*g, C)
        return keys, self._image_positions().to(keys.dtype)

    def _image_positions(self) -> Tensor:
        """Fourier features of the places of the grid (1, 1, g*g, C), exact whatever the weights' type."""
        table = self.sam.shared_image_embedding.positional_embedding

        def compute() -> Tensor:
            with without_autocast(table):
                positions: Tensor = self.sam.get_image_wide_positional_embeddings()  # (1, C, g, g)
            return positions.flatten(2).transpose(1, 2).unsqueeze(1)

        return self.derived.get("image positions", [table], compute)

    def pointer(self, token: Tensor, score: Tensor | None) -> Tensor:
        """Object pointer of a mask token; the learned "no object" pointer where the object score is not positive.

        Args:
            token: Output mask token (N, C).
            score: Object score logits (N,), or None.

        Returns:
            Pointers (N, C).
        """
        pointer = self.sam.object_pointer_proj(token)
        if score is None or not self.config.object_score:
            return pointer
        return torch.where((score > 0).unsqueeze(1), pointer, self.sam.no_object_pointer)

    # Remember.

    def remember(self, top: Tensor, mask_logits: Tensor, score: Tensor | None, *, binary: bool = False) -> Tensor:
        """Encode a frame and its mask into a memory map (SAM2 paper, "memory encoder").

        Args:
            top: The frame's stride-16 features without memory (N, C, g, g).
            mask_logits: Mask logits at full size (N, 1, S, S).
            score: Object score logits (N,); read by SAM2.1 only.
            binary: Threshold the mask first, as SAM2 does for frames that a user prompted.

        Returns:
            Memory maps (N, 64, g, g).
        """
        mask = (mask_logits > 0).to(top.dtype) if binary else torch.sigmoid(mask_logits)
        maps, _ = self.sam.memory_encoder(top, (mask * 20.0 - 10.0).to(top.dtype))
        occlusion = self.sam.occlusion_spatial_embedding_parameter
        if occlusion is not None and score is not None:
            absent = (score <= 0).to(maps.dtype).reshape(-1, 1, 1, 1)
            maps = maps + absent * occlusion.reshape(1, -1, 1, 1)
        return maps

    def upsample(self, mask_logits: Tensor) -> Tensor:
        """Low-resolution mask logits (N, M, 4g, 4g) to the letterboxed image (N, M, S, S), bilinear."""
        return enlarge(mask_logits, self.config.image_size)


def gate(mask_logits: Tensor, score: Tensor | None) -> Tensor:
    """Replace the mask logits by ``NO_OBJECT_LOGIT`` where the object score is not positive.

    Args:
        mask_logits: (N, M, h, w).
        score: Object score logits (N,), or None: nothing is gated.

    Returns:
        Gated logits, same shape.
    """
    if score is None:
        return mask_logits
    return torch.where((score > 0).reshape(-1, 1, 1, 1), mask_logits, NO_OBJECT_LOGIT)


def sine_of_age(ages: Tensor, width: int) -> Tensor:
    """One-dimensional sine encoding of pointer ages (SAM2.1): ages (P,) in [0, 1] -> (P, width)."""
    half = width // 2
    powers = 2 * (torch.arange(half, dtype=torch.float32, device=ages.device) // 2) / half
    angles = ages.unsqueeze(-1) / 10000**powers  # (P, half)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def steadiest_mask(mask_logits: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
    """SAM2's ``dynamic_multimask_via_stability``: replace an unstable single mask by the best ambiguity mask.

    A mask is stable when moving its threshold by 0.05 changes its area by less than 2 %.

    Args:
        mask_logits: The single mask and the three ambiguity masks (N, 4, h, w).
        ious: Their predicted qualities (N, 4).

    Returns:
        The chosen mask (N, 1, h, w) and its quality (N, 1).
    """
    single = mask_logits[:, :1]
    inner = (single > 0.05).flatten(1).sum(1).float()
    outer = (single > -0.05).flatten(1).sum(1).float()
    stable = torch.where(outer > 0, inner / outer, 1.0) >= 0.98  # (N,)
    best = ious[:, 1:].argmax(dim=1)  # (N,)
    rows = torch.arange(len(best), device=best.device)
    best_mask, best_iou = mask_logits[rows, 1 + best].unsqueeze(1), ious[rows, 1 + best].unsqueeze(1)
    return (
        torch.where(stable.reshape(-1, 1, 1, 1), single, best_mask),
        torch.where(stable.unsqueeze(1), ious[:, :1], best_iou),
    )
