"""T5's text encoder (Raffel et al. 2020, arXiv 1910.10683)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.errors import ConfigError
from refervos.ops.linear import linear, product
from refervos.ops.precision import without_autocast
from refervos.text.encoder import VOCABULARY
from refervos.typed_config import LAYERS, WIDTH, check_range


@dataclass(frozen=True)
class T5Config:
    """Shape of a T5 encoder. Defaults: t5-3b, whose encoder has 1,240,909,824 parameters.

    Attributes:
        vocabulary: Number of token embeddings; the tokenizer may have fewer tokens.
        width: Channels of a token (``d_model``).
        head_width: Channels of a query, key or value of one head (``d_kv``), independent of ``width``.
        heads: Attention heads.
        layers: Transformer layers.
        feedforward: Width of the feed-forward networks.
        position_buckets: Number of learned biases for the distance between two tokens.
        position_distance: Distances from this one on share the last bucket.
        gated: Whether the feed-forward networks are gated GELU (T5 v1.1, Flan-T5) and not ReLU (T5).
        pad: Id of the padding token.
        max_tokens: Length of the longest sentence. The model has no limit; this is the length that T5 was trained with.
    """

    vocabulary: int = 32128
    width: int = 1024
    head_width: int = 128
    heads: int = 32
    layers: int = 24
    feedforward: int = 16384
    position_buckets: int = 32
    position_distance: int = 128
    gated: bool = False
    pad: int = 0
    max_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "head_width", "heads", "layers", "feedforward", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a T5 encoder needs at least 1.")
        check_range(
            self,
            vocabulary=VOCABULARY,
            width=WIDTH,
            head_width=WIDTH,
            heads=WIDTH,
            layers=LAYERS,
            feedforward=WIDTH,
            position_buckets=(1, 2**17),
            position_distance=(1, 2**17),
            max_tokens=(1, 2**17),
        )
        if self.position_buckets < 4 or self.position_distance <= self.position_buckets // 4:
            raise ConfigError(
                f"position_buckets is {self.position_buckets} and position_distance {self.position_distance}; a T5 "
                "encoder needs at least 4 buckets, and a distance of more than a quarter of them."
            )
        if not 0 <= self.pad < self.vocabulary:
            raise ConfigError(f"pad is {self.pad}; it must be one of the {self.vocabulary} token ids.")


_T5_3B = T5Config()

T5_PRESETS: dict[str, T5Config] = {
    "t5-small": replace(_T5_3B, width=512, head_width=64, heads=8, layers=6, feedforward=2048),
    "t5-base": replace(_T5_3B, width=768, head_width=64, heads=12, layers=12, feedforward=3072),
    "t5-large": replace(_T5_3B, head_width=64, heads=16, feedforward=4096),
    "t5-3b": _T5_3B,
    "t5-11b": replace(_T5_3B, heads=128, feedforward=65536),
}
"""The published sizes by their names on the Hugging Face Hub (arXiv 1910.10683, section 3.7)."""


class RmsNorm(nn.Module):
    """Root mean square layer normalisation (Zhang and Sennrich 2019, arXiv 1910.07467): no mean, no bias.

    Args:
        width: Channels of a token.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, states: Tensor) -> Tensor:
        """Normalise (..., width), in float32 or float64; the result has the weight's type."""
        normed = states * torch.rsqrt(states.square().mean(-1, keepdim=True) + 1e-6)
        return normed.to(self.weight.dtype) * self.weight


