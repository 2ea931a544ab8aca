"""Every hyper-parameter of VideoGLaMM in one typed configuration, and the published sizes.

Where the paper (Munasinghe et al. 2025, arXiv 2411.04923) says nothing, values are those of the released code.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from refervos.errors import ConfigError
from refervos.sam2.config import LARGEST_IMAGE, SAM2_PRESETS, Sam2Config
from refervos.typed_config import LAYERS, WIDTH, check_divides, check_range

MOST_FRAMES = 1024
"""How many frames the language model may see at once."""


@dataclass(frozen=True)
class ClipConfig:
    """Shape of the image encoder, CLIP's vision transformer. Defaults: ViT-L/14 at 336 pixels.

    Attributes:
        width: Channels of a token.
        feedforward: Channels inside a block's feed-forward network.
        layers: Blocks of the published encoder. The features are the output of the last but one, so that the last is
            neither built nor loaded.
        heads: Attention heads.
        image_size: Side of the square input in pixels.
        patch: Side of a patch in pixels.
    """

    width: int = 1024
    feedforward: int = 4096
    layers: int = 24
    heads: int = 16
    image_size: int = 336
    patch: int = 14

    def __post_init__(self) -> None:
        check_range(self, width=WIDTH, feedforward=WIDTH, layers=(2, LAYERS[1]), heads=WIDTH)
        check_range(self, image_size=(1, LARGEST_IMAGE), patch=(1, LARGEST_IMAGE))
        check_divides(self, "width", "heads")
        check_divides(self, "image_size", "patch")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch


@dataclass(frozen=True)
class InternVideoConfig:
    """Shape of the video encoder, InternVideo2. Defaults: Stage2-1B, four frames at 224 pixels.

    Attributes:
        width: Channels of a token.
        feedforward: Channels inside a block's feed-forward network.
        layers: Blocks of the published encoder. The features are the output of the last but one, so that the last is
            neither built nor loaded.
        heads: Attention heads.
        image_size: Side of the square input in pixels.
        patch: Side of a patch in pixels.
        frames: Frames that attend to each other, a chunk; no information crosses chunks.
    """

    width: int = 1408
    feedforward: int = 6144
    layers: int = 40
    heads: int = 16
    image_size: int = 224
    patch: int = 14
    frames: int = 4

    def __post_init__(self) -> None:
        check_range(self, width=WIDTH, feedforward=WIDTH, layers=(2, LAYERS[1]), heads=WIDTH)
        check_range(self, image_size=(1, LARGEST_IMAGE), patch=(1, LARGEST_IMAGE), frames=(1, MOST_FRAMES))
        check_divides(self, "width", "heads")
        check_divides(self, "image_size", "patch")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch


@dataclass(frozen=True)
class PhiConfig:
    """Shape of the language model, a Phi-3. Defaults: Phi-3-mini-4k-instruct with one more token, ``[SEG]``.

    Attributes:
        vocabulary: Rows of the token table and of the head.
        width: Channels of a hidden state.
        feedforward: Channels inside a layer's feed-forward network.
        layers: Decoder layers.
        heads: Attention heads.
        positions: Longest sequence, visual tokens included.
        window: How many positions a token attends to, its own included; None for all before it. Phi-3-mini's own
            configuration says 2047, under which the released code's transformers 4.41 attended to 2048.
        pad: Id of the padding token.
        end: Ids that end an answer.
    """

    vocabulary: int = 32012
    width: int = 3072
    feedforward: int = 8192
    layers: int = 32
    heads: int = 32
    positions: int = 4096
    window: int | None = 2048
    pad: int = 0
    end: tuple[int, ...] = (32000, 32001, 32007)

    def __post_init__(self) -> None:
        check_range(self, vocabulary=(2, 2**22), width=WIDTH, feedforward=WIDTH, layers=LAYERS, heads=WIDTH)
        check_range(self, positions=(1, 2**20), window=(1, 2**20))
        check_range(self, pad=(0, self.vocabulary - 1), end=(0, self.vocabulary - 1))
        check_divides(self, "width", "heads", 2)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation of the language model's fused projections to queries, keys and values.

    Attributes:
        rank: Width of the bottleneck.
        alpha: The product of both matrices is scaled by alpha / rank.
        dropout: Share of the inputs that are dropped in training.
    """

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05

    def __post_init__(self) -> None:
        check_range(self, rank=(1, 4096), alpha=(0, 2**20), dropout=(0, 0.99))


