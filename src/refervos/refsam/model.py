"""The RefSAM model: SAM with adapters in its image encoder, words in its mask decoder, and a track token.

The model keeps no state between calls: all state of a sentence is in a ``RefSamTrack`` held by the caller. The image
encoder does not depend on the sentence, so that all sentences about a frame share it.
Shapes: V videos, T frames, N sentences (V divides N, those about a video are adjacent), L tokens, P decoder tokens,
C = SAM's hidden width, g = grid, S = image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from refervos.checkpoints.weights import count_parameters
from refervos.errors import PromptError
from refervos.model_base import ClipOutput, TrainableModel
from refervos.ops.compilation import Stage
from refervos.placement import Placement, place_for_sam
from refervos.prompts import Prompt
from refervos.refsam.adapters import BlockAdapter
from refervos.refsam.config import RefSamConfig
from refervos.refsam.dense_attention import DenseAttention, HierarchicalDenseAttention, Laterals
from refervos.refsam.language import CrossModalMlp, SentenceVectors
from refervos.refsam.tracking import TrackTokenInteraction, TrackTokenMlp
from refervos.sam.image_encoder import BlockAdapters
from refervos.sam.model import Sam
from refervos.segmenter import FramePrediction, batch_budget
from refervos.session.state_files import check_state, check_tensor
from refervos.text.t5 import T5TextEncoder
from refervos.text.tokenizer import Tokenizer


@dataclass
class RefSamTrack:
    """State of one tracked sentence.

    Attributes:
        words: The sentence's words in the decoder's space (L, C), encoded once.
        sentence: The whole sentence in that space (C,).
        token: The track token for the next frame (C,), None before the first frame.
    """

    words: Tensor
    sentence: Tensor
    token: Tensor | None = None


@dataclass(frozen=True)
class FrameFeatures:
    """Sentence-independent features of V frames.

    Attributes:
        visual: Image features of length 1 at each pixel (V, C, g, g).
        merged: Merged intermediate features of the encoder (V, C, g, g); None if unused.
    """

    visual: Tensor
    merged: Tensor | None


@dataclass(frozen=True)
class DecodedFrame:
    """Prediction of one frame for N sentences.

    Attributes:
        mask_logits: (N, 4g, 4g).
        tokens: Track tokens for the next frame (N, C), or None without tracking.
    """

    mask_logits: Tensor
    tokens: Tensor | None


class RefSam(TrainableModel):
    """RefSAM over a frozen SAM image encoder and a frozen T5 (Li et al. 2024, arXiv 2307.00997).

    Args:
        config: All hyper-parameters.
        tokenizer: Tokenizer for sentences; not needed when token ids are passed.
    """

    model_type = "refsam"
    config: RefSamConfig

    def __init__(self, config: RefSamConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config, tokenizer)
        self.gradient_checkpointing = False
        self.sam = Sam(config.sam)
        self.text = T5TextEncoder(config.text)
        vision_width, width = config.sam.vit_width, config.sam.hidden
        inner = int(config.adapter_ratio * vision_width)
        self.adapters = nn.ModuleDict(
            {
                str(index): BlockAdapter(vision_width, inner, zero=config.zero_adapters)
                for index in config.adapted_blocks
            }
        )
        self.cross_modal = CrossModalMlp(config.text.width, width, config.mlp_layers)
        self.laterals: Laterals | None = None
        self.dense: DenseAttention | HierarchicalDenseAttention | None = None
        if config.dense == "hierarchical":
            levels = len(config.sam.vit_global_blocks) - 1
            self.laterals = Laterals(levels, vision_width, width, norm=config.lateral_norm)
            self.dense = HierarchicalDenseAttention(width, config.fusion)
        elif config.dense == "attention":
            self.dense = DenseAttention(width)
        self.tracking: TrackTokenMlp | TrackTokenInteraction | None = None
        if config.tracking == "mlp":
            self.tracking = TrackTokenMlp(width, config.tracking_layers)
        elif config.tracking == "interaction":
            self.tracking = TrackTokenInteraction(width)
        self.sam.requires_grad_(False)
        self.sam.mask_decoder.requires_grad_(True)
        self.text.requires_grad_(False)
        self.eval()

    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """Return the parts that are never trained: SAM's image and prompt encoders, and the text encoder."""
        return self.sam.vision_encoder, self.sam.prompt_encoder, self.text

    def trained_parts(self) -> dict[str, nn.Module]:
        """Return the trained parts by name."""
        parts = {
            "mask decoder": self.sam.mask_decoder,
            "adapters": self.adapters,
            "cross-modal MLP": self.cross_modal,
            "laterals": self.laterals,
            "dense attention": self.dense,
            "tracking": self.tracking,
        }
        return {name: part for name, part in parts.items() if part is not None and count_parameters(part)}

    # Parts.

    def encode_frames(self, pixels: Tensor) -> FrameFeatures:
        """Run the sentence-independent part of the model.

        Args:
            pixels: Placed frames (V, 3, S, S).
        """
        adapters: Mapping[int, BlockAdapters] = {int(name): part for name, part in self.adapters.items()}  # type: ignore[misc]
        features = self.sam.encode(pixels, adapters, gradient_checkpointing=self.gradient_checkpointing)
        # Unlike in plain SAM, the decoder's image features have unit length.
        visual = features.top / features.top.norm(dim=1, keepdim=True)
        return FrameFeatures(visual, None if self.laterals is None else self.laterals(features.between))

    def read_sentences(self, ids: Tensor) -> SentenceVectors:
        """Run the text encoder and the Cross-Modal MLP.

        Args:
            ids: Token ids (N, L), padded on the right.
        """
        return self.cross_modal(self.text(ids), ids != self.config.text.pad)

    def decode(
        self, features: FrameFeatures, sentences: SentenceVectors, tokens: Tensor | None, seen: Tensor | None = None
    ) -> DecodedFrame:
        """Predict the masks of a frame and the track tokens for the next one.

        Args:
            features: Features of V frames.
            sentences: N sentences.
            tokens: Track tokens from the previous frame (N, C), zero for tracks without one; None if no track has one.
            seen: bool (N,), True for tracks that have one; default all.
        """
        visual = features.visual.repeat_interleave(len(sentences.words) // len(features.visual), dim=0)
        prompts = sentences.words if self.config.sparse else torch.zeros_like(sentences.words)  # (N, L, C)
        keep, shift = sentences.keep, None
        if tokens is not None and self.config.tracking_token:
            prompts = torch.cat([tokens.unsqueeze(1), prompts], dim=1)  # (N, 1 + L, C)
            seen = keep.new_ones(len(keep)) if seen is None else seen
            keep = torch.cat([seen.unsqueeze(1), keep], dim=1)
        elif tokens is not None:
            shift = tokens
        decoded = self.sam.decode(visual + self._dense(visual, features, sentences), prompts, keep, shift=shift)
        next_tokens = None if self.tracking is None else self.tracking(decoded.tokens[:, 0], tokens)
        return DecodedFrame(decoded.mask_logits[:, 0], next_tokens)

    def _dense(self, visual: Tensor, features: FrameFeatures, sentences: SentenceVectors) -> Tensor:
        """Compute the embedding added to the image features (N, C, g, g), of that shape or (1, C, 1, 1)."""
        if self.config.dense == "none":
            return self.sam.no_mask()
        if self.config.dense == "sentence":
            return visual + sentences.sentence[:, :, None, None]
        rows, keep = sentences.rows(self.config.dense_sentence)
        if isinstance(self.dense, HierarchicalDenseAttention):
            assert features.merged is not None
            return self.dense(features.visual, features.merged, rows, keep)
        assert self.dense is not None
        dense: Tensor = self.dense(features.visual, rows, keep)
        return dense

    # The ``Segmenter`` contract.

    @property
    def clip_length(self) -> int:
        """1: RefSAM processes single frames."""
        return 1

    @property
    def mixes_sentences(self) -> bool:
        """False: sentences never affect each other."""
        return False

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.cross_modal.parameters()).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of weights and activations; position tables stay in float32."""
        return next(self.cross_modal.parameters()).dtype

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """Resize the long side to the square and pad with zeros on the right and below."""
        return place_for_sam(frame_size, self.config.sam.image_size, self.config.first_short_side)

    def begin(self, prompt: Prompt) -> RefSamTrack:
        """Start a track for a sentence, which is encoded here, once.

        Raises:
            PromptError: When the prompt is not just a sentence, or the tokenizer is missing.
        """
        if prompt.expression is None or prompt.geometric:
            raise PromptError(
                f"RefSAM takes sentences only and was given {replace(prompt, expression=None).description}; "
                "for clicks, boxes and masks load a SAM2 or SAMWISE model."
            )
        return self.begin_tokens(self.read(prompt.expression)[0])

    def read(self, expression: str, verbs: Sequence[str] | None = None) -> tuple[list[int], list[bool]]:
        """Encode a sentence as token ids and motion flags, which RefSAM does not use.

        Raises:
            PromptError: When the sentence is too long, or the tokenizer is missing.
        """
        if self.tokenizer is None:
            raise PromptError("this model has no tokenizer files, so it cannot read sentences; give it a T5 tokenizer.")
        return self.tokenizer.encode(expression, limit=self.config.text.max_tokens)

    def begin_tokens(self, ids: Sequence[int]) -> RefSamTrack:
        """Start a track from token ids, without padding."""
        with torch.inference_mode():
            vectors = self.read_sentences(torch.tensor([list(ids)], device=self.device))
        return RefSamTrack(words=vectors.words[0], sentence=vectors.sentence[0])

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[RefSamTrack], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames of one video, one at a time (see ``Segmenter``)."""
        for frame in pixels:
            yield self._segment_frame(frame.unsqueeze(0), tracks)

    def segment_clips(self, pixels: Tensor, tracks: Sequence[RefSamTrack]) -> Iterator[FramePrediction]:
        """Segment N clips of equal length, each with its own track (see ``BatchSegmenter``).

        Args:
            pixels: Placed frames (N, T, 3, S, S).
            tracks: One track per clip; they advance by T frames.
        """
        for frames in pixels.unbind(1):
            yield self._segment_frame(frames, tracks)

    def _segment_frame(self, frames: Tensor, tracks: Sequence[RefSamTrack]) -> FramePrediction:
        """Segment one frame for all tracks (1, 3, S, S), or one frame for each (N, 3, S, S)."""
        with torch.inference_mode():
            shared = self.encode_frames(frames) if len(frames) == 1 else None
            logits = []
            size = self._tracks_at_once(len(tracks), frames_too=shared is None)
            for start in range(0, len(tracks), size):
                rows = slice(start, start + size)
                logits.append(self._predict(shared or self.encode_frames(frames[rows]), tracks[rows]))
        mask_logits = torch.cat(logits) - self.config.mask_threshold  # a pixel is on the object above zero
        return FramePrediction(mask_logits, None, torch.zeros(len(tracks), dtype=torch.bool, device=mask_logits.device))

    def _predict(self, features: FrameFeatures, tracks: Sequence[RefSamTrack]) -> Tensor:
        """Predict mask logits (n, 4g, 4g) of a batch of tracks, which advance by one frame."""
        words = nn.utils.rnn.pad_sequence([track.words for track in tracks], batch_first=True)  # (n, L, C)
        lengths = torch.tensor([len(track.words) for track in tracks], device=words.device)
        keep = torch.arange(words.shape[1], device=words.device) < lengths.unsqueeze(1)
        sentences = SentenceVectors(words, torch.stack([track.sentence for track in tracks]), keep)
        tokens = seen = None
        if any(track.token is not None for track in tracks):
            zero = torch.zeros_like(sentences.sentence[0])
            tokens = torch.stack([zero if track.token is None else track.token for track in tracks])
            seen = torch.tensor([track.token is not None for track in tracks], device=words.device)
        decoded = self.decode(features, sentences, tokens, seen)
        if decoded.tokens is not None:
            for track, token in zip(tracks, decoded.tokens, strict=True):
                track.token = token
        return decoded.mask_logits

    def _tracks_at_once(self, count: int, *, frames_too: bool) -> int:
        """Choose how many tracks to process at once within the memory budget.

        Args:
            count: Number of tracks.
            frames_too: Whether each track has a frame of its own, which is encoded in the same batch.
        """
        if count == 1:
            return 1
        sam = self.config.sam
        # Dense maps, keys with and without positions and their projections: 8 maps; then 4 times as many pixels with a
        # quarter of the channels and 16 times as many with an eighth, each before and after its activation: 6 more.
        numbers = 14 * sam.grid**2 * sam.hidden
        if frames_too:  # inside a block: the tokens, the hidden layer of the feed-forward network twice, and the sum
            numbers = max(numbers, 10 * sam.grid**2 * sam.vit_width)
        return max(1, batch_budget(self.device, self.memory_budget) // (numbers * self.compute_dtype.itemsize))

    def check(self, track: RefSamTrack, frame_size: tuple[int, int]) -> None:
        """Do nothing: a sentence fits every frame."""

    def correct(self, track: RefSamTrack, prompt: Prompt, placement: Placement) -> FramePrediction:
        """Refuse: RefSAM takes sentences only.

        Raises:
            PromptError: Always.
        """
        raise PromptError(
            "RefSAM cannot be corrected by clicks, a box or a mask; use set_prompt to change the sentence."
        )

    def undo(self, track: RefSamTrack) -> FramePrediction | None:
        """Refuse: there are no corrections.

        Raises:
            PromptError: Always.
        """
        raise PromptError("there is no correction to undo.")

    def set_prompt(self, track: RefSamTrack, prompt: Prompt) -> None:
        """Replace the sentence of a running track; its track token is kept.

        Raises:
            PromptError: When the prompt is not just a sentence.
        """
        new = self.begin(prompt)
        track.words, track.sentence = new.words, new.sentence

    def restart(self, track: RefSamTrack) -> None:
        """Reset the track token; the sentence is kept."""
        track.token = None

    def mark_gap(self, track: RefSamTrack) -> None:
        """Do nothing: no computation assumes that frames are adjacent."""

    @property
    def state_types(self) -> tuple[type, ...]:
        """The classes that make up a track."""
        return (RefSamTrack,)

    def check_restored(self, track: RefSamTrack) -> None:
        """Check a track read from a file (see ``Segmenter``)."""
        width, dtype = self.config.sam.hidden, self.compute_dtype
        check_tensor(track.words, "a sentence", (None, width), dtype)
        check_state(0 < len(track.words) <= self.config.text.max_tokens, "a sentence is too long or empty")
        check_tensor(track.sentence, "a sentence", (width,), dtype)
        if track.token is not None:
            check_state(self.tracking is not None, "a track has a track token, which this model does not use")
            check_tensor(track.token, "a track token", (width,), dtype)

    # Training.

    @property
    def image_size(self) -> int:
        """Side of the model's square input."""
        return self.config.sam.image_size

    def upsample(self, mask_logits: Tensor) -> Tensor:
        """Upsample low-resolution mask logits (N, M, 4g, 4g) to the square (N, M, S, S)."""
        return self.sam.upsample(mask_logits)

    def forward(
        self, pixels: Tensor, ids: Tensor, verbs: Tensor | None = None, *, chunk: int | None = None
    ) -> ClipOutput:
        """Segment a training clip for each of N sentences; gradients flow through the track tokens over the whole clip.

        Args:
            pixels: Placed frames (V, T, 3, S, S).
            ids: Token ids (N, L), padded on the right.
            verbs: Ignored.
            chunk: Ignored: frames are processed one by one.

        Returns:
            Masks, without object scores.
        """
        frames = pixels.shape[1]
        features = self.encode_frames(pixels.flatten(0, 1))  # V*T
        sentences = self.read_sentences(ids)
        tokens: Tensor | None = None
        logits = []
        for time in range(frames):
            decoded = self.decode(_take(features, slice(time, None, frames)), sentences, tokens)
            tokens = decoded.tokens
            logits.append(decoded.mask_logits)
        stacked = torch.stack(logits, dim=1)  # (N, T, 4g, 4g)
        return ClipOutput(
            mask_logits=stacked,
            score=None,
            gated_logits=None if self.training else stacked - self.config.mask_threshold,
        )

    # Description.

    def stages_to_compile(self) -> Sequence[Stage]:
        """List the stages: SAM's image encoder and mask decoder."""
        return Stage(self.sam, "encode"), Stage(self.sam, "decode")

    def describe(self) -> dict[str, Any]:
        """Describe the model: parts, parameter counts and settings."""
        frozen = {
            "image encoder": self.sam.vision_encoder,
            "prompt encoder": self.sam.prompt_encoder,
            "text encoder": self.text,
        }
        trained = self.trained_parts()
        return {
            "family": "RefSAM",
            "parts": {name: count_parameters(part) for name, part in (frozen | trained).items()},
            "total": count_parameters(self),
            "trained": sum(count_parameters(part) for part in trained.values()),
            "settings": {
                "image size": self.config.sam.image_size,
                "dense attention": self.config.dense,
                "tracking": self.config.tracking,
                "mask threshold": self.config.mask_threshold,
                "tokenizer": self.tokenizer is not None,
            },
        }


def _take(features: FrameFeatures, rows: slice) -> FrameFeatures:
    """Select the features of some of the frames."""
    return FrameFeatures(features.visual[rows], None if features.merged is None else features.merged[rows])
