"""RoBERTa, run in segments, between which image stages and text layers can adapt each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.errors import ConfigError
from refervos.ops.linear import linear
from refervos.typed_config import LAYERS, WIDTH, check_range

VOCABULARY = (1, 10**7)
"""Allowed vocabulary sizes."""

DROPOUT = 0.1
"""Dropout probability of sub-layer outputs and attention weights in training (Liu et al. 2019, table 9)."""


@dataclass(frozen=True)
class TextConfig:
    """Shape of the text encoder. Defaults: RoBERTa-base (Liu et al. 2019, arXiv 1907.11692).

    Attributes:
        vocabulary: Number of tokens.
        width: Channels of a token.
        layers: Transformer layers.
        heads: Attention heads.
        feedforward: Width of the feed-forward networks.
        positions: Length of the longest sequence plus two (position 0 and that of padding are never used).
        pad: Id of the padding token.
        segment_ends: Number of layers up to the end of each of the four segments; the last is ``layers``.
    """

    vocabulary: int = 50265
    width: int = 768
    layers: int = 12
    heads: int = 12
    feedforward: int = 3072
    positions: int = 514
    pad: int = 1
    segment_ends: tuple[int, ...] = (1, 4, 8, 12)

    def __post_init__(self) -> None:
        check_range(
            self,
            vocabulary=VOCABULARY,
            width=WIDTH,
            layers=LAYERS,
            feedforward=WIDTH,
            positions=(3, 2**17),
            pad=(0, self.vocabulary - 1),
        )
        if self.heads < 1 or self.width % self.heads:
            raise ConfigError(f"heads is {self.heads}; it must divide width = {self.width}.")
        ends = self.segment_ends
        if len(ends) != 4 or list(ends) != sorted(ends) or ends[-1] != self.layers or ends[0] < 0:
            raise ConfigError(
                f"segment_ends is {ends}; it must be four ascending layer counts that end with layers = {self.layers}."
            )

    @property
    def max_tokens(self) -> int:
        """Length of the longest sequence."""
        return self.positions - 2


class Embeddings(nn.Module):
    """Token, position and segment embeddings, summed and normalised (Devlin et al. 2019, figure 2).

    Args:
        config: The encoder's shape. RoBERTa has one token type.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.pad = config.pad
        self.word_embeddings = nn.Embedding(config.vocabulary, config.width, padding_idx=config.pad)
        self.token_type_embeddings = nn.Embedding(1, config.width)
        self.LayerNorm = nn.LayerNorm(config.width, eps=1e-5)
        self.dropout = nn.Dropout(DROPOUT)
        self.position_embeddings = nn.Embedding(config.positions, config.width, padding_idx=config.pad)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed token ids: int64 (N, L) to (N, L, width)."""
        keep = (ids != self.pad).long()
        positions = keep.cumsum(1) * keep + self.pad  # tokens count from pad + 1 on, padding stays at pad
        states = self.word_embeddings(ids) + self.token_type_embeddings.weight + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(states))


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2) without the output projection.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.dropout_p = DROPOUT

    def forward(self, states: Tensor, keep: Tensor | None = None) -> Tensor:
        """Attend: states (N, L, width), bool (N, L) False for padding, or None; return (N, L, width)."""
        query, key, value = (
            linear(states, layer).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, L, width / heads)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout_p if self.training else 0.0
        mask = None if keep is None else keep[:, None, None]
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)


class AddAndNorm(nn.Module):
    """End of a sub-layer: its last linear layer, the residual connection, layer normalisation.

    Args:
        channels: Input channels.
        width: Channels of a token.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(channels, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-5)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, computed: Tensor, states: Tensor) -> Tensor:
        """Project the input (N, L, channels), add it to the states (N, L, width) and normalise."""
        normed: Tensor = self.LayerNorm(self.dropout(linear(computed, self.dense)) + states)
        return normed


class Attention(nn.Module):
    """The self-attention sub-layer.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = AddAndNorm(config.width, config.width)

    def forward(self, states: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run the sub-layer: states (N, L, width), bool (N, L) False for padding, or None; return (N, L, width)."""
        out: Tensor = self.output(self.self(states, keep), states)
        return out


class Intermediate(nn.Module):
    """First linear layer of the feed-forward sub-layer, with its GELU.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.width, config.feedforward)

    def forward(self, states: Tensor) -> Tensor:
        """Run the layer: (N, L, width) -> (N, L, feedforward)."""
        return linear(states, self.dense, "gelu")


class Layer(nn.Module):
    """Encoder layer: self-attention, then a feed-forward network.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config.feedforward, config.width)

    def forward(self, states: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run the layer: states (N, L, width), bool (N, L) False for padding, or None; return (N, L, width)."""
        states = self.attention(states, keep)
        out: Tensor = self.output(self.intermediate(states), states)
        return out


class Layers(nn.Module):
    """Stack of layers, of which some are run at a time.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, states: Tensor, keep: Tensor | None, start: int, stop: int) -> Tensor:
        """Run the layers from ``start`` up to, but not including, ``stop``; see ``Layer``."""
        for layer in self.layer[start:stop]:
            states = layer(states, keep)
        return states


class Roberta(nn.Module):
    """Parts of the encoder under the names of published weights; ``TextEncoder`` runs them.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(config)
        self.apply(_draw)


@torch.no_grad()
def _draw(module: nn.Module) -> None:
    """Initialise a module's own weights as in RoBERTa."""
    if isinstance(module, nn.Linear | nn.Embedding):
        module.weight.normal_(std=0.02)
    if isinstance(module, nn.Linear):
        module.bias.zero_()
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        module.weight[module.padding_idx].zero_()


class TextEncoder(nn.Module):
    """RoBERTa without pooling or language-model head, initialised as RoBERTa.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.roberta = Roberta(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Encode sentences with all layers. Padding is not attended to, and its states are meaningless.

        Args:
            ids: Token ids, int64 (N, L), padded with ``config.pad``.

        Returns:
            States of the tokens (N, L, width).
        """
        tokens, keep = self.embed(ids), ids != self.config.pad
        for segment in range(len(self.config.segment_ends)):
            tokens = self.run_segment(segment, tokens, keep)
        return tokens

    def embed(self, ids: Tensor) -> Tensor:
        """Embed tokens; padding becomes zero, as in fairseq.

        Args:
            ids: Token ids, int64 (N, L).

        Returns:
            (N, L, width).
        """
        embedded: Tensor = self.roberta.embeddings(ids)
        return embedded * (ids != self.config.pad).unsqueeze(-1)

    def run_segment(self, segment: int, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Run the layers of one segment.

        Args:
            segment: 0 to 3.
            tokens: (N, L, width).
            keep: bool (N, L), False for padding; default no padding.

        Returns:
            (N, L, width).
        """
        ends = self.config.segment_ends
        states: Tensor = self.roberta.encoder(tokens, keep, ends[segment - 1] if segment else 0, ends[segment])
        return states


def pad_tokens(sequences: list[Tensor], pad: int) -> Tensor:
    """Stack token sequences of different lengths, padded on the right.

    Args:
        sequences: int64 (L_i,) each.
        pad: Id of the padding token.

    Returns:
        int64 (N, max L_i).
    """
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)
