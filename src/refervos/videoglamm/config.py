"""Every hyper-parameter of VideoGLaMM in one typed configuration, and the published sizes.

Values that the paper (Munasinghe et al. 2025, arXiv 2411.04923) does not give are those of the released code.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from refervos.errors import ConfigError
from refervos.sam2.config import LARGEST_IMAGE, SAM2_PRESETS, Sam2Config
from refervos.typed_config import LAYERS, WIDTH, check_divides, check_range

MOST_FRAMES = 1024
"""Maximum number of frames in the language model's input."""


@dataclass(frozen=True)
class EncoderConfig:
    """Shape of a vision transformer over the patches of a square.

    Attributes:
        width: Channels of a token.
        feedforward: Channels inside a block's feed-forward network.
        layers: Blocks of the published encoder. The features are the output of the second-to-last block; the last
            is neither built nor loaded.
        heads: Attention heads.
        image_size: Side of the square input in pixels.
        patch: Side of a patch in pixels.
    """

    width: int
    feedforward: int
    layers: int
    heads: int
    image_size: int
    patch: int

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
class ClipConfig(EncoderConfig):
    """Shape of the image encoder, CLIP's vision transformer. Defaults: ViT-L/14 at 336 pixels."""

    width: int = 1024
    feedforward: int = 4096
    layers: int = 24
    heads: int = 16
    image_size: int = 336
    patch: int = 14


@dataclass(frozen=True)
class InternVideoConfig(EncoderConfig):
    """Shape of the video encoder, InternVideo2. Defaults: Stage2-1B, four frames at 224 pixels.

    Attributes:
        frames: Frames per chunk. Attention is joint over a chunk; chunks are independent.
    """

    width: int = 1408
    feedforward: int = 6144
    layers: int = 40
    heads: int = 16
    image_size: int = 224
    patch: int = 14
    frames: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, frames=(1, MOST_FRAMES))


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
        window: Number of positions that a token attends to, including its own; None for all earlier positions. The
            configuration of Phi-3-mini has 2047, which transformers 4.41 of the released code treats as 2048.
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
    """LoRA of the language model's fused query, key and value projections.

    Attributes:
        rank: Rank r of the update.
        alpha: Scale of the update; it is multiplied by alpha / rank.
        dropout: Dropout probability of its input in training.
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
        internvideo: The video encoder; None for a model with the image encoder alone.
        phi: The language model.
        lora: LoRA of the language model; None if it is merged into the weights.
        sam2: The mask decoder and tracker.
        seg: Id of the token ``[SEG]``.
        frames: Frames sampled from a video for both encoders.
        pooling: Side of the average pooling over a frame's token grid, after projection.
        clip_length: Frames that a session passes at once by default, for the language model to read before it points an
            object out. A clip as long as the video reproduces the published inference on recordings.
        ask_every: Frames after which a session asks the language model again for an object; None to ask once, and
            again only for objects that it did not find. Not in the published model.
        retry_every: Frames after which a session asks again for an object that SAM2 does not see in the prompted frame;
            None to keep what SAM2 predicts then, as published.
        reads: Frames that a session's language model reads before it points an object out: ``around``, the prompted
            one, the rest of the clip and those before; ``onwards``, the prompted one and the rest of the clip, for a
            model whose prompt tokens mean a place in the first frame that it reads.
        question: Published question about an expression: that of referring segmentation, or that of visual grounding.
    """

    clip: ClipConfig = field(default_factory=ClipConfig)
    internvideo: InternVideoConfig | None = field(default_factory=InternVideoConfig)
    phi: PhiConfig = field(default_factory=PhiConfig)
    lora: LoraConfig | None = field(default_factory=LoraConfig)
    sam2: Sam2Config = field(default_factory=lambda: as_decoder(SAM2_PRESETS["large"]))
    seg: int = 32011
    frames: int = 16
    pooling: int = 2
    clip_length: int = 16
    ask_every: int | None = None
    retry_every: int | None = None
    reads: Literal["around", "onwards"] = "around"
    question: Literal["referring", "grounding"] = "referring"

    def __post_init__(self) -> None:
        check_range(self, seg=(0, self.phi.vocabulary - 1), frames=(1, MOST_FRAMES), pooling=(1, LARGEST_IMAGE))
        check_range(self, **dict.fromkeys(("clip_length", "ask_every", "retry_every"), (1, 2**20)))
        for name, encoder in (("clip", self.clip), ("internvideo", self.internvideo)):
            if encoder is not None and encoder.grid % self.pooling:
                raise ConfigError(
                    f"pooling is {self.pooling}; it must divide the {encoder.grid} patches along a side of {name}."
                )
        if self.internvideo is not None and self.frames % self.internvideo.frames:
            raise ConfigError(
                f"frames is {self.frames}; it must be a multiple of the video encoder's {self.internvideo.frames}."
            )
        if not self.sam2.object_score:
            raise ConfigError("sam2.object_score is off; VideoGLaMM needs the object score to propagate masks.")
        if self.visual_tokens >= self.phi.positions:
            raise ConfigError(
                f"a video takes {self.visual_tokens} tokens and phi.positions is {self.phi.positions}; "
                "no positions are left for text."
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
    """Return the tracker as VideoGLaMM uses it: with the stability fallback and with memory maps in bfloat16."""
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
"""The published size, and a miniature of 3.7 million parameters for tests of numerical parity."""