@dataclass(frozen=True)
class VideoGlammConfig:
    """Hyper-parameters of VideoGLaMM. Defaults: the published model.

    Attributes:
        clip: The image encoder.
        internvideo: The video encoder; None leaves it out, so that the language model reads image tokens alone.
        phi: The language model.
        lora: Its low-rank adaptation; None for a model whose adaptation is merged into the weights.
        sam2: The tracker that turns prompt tokens into masks.
        seg: Id of the token ``[SEG]``.
        frames: Frames of a video that both encoders see.
        pooling: Factor by which the token grid of a frame is averaged after projection.
    """

    clip: ClipConfig = field(default_factory=ClipConfig)
    internvideo: InternVideoConfig | None = field(default_factory=InternVideoConfig)
    phi: PhiConfig = field(default_factory=PhiConfig)
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    sam2: Sam2Config = field(default_factory=lambda: as_decoder(SAM2_PRESETS["large"]))
    seg: int = 32011
    frames: int = 16
    pooling: int = 2

    def __post_init__(self) -> None:
        check_range(self, seg=(0, self.phi.vocabulary - 1), frames=(1, MOST_FRAMES), pooling=(1, LARGEST_IMAGE))
        for name, encoder in (("clip", self.clip), ("internvideo", self.internvideo)):
            if encoder is not None and encoder.grid % self.pooling:
                raise ConfigError(
                    f"pooling is {self.pooling}; {name} has {encoder.grid} patches along a side, which it must divide."
                )
        if self.internvideo is not None and self.frames % self.internvideo.frames:
            raise ConfigError(
                f"frames is {self.frames}; the video encoder asks for a multiple of {self.internvideo.frames}."
            )
        if not self.sam2.object_score:
            raise ConfigError("sam2.object_score is off; VideoGLaMM's masks through memory need it.")
        if self.visual_tokens >= self.phi.positions:
            raise ConfigError(
                f"a video takes {self.visual_tokens} tokens and phi.positions is {self.phi.positions}; "
                "no place is left for text."
            )

    @property
    def image_tokens(self) -> int:
        """Tokens of a frame by the image encoder, after pooling."""
        return (self.clip.grid // self.pooling) ** 2

    @property
    def video_tokens(self) -> int:
        """Tokens of a frame by the video encoder, after pooling."""
        return 0 if self.internvideo is None else (self.internvideo.grid // self.pooling) ** 2

    @property
    def visual_tokens(self) -> int:
        """Tokens of a video."""
        return self.frames * (self.image_tokens + self.video_tokens)


def as_decoder(sam2: Sam2Config) -> Sam2Config:
    """The same tracker as VideoGLaMM runs it: unstable single masks are replaced, memory maps kept in bfloat16."""
    return replace(sam2, multimask_stability=True, bfloat16_memory=True)


VIDEOGLAMM_PRESETS: dict[str, VideoGlammConfig] = {
    "published": VideoGlammConfig(),
    "miniature": VideoGlammConfig(
        clip=ClipConfig(width=64, feedforward=128, layers=3, heads=4, image_size=84),
        internvideo=InternVideoConfig(width=64, feedforward=279, layers=3, heads=4, image_size=56),
        phi=PhiConfig(
            vocabulary=512,
            width=96,
            feedforward=192,
            layers=3,
            heads=4,
            positions=512,
            window=128,
            end=(2,),
        ),
        lora=LoraConfig(dropout=0.0),
        sam2=as_decoder(
            Sam2Config(
                image_size=128,
                hiera_width=16,
                hiera_heads=1,
                hiera_blocks=(1, 1, 3, 1),
                hiera_windows=(8, 4, 4, 2),
                hiera_global_blocks=(3,),
                hiera_background=7,
                hidden=128,
                memory_layers=2,
                memory_feedforward=128,
                fuser_feedforward=512,
                decoder_iou_feedforward=256,
            )
        ),
        seg=511,
    ),
}
"""The published size, and one of 3.7 million parameters on which the arithmetic is compared with the released code."""
