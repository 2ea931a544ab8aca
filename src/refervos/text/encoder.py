"""RoBERTa, run in segments so that image stages and text layers can adapt each other in between."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from refervos.errors import ConfigError


@dataclass(frozen=True)
class TextConfig:
    """Shape of the text encoder. Defaults: RoBERTa-base (Liu et al. 2019, arXiv 1907.11692).

    Attributes:
        vocabulary: Number of tokens.
        width: Channels of a token.
        layers: Transformer layers.
        heads: Attention heads.
        feedforward: Width of the feed-forward networks.
        positions: Longest sequence plus two (position 0 and the padding's are never used).
        pad: Id of the padding token.
        segment_ends: The layer after which each of the four segments ends; the last is ``layers``.
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
        ends = self.segment_ends
        if len(ends) != 4 or list(ends) != sorted(ends) or ends[-1] != self.layers or ends[0] < 0:
            raise ConfigError(
                f"segment_ends is {ends}; it must be four ascending layer counts that end with layers = {self.layers}."
            )

    @property
    def max_tokens(self) -> int:
        """The longest sequence that has positions."""
        return self.positions - 2


class TextEncoder(nn.Module):
    """RoBERTa without pooling or language-model head.

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        from transformers import RobertaConfig, RobertaModel

        self.config = config
        self.roberta = RobertaModel(
            RobertaConfig(
                vocab_size=config.vocabulary,
                hidden_size=config.width,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                intermediate_size=config.feedforward,
                max_position_embeddings=config.positions,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
                pad_token_id=config.pad,
            ),
            add_pooling_layer=False,
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Read sentences, all layers at once; padding is neither looked at nor meaningful in the result.

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
        """Embed tokens; padding becomes zero, as fairseq does it.

        Args:
            ids: Token ids, int64 (N, L).

        Returns:
            (N, L, width).
        """
        return self.roberta.embeddings(input_ids=ids) * (ids != self.config.pad).unsqueeze(-1)

    def run_segment(self, segment: int, tokens: Tensor, keep: Tensor) -> Tensor:
        """Run the layers of one segment.

        Args:
            segment: 0 to 3.
            tokens: (N, L, width).
            keep: bool (N, L), True where there is a token and not padding.

        Returns:
            (N, L, width).
        """
        ends = self.config.segment_ends
        bias = torch.zeros(keep.shape, dtype=tokens.dtype, device=tokens.device)
        bias = bias.masked_fill(~keep, torch.finfo(tokens.dtype).min)[:, None, None, :]  # (N, 1, 1, L)
        for layer in self.roberta.encoder.layer[(ends[segment - 1] if segment else 0) : ends[segment]]:
            tokens = layer(tokens, bias)
        return tokens


def pad_tokens(sequences: list[Tensor], pad: int) -> Tensor:
    """Stack token sequences of different lengths, padded on the right.

    Args:
        sequences: int64 (L_i,) each.
        pad: Id of the padding token.

    Returns:
        int64 (N, max L_i).
    """
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=pad)
