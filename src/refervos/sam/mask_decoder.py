"""SAM's mask decoder, for any number of prompt tokens, some of which may be padding.

Shapes: N rows, P prompt tokens, K = 5 + P tokens in total, C = ``hidden``, g = ``grid``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.derived import Derived
from refervos.sam.config import SamConfig
from refervos.sam.layers import NORM_EPSILON, Mlp
from refervos.sam.two_way import SAM_NAMES, TwoWayTransformer
from refervos.sam.upscaling import predict_masks

OWN_TOKENS = 5
"""The decoder's own tokens: one for the predicted IoU, one for the single mask, three for the ambiguity masks."""

BLOCK_DOWNSAMPLE = 2
"""Factor by which the blocks' cross-attention is narrower than ``hidden``, in every published model."""

QUALITY_WIDTH = 256
"""Channels inside the IoU prediction head, likewise."""


@dataclass(frozen=True)
class Decoded:
    """Output of the mask decoder, for M candidate masks (one, or three with ``multimask``).

    Attributes:
        mask_logits: (N, M, 4g, 4g), in float32 or wider.
        ious: Predicted quality of each candidate, (N, M).
        tokens: Output mask tokens of the candidates (N, M, C).
    """

    mask_logits: Tensor
    ious: Tensor
    tokens: Tensor


class MaskDecoder(nn.Module):
    """SAM's mask decoder.

    Args:
        config: The model's shape.
    """

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        hidden, masks = config.hidden, OWN_TOKENS - 1
        self.iou_token = nn.Embedding(1, hidden)
        self.mask_tokens = nn.Embedding(masks, hidden)
        self.transformer = TwoWayTransformer(
            hidden,
            config.decoder_layers,
            config.decoder_heads,
            config.decoder_feedforward,
            (BLOCK_DOWNSAMPLE, config.decoder_downsample),
            SAM_NAMES,
            NORM_EPSILON,
        )
        self.upscale_conv1 = nn.ConvTranspose2d(hidden, hidden // 4, kernel_size=2, stride=2)
        self.upscale_conv2 = nn.ConvTranspose2d(hidden // 4, hidden // 8, kernel_size=2, stride=2)
        self.upscale_layer_norm = nn.LayerNorm(hidden // 4, NORM_EPSILON)
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(hidden, hidden, hidden // 8) for _ in range(masks))
        self.iou_prediction_head = Mlp(hidden, QUALITY_WIDTH, masks)
        self.derived = Derived()

    def forward(
        self,
        image: Tensor,
        positions: Tensor,
        prompts: Tensor,
        keep: Tensor | None = None,
        *,
        multimask: bool = False,
        shift: Tensor | None = None,
    ) -> Decoded:
        """Predict masks from features and prompt tokens (SAM paper, appendix A, "lightweight mask decoder").

        Args:
            image: Features with the dense prompt added (N, C, g, g).
            positions: Position encoding of the image (g*g, C).
            prompts: Prompt tokens (N, P, C), in any order.
            keep: bool (N, P), False for padding; default no padding.
            multimask: Return the three ambiguity masks instead of the single one.
            shift: Added to the token of the single mask (N, C); default nothing.

        Returns:
            The masks and tokens.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(len(prompts), -1, -1)  # (N, 5, C)
        if shift is not None:
            own = torch.cat([own[:, :1], own[:, 1:2] + shift.unsqueeze(1), own[:, 2:]], dim=1)
        tokens = torch.cat([own, prompts.to(own.dtype)], dim=1)  # (N, K, C)
        mask = None if keep is None else F.pad(keep, (OWN_TOKENS, 0), value=True)[:, None, None]  # (N, 1, 1, K)
        queries, updated, _ = self.transformer(tokens, image.flatten(2).transpose(1, 2), positions, mask)
        wanted = range(1, 4) if multimask else range(1)
        mask_tokens = queries[:, 1:OWN_TOKENS]  # (N, 4, C)
        return Decoded(
            mask_logits=predict_masks(self, updated.unflatten(1, image.shape[2:]), mask_tokens, wanted),
            ious=self.iou_prediction_head(queries[:, 0])[:, wanted.start : wanted.stop],
            tokens=mask_tokens[:, wanted.start : wanted.stop],
        )
