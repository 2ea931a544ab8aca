"""Two-way transformer of the mask decoder: tokens and image attend to each other (SAM paper, appendix A).

Projections of the same input are computed in one product, and projections of the constant position encodings are
computed once: (image + positions) W = image W + (positions W).

Shapes: N rows, K tokens, P = g * g cells of the image, C channels, D channels inside attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.ops.derived import Derived
from refervos.ops.linear import column_major, linear, product


@dataclass(frozen=True)
class ParameterNames:
    """Names of some parameters in the files of a model.

    Attributes:
        attention_output: Output projection of an attention.
        mlp: Both layers of the feed-forward network.
    """

    attention_output: str
    mlp: tuple[str, str]


SAM_NAMES = ParameterNames("out_proj", ("lin1", "lin2"))
SAM2_NAMES = ParameterNames("o_proj", ("proj_in", "proj_out"))


class Attention(nn.Module):
    """Multi-head attention, narrower inside by ``downsample``.

    Args:
        width: Channels C.
        heads: Attention heads.
        names: Parameter names.
        downsample: C / D.
    """

    def __init__(self, width: int, heads: int, names: ParameterNames, downsample: int = 1) -> None:
        super().__init__()
        inner = width // downsample
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.add_module(names.attention_output, nn.Linear(inner, width))
        self._output = names.attention_output

    def attend(self, query: Tensor, key: Tensor, value: Tensor, keep: Tensor | None = None) -> Tensor:
        """Attend, given projected queries, keys and values.

        Args:
            query: (N, Q, D).
            key: (N, K, D).
            value: (N, K, D).
            keep: bool (N, 1, 1, K), False for keys to ignore; default none.

        Returns:
            (N, Q, C).
        """
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=keep)  # (N, heads, Q, D/heads)
        output: nn.Linear = getattr(self, self._output)
        return linear(attended.transpose(1, 2).flatten(2), output)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between them.

    Args:
        width: Input and output channels.
        inner: Channels between.
        names: Parameter names.
    """

    def __init__(self, width: int, inner: int, names: ParameterNames) -> None:
        super().__init__()
        self._first, self._second = names.mlp
        self.add_module(self._first, nn.Linear(width, inner))
        self.add_module(self._second, nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the network: (..., width) -> (..., width)."""
        return linear(linear(x, getattr(self, self._first), "relu"), getattr(self, self._second))


class TwoWayBlock(nn.Module):
    """Block of token self-attention, attention to the image, feed-forward network, and attention of image to tokens.

    Args:
        width: Channels C.
        heads: Attention heads.
        feedforward: Channels inside the feed-forward network.
        downsample: C / D in the attention between tokens and image.
        names: Parameter names.
        epsilon: Epsilon of the layer norms.
    """

    def __init__(
        self, width: int, heads: int, feedforward: int, downsample: int, names: ParameterNames, epsilon: float
    ) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, names)
        self.layer_norm1 = nn.LayerNorm(width, epsilon)
        self.cross_attn_token_to_image = Attention(width, heads, names, downsample)
        self.layer_norm2 = nn.LayerNorm(width, epsilon)
        self.mlp = FeedForward(width, feedforward, names)
        self.layer_norm3 = nn.LayerNorm(width, epsilon)
        self.layer_norm4 = nn.LayerNorm(width, epsilon)
        self.cross_attn_image_to_token = Attention(width, heads, names, downsample)
        self.derived = Derived()

    def update_tokens(
        self, queries: Tensor, tokens: Tensor, image: Tensor, positions: Tensor, keep: Tensor | None, *, first: bool
    ) -> tuple[Tensor, Tensor]:
        """Run all but the last step of the block.

        Args:
            queries: Tokens from the previous block (N, K, C).
            tokens: Input tokens, which serve as their position encodings (N, K, C).
            image: (N, P, C).
            positions: Position encoding of the image (P, C).
            keep: bool (N, 1, 1, K), False for tokens to ignore.
            first: True for the first block, whose self-attention has neither positions nor a residual connection.

        Returns:
            Tokens (N, K, C), and the image's queries for the last step (N, P, D).
        """
        own = self.self_attn
        if first:
            q, k, v = project(self.derived, queries, [own.q_proj, own.k_proj, own.v_proj])
            queries = self.layer_norm1(own.attend(q, k, v, keep))
        else:
            q, k = project(self.derived, queries + tokens, [own.q_proj, own.k_proj])
            queries = self.layer_norm1(queries + own.attend(q, k, linear(queries, own.v_proj), keep))

        across, back = self.cross_attn_token_to_image, self.cross_attn_image_to_token
        key, value, image_queries = project_image(
            self.derived, image, positions, placed=[across.k_proj, back.q_proj], plain=[across.v_proj]
        )
        attended = across.attend(linear(queries + tokens, across.q_proj), key, value)
        queries = self.layer_norm2(queries + attended)
        return self.layer_norm3(queries + self.mlp(queries)), image_queries

    def update_image(
        self, queries: Tensor, tokens: Tensor, image: Tensor, image_queries: Tensor, keep: Tensor | None
    ) -> Tensor:
        """Run the last step of the block, in which the image (N, P, C) attends to the tokens."""
        back = self.cross_attn_image_to_token
        key, value = linear(queries + tokens, back.k_proj), linear(queries, back.v_proj)
        updated: Tensor = self.layer_norm4(image + back.attend(image_queries, key, value, keep))
        return updated


class TwoWayTransformer(nn.Module):
    """Two-way blocks and a final attention of the tokens to the image.

    Args:
        width: Channels C.
        layers: Blocks.
        heads: Attention heads.
        feedforward: Channels inside the feed-forward networks.
        downsample: C / D in the cross-attention of the blocks and of the final attention.
        names: Parameter names.
        epsilon: Epsilon of the blocks' layer norms.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        feedforward: int,
        downsample: tuple[int, int],
        names: ParameterNames,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(
            TwoWayBlock(width, heads, feedforward, downsample[0], names, epsilon) for _ in range(layers)
        )
        self.final_attn_token_to_image = Attention(width, heads, names, downsample[1])
        self.layer_norm_final_attn = nn.LayerNorm(width)
        self.derived = Derived()

    def forward(
        self,
        tokens: Tensor,
        image: Tensor,
        positions: Tensor,
        keep: Tensor | None = None,
        *,
        first_block_only: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the transformer.

        Args:
            tokens: (N, K, C).
            image: (N, P, C).
            positions: Position encoding of the image (P, C).
            keep: bool (N, 1, 1, K), False for tokens to ignore; default none.
            first_block_only: Number of rows, the last of the N, that stop after the first block.

        Returns:
            Tokens (n, K, C) and image (n, P, C) of the other rows, and the tokens of all rows after the first block
            (N, K, C).
        """
        queries, early = tokens, tokens
        rows = tokens.shape[0] - first_block_only
        for depth, block in enumerate(self.layers):
            queries, image_queries = block.update_tokens(queries, tokens, image, positions, keep, first=depth == 0)
            if depth == 0:
                early = queries
                if first_block_only:
                    queries, tokens = queries[:rows], tokens[:rows]
                    image, image_queries = image[:rows], image_queries[:rows]
                    keep = None if keep is None else keep[:rows]
            image = block.update_image(queries, tokens, image, image_queries, keep)
        last = self.final_attn_token_to_image
        key, value = project_image(self.derived, image, positions, placed=[last.k_proj], plain=[last.v_proj])
        attended = last.attend(linear(queries + tokens, last.q_proj), key, value)
        return self.layer_norm_final_attn(queries + attended), image, early

    def first_block(self, tokens: Tensor, image: Tensor, positions: Tensor) -> Tensor:
        """Run only the token update of the first block: return the tokens (N, K, C)."""
        queries, _ = self.layers[0].update_tokens(tokens, tokens, image, positions, None, first=True)
        first: Tensor = queries
        return first


def project(derived: Derived, x: Tensor, layers: Sequence[nn.Linear]) -> tuple[Tensor, ...]:
    """Apply several linear layers to the same input in one product.

    Args:
        derived: Cache for the joined weights.
        x: (..., C).
        layers: C -> D each.

    Returns:
        (..., D) for each layer.
    """

    def join() -> tuple[Tensor, Tensor]:
        return column_major(torch.cat([layer.weight for layer in layers])), torch.cat([layer.bias for layer in layers])

    weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
    joined = derived.get(("joined", *map(id, layers)), weights, join)
    return product(x, *joined).chunk(len(layers), dim=-1)


def project_image(
    derived: Derived,
    image: Tensor,
    positions: Tensor,
    *,
    placed: Sequence[nn.Linear],
    plain: Sequence[nn.Linear],
) -> tuple[Tensor, ...]:
    """Apply linear layers to an image in one product, some of them with its positions added.

    Args:
        derived: Cache for tensors that do not depend on the image.
        image: (N, P, C).
        positions: (P, C).
        placed: Layers C -> D applied to the image plus positions.
        plain: Layers C -> D applied to the image alone.

    Returns:
        (N, P, D) for each layer: the first of ``placed``, all of ``plain``, the rest of ``placed``.
    """
    layers = [placed[0], *plain, *placed[1:]]

    def join() -> tuple[Tensor, Tensor]:
        dtype = layers[0].weight.dtype
        offsets = [
            F.linear(positions.to(dtype), layer.weight, layer.bias)
            if any(layer is one for one in placed)
            else layer.bias.expand(len(positions), -1)
            for layer in layers
        ]
        return column_major(torch.cat([layer.weight for layer in layers])), torch.cat(offsets, dim=1)  # (P, D * layers)

    weights = [positions, *(tensor for layer in layers for tensor in (layer.weight, layer.bias))]
    weight, offset = derived.get(("image", *map(id, layers)), weights, join)
    projected = product(image, weight)
    projected = projected + offset if torch.is_grad_enabled() else projected.add_(offset)
    return projected.chunk(len(layers), dim=-1)
