"""SAM2's mask decoder: SAM's with high-resolution image features and an object score (SAM2 paper, appendix C).

Shapes: N tracks, P prompt tokens, C = hidden width, g = grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refervos.ops.derived import Derived
from refervos.sam.layers import NORM_EPSILON, Mlp
from refervos.sam.two_way import SAM2_NAMES, TwoWayTransformer
from refervos.sam.upscaling import predict_masks
from refervos.sam2.config import Sam2Config

MASKS = 4
"""Mask candidates: the single mask, and three for ambiguous prompts."""


@dataclass(frozen=True)
class Decoded:
    """Output of the mask decoder, for M candidate masks (one, or three with ``multimask``).

    Attributes:
        mask_logits: (N, M, 4g, 4g), not gated by the object score, in float32 or wider.
        ious: Predicted quality of each candidate, (N, M).
        tokens: Output mask tokens (N, M, C).
        early_tokens: The same tokens after the first block of the two-way transformer (N, M, C).
        score: Object score logit (N,), or None when the model has no object score head.
        extra_early_token: Mask token 0 of the extra rows after that block (K, C), None when there are none.
    """

    mask_logits: Tensor
    ious: Tensor
    tokens: Tensor
    early_tokens: Tensor
    score: Tensor | None
    extra_early_token: Tensor | None = None


class MaskDecoder(nn.Module):
    """SAM2's mask decoder.

    Args:
        config: The tracker's shape.
    """

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        hidden = config.hidden
        self.stability = config.multimask_stability
        self.iou_token = nn.Embedding(1, hidden)
        self.mask_tokens = nn.Embedding(MASKS, hidden)
        self.transformer = TwoWayTransformer(
            hidden,
            config.decoder_layers,
            config.decoder_heads,
            config.decoder_feedforward,
            (config.decoder_downsample, config.decoder_downsample),
            SAM2_NAMES,
        )
        self.upscale_conv1 = nn.ConvTranspose2d(hidden, hidden // 4, kernel_size=2, stride=2)
        self.upscale_conv2 = nn.ConvTranspose2d(hidden // 4, hidden // 8, kernel_size=2, stride=2)
        self.upscale_layer_norm = nn.LayerNorm(hidden // 4, NORM_EPSILON)
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(hidden, hidden, hidden // 8) for _ in range(MASKS))
        self.iou_prediction_head = Mlp(hidden, config.decoder_iou_feedforward or hidden, MASKS)
        # These two belong to the feature pyramid, which applies them once per frame.
        self.conv_s0 = nn.Conv2d(hidden, hidden // 8, kernel_size=1)
        self.conv_s1 = nn.Conv2d(hidden, hidden // 4, kernel_size=1)
        # Referring-image checkpoints are trained without these two.
        self.obj_score_token = nn.Embedding(1, hidden) if config.object_score else None
        self.pred_obj_score_head = Mlp(hidden, hidden, 1) if config.object_score else None
        self.derived = Derived()

    def forward(
        self,
        image: Tensor,
        positions: Tensor,
        prompts: Tensor,
        middle: Tensor,
        fine: Tensor,
        *,
        multimask: bool,
        stability: bool | None = None,
        extra: tuple[Tensor, Tensor] | None = None,
    ) -> Decoded:
        """Predict masks from features and prompt tokens.

        Args:
            image: Features with the dense prompt added (N, g*g, C).
            positions: Position encoding of the image (g*g, C).
            prompts: Prompt tokens (N, P, C).
            middle: Stride-8 features (N, 2g, 2g, C/4).
            fine: Stride-4 features (N, 4g, 4g, C/8).
            multimask: Return the three ambiguity masks instead of the single one.
            stability: Replace an unstable single mask by the best ambiguity mask; default as configured, and never in
                training mode.
            extra: Features and prompts of K more rows, for which only ``early_token`` is computed, in the same pass.

        Returns:
            The masks and tokens.
        """
        count, extra_count = image.shape[0], 0
        extra_early_token: Tensor | None = None
        if extra is not None and extra[1].shape[1:] == prompts.shape[1:]:
            extra_count = extra[0].shape[0]
            image, prompts = torch.cat([image, extra[0]]), torch.cat([prompts, extra[1]])
        elif extra is not None:
            extra_early_token = self.early_token(extra[0], positions, extra[1])
        queries, image, early = self.transformer(
            self._with_own_tokens(prompts), image, positions, first_block_only=extra_count
        )
        if extra_count:
            extra_early_token = early[count:, self._first_mask_token]
        side = middle.shape[1] // 2
        first = self._first_mask_token
        mask_tokens = queries[:, first : first + MASKS]  # (N, 4, C)
        if stability is None:
            stability = self.stability and not self.training
        stability = stability and not multimask
        wanted = range(MASKS) if stability else range(1, MASKS) if multimask else range(1)
        logits = predict_masks(self, image.unflatten(1, (side, side)), mask_tokens, wanted, finer=(middle, fine))
        quality = torch.sigmoid(self.iou_prediction_head(queries[:, first - 1]))  # (N, 4)
        ious = quality[:, wanted.start : wanted.stop]
        if stability:
            logits, ious = steadiest_mask(logits, ious)
        chosen = slice(1, MASKS) if multimask else slice(0, 1)
        return Decoded(
            mask_logits=logits,
            ious=ious,
            tokens=mask_tokens[:, chosen],
            early_tokens=early[:count, first : first + MASKS][:, chosen],
            score=None if self.pred_obj_score_head is None else self.pred_obj_score_head(queries[:, 0])[:, 0],
            extra_early_token=extra_early_token,
        )

    def early_token(self, image: Tensor, positions: Tensor, prompts: Tensor) -> Tensor:
        """Compute mask token 0 after the first block (N, C), without the rest of the decoder. See ``forward``."""
        tokens = self.transformer.first_block(self._with_own_tokens(prompts), image, positions)
        return tokens[:, self._first_mask_token]

    @property
    def _first_mask_token(self) -> int:
        """Index of mask token 0 among the tokens: after the object score token (if any) and the IoU token."""
        return 1 if self.obj_score_token is None else 2

    def _with_own_tokens(self, prompts: Tensor) -> Tensor:
        """Put the decoder's own tokens before the prompt tokens, (N, 5 or 6 + P, C)."""
        embeddings = [self.obj_score_token, self.iou_token, self.mask_tokens]
        learned = [embedding.weight for embedding in embeddings if embedding is not None]
        own = self.derived.get("own tokens", learned, lambda: torch.cat(learned).unsqueeze(0))  # (1, 5 or 6, C)
        return torch.cat([own.expand(prompts.shape[0], -1, -1), prompts.to(own.dtype)], dim=1)


def steadiest_mask(mask_logits: Tensor, ious: Tensor) -> tuple[Tensor, Tensor]:
    """Replace an unstable single mask by the best ambiguity mask (SAM2's ``dynamic_multimask_via_stability``).

    A mask is stable when shifting its threshold by 0.05 changes its area by less than 2 %.

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