class RelativeSelfAttention(nn.Module):
    """Multi-head self-attention, unscaled, with a learned bias for each distance (T5 paper, section 2.1).

    Args:
        config: The encoder's shape.
        has_bias: Whether this layer holds the biases; only the first one does, for all layers.
    """

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.config = config
        width, inner = config.width, config.heads * config.head_width
        self.q = _linear(width, inner, (width * config.head_width) ** -0.5)
        self.k = _linear(width, inner, width**-0.5)
        self.v = _linear(width, inner, width**-0.5)
        self.o = _linear(inner, width, inner**-0.5)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(config.position_buckets, config.heads)
            nn.init.normal_(self.relative_attention_bias.weight, std=width**-0.5)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """Attend: states (N, L, width), bias of the scores (N, heads, L, L); return (N, L, width)."""
        query, key, value = (
            linear(states, layer).unflatten(-1, (self.config.heads, -1)).transpose(1, 2)  # (N, heads, L, head_width)
            for layer in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return linear(attended.transpose(1, 2).flatten(2), self.o)

    def distance_bias(self, length: int) -> Tensor:
        """Compute the bias of the scores by distance, (1, heads, L, L)."""
        weight = self.relative_attention_bias.weight  # (position_buckets, heads)
        at = torch.arange(length, device=weight.device)
        buckets = distance_bucket(at - at[:, None], self.config.position_buckets, self.config.position_distance)
        return weight[buckets].permute(2, 0, 1)[None]


def distance_bucket(distance: Tensor, buckets: int, farthest: int) -> Tensor:
    """Map distances to buckets: half of them per direction, of which half for a single distance each.

    Args:
        distance: Position of the key minus that of the query, int64.
        buckets: Number of buckets.
        farthest: Distances from this one on share the last bucket of their direction.

    Returns:
        Bucket indices, int64 of the same shape.
    """
    half = buckets // 2
    exact = half // 2
    far = distance.abs()
    # In float32 whatever the weights' type, because rounding decides between adjacent buckets.
    shared = exact + (torch.log(far.float() / exact) / math.log(farthest / exact) * (half - exact)).long()
    return torch.where(far < exact, far, shared.clamp(max=half - 1)) + half * (distance > 0)


class FeedForward(nn.Module):
    """Position-wise feed-forward network: ReLU, or gated GELU (Shazeer 2020, arXiv 2002.05202).

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        width, inner = config.width, config.feedforward
        self.gated = config.gated
        if self.gated:
            self.wi_0 = _linear(width, inner, width**-0.5)
            self.wi_1 = _linear(width, inner, width**-0.5)
        else:
            self.wi = _linear(width, inner, width**-0.5)
        self.wo = _linear(inner, width, inner**-0.5)

    def forward(self, states: Tensor) -> Tensor:
        """Run the network on states (N, L, width); float16 becomes float32."""
        if self.gated:
            inner = _widen(F.gelu(linear(states, self.wi_0), approximate="tanh")) * linear(states, self.wi_1)
        else:
            inner = _widen(linear(states, self.wi, "relu"))  # (N, L, feedforward)
        with without_autocast(inner):  # autocast would go back to float16
            return product(inner, self.wo.weight.to(inner.dtype))


def _widen(states: Tensor) -> Tensor:
    """Convert float16 to float32: trained T5s exceed 65504 in their feed-forward networks."""
    return states.float() if states.dtype == torch.float16 else states


class AttentionSublayer(nn.Module):
    """Self-attention sub-layer with pre-normalisation and residual connection.

    Args:
        config: The encoder's shape.
        has_bias: See ``RelativeSelfAttention``.
    """

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = RelativeSelfAttention(config, has_bias)
        self.layer_norm = RmsNorm(config.width)

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """Attend and add: states (N, L, width), bias of the scores (N, heads, L, L)."""
        return states + self.SelfAttention(self.layer_norm(states), bias)


class FeedForwardSublayer(nn.Module):
    """Feed-forward sub-layer with pre-normalisation and residual connection.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = FeedForward(config)
        self.layer_norm = RmsNorm(config.width)

    def forward(self, states: Tensor) -> Tensor:
        """Run the sub-layer: states (N, L, width)."""
        return states + self.DenseReluDense(self.layer_norm(states))


class Block(nn.Module):
    """Encoder layer.

    Args:
        config: The encoder's shape.
        has_bias: See ``RelativeSelfAttention``.
    """

    def __init__(self, config: T5Config, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionSublayer(config, has_bias), FeedForwardSublayer(config)])

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """Run the layer: states (N, L, width), bias of the scores (N, heads, L, L)."""
        attention, feed_forward = self.layer
        attended: Tensor = feed_forward(attention(states, bias))
        return attended


class Stack(nn.Module):
    """Encoder under the names of published weights.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.pad = config.pad
        self.embed_tokens = nn.Embedding(
            config.vocabulary, config.width
        )  # initialised with standard deviation 1, as in T5
        self.block = nn.ModuleList(Block(config, has_bias=index == 0) for index in range(config.layers))
        self.final_layer_norm = RmsNorm(config.width)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode sentences: token ids int64 (N, L) -> states (N, L, width)."""
        states = self.embed_tokens(ids)
        # The sums over layers exceed float16 and need more precision than bfloat16.
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        blocks: Any = self.block
        bias = blocks[0].layer[0].SelfAttention.distance_bias(ids.shape[1])  # (1, heads, L, L)
        padding = (ids == self.pad)[:, None, None]  # (N, 1, 1, L)
        bias = bias.masked_fill(padding, torch.finfo(bias.dtype).min)  # (N, heads, L, L)
        for block in blocks:
            states = block(states, bias)
        normed: Tensor = self.final_layer_norm(states)
        return normed


def _linear(width: int, out: int, deviation: float) -> nn.Linear:
    """Make a linear layer without bias, initialised with a given standard deviation."""
    layer = nn.Linear(width, out, bias=False)
    nn.init.normal_(layer.weight, std=deviation)
    return layer


class T5TextEncoder(nn.Module):
    """T5 encoder without dropout: T5 v1.1 was trained without it, and RefSAM keeps the encoder frozen.

    New weights are initialised as in T5, whose attention scores are unscaled, with smaller query weights instead.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.t5 = Stack(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode sentences. Padding is not attended to, and its states are meaningless.

        Args:
            ids: Token ids, int64 (N, L), padded with ``config.pad``.

        Returns:
            States of the tokens (N, L, width).
        """
        states: Tensor = self.t5(ids)
        return states
