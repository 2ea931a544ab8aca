"""T5's encoder: a sentence's tokens, each in the light of the others (Raffel et al. 2020, arXiv 1910.10683)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from refervos.errors import ConfigError


@dataclass(frozen=True)
class T5Config:
    """Shape of a T5 encoder. Defaults: t5-3b, whose encoder has 1,240,909,824 parameters.

    Attributes:
        vocabulary: Number of tokens that have an embedding; the tokenizer may have fewer.
        width: Channels of a token (``d_model``).
        head_width: Channels of a query, key or value of one head (``d_kv``); T5 does not tie it to ``width``.
        heads: Attention heads.
        layers: Transformer layers.
        feedforward: Width of the feed-forward networks.
        position_buckets: Number of learnt biases for the distance between two tokens.
        position_distance: Distances from here on share the last bucket.
        gated: Whether the feed-forward networks are gated GELU (T5 v1.1, Flan-T5) and not ReLU (T5).
        pad: Id of the padding token.
        max_tokens: The longest sentence. Distances need no limit; it is the length that T5 was trained with.
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
"""The published sizes by their names on the hub (arXiv 1910.10683, section 3.7)."""


class T5TextEncoder(nn.Module):
    """T5 without its decoder, and without dropout: T5 v1.1 was trained without, and RefSAM keeps it frozen.

    New weights are drawn as T5 draws them (its attention does not divide by the root of the head's width, the queries'
    weights are that much smaller instead).

    Args:
        config: The encoder's shape.
    """

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        import transformers

        self.config = config
        # The stack alone: the model around it registers the same embedding under a second name.
        self.t5 = transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=config.vocabulary,
                d_model=config.width,
                d_kv=config.head_width,
                num_heads=config.heads,
                num_layers=config.layers,
                d_ff=config.feedforward,
                relative_attention_num_buckets=config.position_buckets,
                relative_attention_max_distance=config.position_distance,
                feed_forward_proj="gated-gelu" if config.gated else "relu",
                layer_norm_epsilon=1e-6,
                dropout_rate=0.0,
                pad_token_id=config.pad,
            )
        ).encoder

    def forward(self, ids: Tensor) -> Tensor:
        """Read sentences; padding is neither looked at nor meaningful in the result.

        Args:
            ids: Token ids, int64 (N, L), padded with ``config.pad``.

        Returns:
            States of the tokens (N, L, width).
        """
        states: Tensor = self.t5(input_ids=ids, attention_mask=(ids != self.config.pad).long()).last_hidden_state
        return states
