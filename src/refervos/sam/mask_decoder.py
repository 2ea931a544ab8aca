"""SAM's mask decoder with any tokens beside its own, some of which may be padding; it also tells what became of them.

Shapes: N rows, P prompt tokens, K = 5 + P tokens in all, C = ``hidden``, g = ``grid``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.linear import linear
from refervos.precision import without_autocast

OWN_TOKENS = 5
"""The decoder's own tokens: one for the predicted IoU, one for the single mask, three for the ambiguity masks."""


@dataclass(frozen=True)
class Decoded:
    """What the mask decoder says, for M candidate masks (one, or three with ``multimask``).

    Attributes:
        mask_logits: (N, M, 4g, 4g), in float32 at least.
        ious: Predicted quality of each candidate, (N, M).
        tokens: Output mask tokens of the candidates (N, M, C).
    """

    mask_logits: Tensor
    ious: Tensor
    tokens: Tensor


def decode(
    decoder: Any,
    image: Tensor,
    positions: Tensor,
    prompts: Tensor,
    keep: Tensor | None = None,
    *,
    multimask: bool = False,
    shift: Tensor | None = None,
) -> Decoded:
    """Turn features and prompt tokens into masks (SAM paper, appendix A, "lightweight mask decoder").

    Args:
        decoder: A ``SamMaskDecoder``.
        image: Features with the dense prompt added (N, C, g, g).
        positions: Position map (1, C, g, g).
        prompts: Tokens (N, P, C); their order does not matter.
        keep: bool (N, P), False where a token is padding; default no padding.
        multimask: Return the three ambiguity masks instead of the single one.
        shift: What is added to the single mask's token (N, C); default nothing.

    Returns:
        The decoder's answer.
    """
    own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(len(prompts), -1, -1)  # (N, 5, C)
    if shift is not None:
        own = torch.cat([own[:, :1], own[:, 1:2] + shift.unsqueeze(1), own[:, 2:]], dim=1)
    tokens = torch.cat([own, prompts.to(own.dtype)], dim=1)  # (N, K, C)
    seen = None if keep is None else F.pad(keep, (OWN_TOKENS, 0), value=True)[:, None, None]  # (N, 1, 1, K)
    keys, key_positions = (x.flatten(2).transpose(1, 2) for x in (image, positions.to(image.dtype)))  # (N, g*g, C)
    transformer = decoder.transformer
    queries = tokens
    for layer in transformer.layers:
        queries, keys = _two_way_layer(layer, queries, keys, tokens, key_positions, seen)
    attended = _attend(transformer.final_attn_token_to_image, queries + tokens, keys + key_positions, keys)
    queries = transformer.layer_norm_final_attn(queries + attended)

    upscaled = decoder.upscale_conv1(keys.transpose(1, 2).reshape(image.shape))  # (N, C/4, 2g, 2g)
    upscaled = decoder.activation(decoder.upscale_layer_norm(upscaled))
    upscaled = decoder.activation(decoder.upscale_conv2(upscaled))  # (N, C/8, 4g, 4g)
    wanted = range(1, 4) if multimask else range(1)
    mask_tokens = queries[:, 1:OWN_TOKENS][:, wanted.start : wanted.stop]  # (N, M, C)
    weights = torch.stack(
        [decoder.output_hypernetworks_mlps[index](mask_tokens[:, row]) for row, index in enumerate(wanted)], dim=1
    )  # (N, M, C/8)
    exact = torch.promote_types(weights.dtype, torch.float32)  # what is compared with a threshold is not rounded
    with without_autocast(weights):
        logits = weights.to(exact) @ upscaled.flatten(2).to(exact)
    return Decoded(
        mask_logits=logits.unflatten(2, upscaled.shape[2:]),  # (N, M, 4g, 4g)
        ious=decoder.iou_prediction_head(queries[:, 0])[:, wanted.start : wanted.stop],
        tokens=mask_tokens,
    )


def _two_way_layer(
    layer: Any, queries: Tensor, keys: Tensor, tokens: Tensor, positions: Tensor, seen: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens look at each other and at the image, then the image at the tokens.

    Args:
        layer: A ``SamTwoWayAttentionBlock``.
        queries: (N, K, C).
        keys: (N, g*g, C).
        tokens: The tokens as they came in, which serve as their own positions (N, K, C).
        positions: (1, g*g, C).
        seen: bool (N, 1, 1, K), which tokens may be looked at; None for all.
    """
    if layer.skip_first_layer_pe:
        queries = _attend(layer.self_attn, queries, queries, queries, seen)
    else:
        where = queries + tokens
        queries = queries + _attend(layer.self_attn, where, where, queries, seen)
    queries = layer.layer_norm1(queries)
    placed = keys + positions
    queries = layer.layer_norm2(queries + _attend(layer.cross_attn_token_to_image, queries + tokens, placed, keys))
    hidden = linear(queries, layer.mlp.lin1, "relu")
    queries = layer.layer_norm3(queries + linear(hidden, layer.mlp.lin2))
    answered = _attend(layer.cross_attn_image_to_token, placed, queries + tokens, queries, seen)
    return queries, layer.layer_norm4(keys + answered)


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Multi-head attention by a ``SamAttention``: queries (N, Q, C), keys and values (N, K, C)."""
    heads = attention.num_attention_heads
    q, k, v = (
        linear(x, projection).unflatten(-1, (heads, -1)).transpose(1, 2)  # (N, heads, *, d)
        for x, projection in ((query, attention.q_proj), (key, attention.k_proj), (value, attention.v_proj))
    )
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return linear(attended.transpose(1, 2).flatten(2), attention.out_proj)
