"""VideoGLaMM: two visual encoders, a language model that writes ``[SEG]`` after a phrase, and SAM2 for its mask.

The model keeps nothing between calls: what the language model has read is in a ``Context``, what a phrase's mask needs
remembered in a ``PhraseTrack``, both held by the caller.
Shapes: F frames for the encoders, P visual tokens, S positions, D = the language model's width, N phrases,
C = SAM2's hidden width, g = SAM2's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.checkpoints.weights import count_parameters
from refervos.errors import CheckpointError, PromptError, require_installed
from refervos.model_base import VideoSegmenterBase
from refervos.ops.compilation import Stage
from refervos.ops.precision import keeping_float32
from refervos.placement import Placement
from refervos.sam2.tracker import Sam2Tracker
from refervos.segmenter import FramePrediction
from refervos.videoglamm.config import VideoGlammConfig
from refervos.videoglamm.decoding import PhraseTrack, begin_tracks, decode_frame, follow_phrases
from refervos.videoglamm.encoders import ImageEncoder, VideoEncoder, pool, projector
from refervos.videoglamm.frames import EncoderPixels, image_pixels, place_squashed, video_pixels
from refervos.videoglamm.language import (
    IGNORED,
    POSITION_BUFFERS,
    Context,
    Sampling,
    build_phi,
    embed,
    find_run,
    read_on,
    splice,
)
from refervos.videoglamm.losses import Losses, LossWeights, pad_masks, sigmoid_bce_loss, sigmoid_dice_loss
from refervos.videoglamm.quantisation import Bits, quantise

Decoding = Literal["memory", "frames"]
"""How masks are decoded: ``memory`` prompts the first frame and follows from there, ``frames`` prompts each one."""

ENCODED_AT_ONCE = 4
"""Frames or chunks that go through an encoder together."""

Rule = Callable[[Sequence[int], Tensor], Tensor]
"""Changes the logits (V,) of the next token, given the ids that the answer has so far."""


@dataclass(frozen=True)
class VisualTokens:
    """A video or an image as the language model reads it.

    Attributes:
        tokens: (P, D).
        sentinels: How many image sentinels stand for them in a prompt: one for each frame.
    """

    tokens: Tensor
    sentinels: int


@dataclass(frozen=True)
class GeneratedToken:
    """One token of an answer.

    Attributes:
        id: Its id.
        state: The final hidden state that predicted it (D,), which stands one position before it.
        prompt_token: Where the token is ``[SEG]``, the prompt token of its mask (C,); else None.
    """

    id: int
    state: Tensor
    prompt_token: Tensor | None


@dataclass(frozen=True)
class LabelledIds:
    """One conversation of a training video.

    Attributes:
        ids: Token ids with one run of image sentinels, or none.
        labels: For each id itself where it is supervised, and -100 where it is not.
    """

    ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class Example:
    """One video of a training batch.

    Attributes:
        pixels: For the encoders; None for text alone.
        conversations: About this video. Their ``[SEG]`` in order belong to the masks in order.
        frames: For SAM2, placed (T, 3, S, S).
        masks: Ground truth 0 or 1, and -1 where nothing counts, at any size (K, T, H, W).
    """

    pixels: EncoderPixels | None
    conversations: Sequence[LabelledIds]
    frames: Tensor
    masks: Tensor


class VideoGlamm(VideoSegmenterBase):
    """VideoGLaMM (Munasinghe et al. 2025, arXiv 2411.04923) over VideoGPT+ with Phi-3-mini.

    Args:
        config: Every hyper-parameter.
        tokenizer: Turns text into token ids and back; may be left out where ids are given.

    Raises:
        MissingDependencyError: When transformers, or peft for a model with low-rank adaptation, is not installed.
    """

    model_type = "videoglamm"
    config: VideoGlammConfig

    def __init__(self, config: VideoGlammConfig, tokenizer: Any = None) -> None:
        require_installed("VideoGLaMM", "videoglamm", "transformers")
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self._gradient_checkpointing = False
        self._bits: Bits | None = None
        width = config.phi.width
        self.image_encoder = ImageEncoder(config.clip)
        self.image_projector = projector(config.clip.width, width)
        self.video_encoder = None if config.internvideo is None else VideoEncoder(config.internvideo)
        self.video_projector = None if config.internvideo is None else projector(config.internvideo.width, width)
        self.language: Any = build_phi(config.phi, config.lora)
        # From the language model's state to SAM2's prompt token, the paper's L-to-V adapter.
        self.seg_projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.sam2.hidden))
        self.tracker = Sam2Tracker(config.sam2)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Switch the parts that learn to training mode; the frozen ones stay in evaluation mode (no dropout)."""
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """Encoders and tracker, which never train."""
        parts = (self.image_encoder, self.video_encoder, self.tracker)
        return tuple(part for part in parts if part is not None)

    def choose_trained(self, *, projectors: bool = False) -> dict[str, list[nn.Parameter]]:
        """Switch on the gradients of what learns: low-rank adaptation, token table, head, language-to-vision projector.

        Args:
            projectors: Whether the projectors from both encoders learn too. The paper says so; in the released code
                they are frozen by accident.

        Returns:
            The parameters, by part.
        """
        parts: dict[str, list[nn.Parameter]] = {
            "low-rank adaptation": [value for name, value in self.language.named_parameters() if ".lora_" in name],
            "token table": list(self.language.get_input_embeddings().parameters()),
            "head": list(self.language.lm_head.parameters()),
            "language-to-vision projector": list(self.seg_projector.parameters()),
        }
        if projectors:
            parts["image projector"] = list(self.image_projector.parameters())
            if self.video_projector is not None:
                parts["video projector"] = list(self.video_projector.parameters())
        self.requires_grad_(False)
        for parameters in parts.values():
            for parameter in parameters:
                parameter.requires_grad_(True)
        return {name: parameters for name, parameters in parts.items() if parameters}

    def quantise(self, bits: Bits) -> None:
        """Keep the language model's weights in fewer bits (see ``quantisation.quantise``), for inference.

        Args:
            bits: 8 or 4; they are quantised at the next move to a device.
        """
        quantise(self.language, bits)
        self.config = replace(self.config, lora=None)
        self._bits = bits

    def _write(self, folder: Path, dtype: torch.dtype | None) -> None:
        if self._bits is not None:
            raise CheckpointError(
                f"a model whose weights have {self._bits} bits is not saved; load it without that and save it then."
            )
        super()._write(folder, dtype)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether training computes the language model's layers again in the backward pass instead of keeping them."""
        return self._gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        # transformers 5.23 renames these methods; older versions know the second name alone.
        switch = "enable" if on else "disable"
        names = (f"activation_checkpointing_{switch}", f"gradient_checkpointing_{switch}")
        method = next(getattr(self.language, name) for name in names if hasattr(self.language, name))
        method(*([{"use_reentrant": False}] if on else []))
        self._gradient_checkpointing = on

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tracker.sine_top.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return self.tracker.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply a conversion or a move, but keep in float32 what the language model computes positions from."""
        buffers = self.language.named_buffers()
        exact = [value for name, value in buffers if name.rpartition(".")[2] in POSITION_BUFFERS]
        return super()._apply(keeping_float32(fn, exact), recurse)

    # See.

    def encode_video(self, frames: Sequence[Any]) -> VisualTokens:
        """Sample and encode a video for the language model.

        Args:
            frames: uint8 arrays or tensors (H, W, 3), at least one; ``config.frames`` of them are seen.

        Raises:
            FrameError: When there is no frame, or one is no picture.
        """
        return self.encode_pixels(video_pixels(frames, self.config))

    def encode_image(self, image: Any) -> VisualTokens:
        """Encode a single image for the language model, by the image encoder alone and without pooling.

        Args:
            image: uint8 array or tensor (H, W, 3).

        Raises:
            FrameError: When it is no picture.
        """
        return self.encode_pixels(image_pixels(image, self.config), single=True)

    def encode_pixels(self, pixels: EncoderPixels, *, single: bool = False) -> VisualTokens:
        """Encode preprocessed frames for the language model: image tokens of all frames, then video tokens.

        Features are projected before they are pooled.

        Args:
            pixels: F frames.
            single: Whether they are one image instead of a video.

        Returns:
            Their tokens.
        """
        pixels = pixels.to(self.device)
        image = self.image_projector(self.image_features(pixels.clip))  # (F, g*g, D)
        if single:
            return VisualTokens(image.flatten(0, 1), len(image))
        tokens = [pool(image, self.config.pooling).flatten(0, 1)]
        if self.video_projector is not None and pixels.internvideo is not None:
            video = self.video_projector(self.video_features(pixels.internvideo))  # (K, f, g*g, D)
            tokens.append(pool(video.flatten(0, 1), self.config.pooling).flatten(0, 1))
        return VisualTokens(torch.cat(tokens), len(image))

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Tensor:
        """Run the image encoder on frames (F, 3, S, S): features (F, g*g, width)."""
        parts = pixels.to(self.compute_dtype).split(ENCODED_AT_ONCE)
        return torch.cat([self.image_encoder(part) for part in parts])

    @torch.no_grad()
    def video_features(self, pixels: Tensor) -> Tensor:
        """Run the video encoder on frames (F, 3, S, S) in chunks of f: features (F / f, f, g*g, width)."""
        assert self.config.internvideo is not None
        assert self.video_encoder is not None
        chunks = pixels.to(self.compute_dtype).unflatten(0, (-1, self.config.internvideo.frames))
        return torch.cat([self.video_encoder(part) for part in chunks.split(ENCODED_AT_ONCE)])

    # Read and write.

    def read_ids(self, ids: Sequence[int], visual: VisualTokens | None) -> Tensor:
        """Read a whole conversation at once, without a cache.

        Args:
            ids: Token ids (L,) with one run of image sentinels, or none.
            visual: What stands in its place.

        Returns:
            Final hidden states after the last norm (S, D).
        """
        context = Context(cached=False)
        context.add(self._embedded(ids, visual))
        return read_on(self.language, context)

    def seg_tokens(self, ids: Sequence[int], visual: VisualTokens | None, states: Tensor) -> Tensor:
        """Find the prompt tokens of all ``[SEG]`` in a conversation that was read.

        Args:
            ids: Token ids (L,).
            visual: What stands in the place of its image sentinels.
            states: Final hidden states (S, D), maybe without the last one.

        Returns:
            (N, C), in order.
        """
        places = seg_places(ids, self.config.seg, 0 if visual is None else len(visual.tokens))
        return self.seg_projector(states[[place - 1 for place in places]])

    def _embedded(self, ids: Sequence[int], visual: VisualTokens | None) -> Tensor:
        """Embeddings of a conversation (S, D)."""
        run = find_run(ids)
        if visual is not None and len(run) not in (0, visual.sentinels):
            raise PromptError(f"the prompt has {len(run)} images; {visual.sentinels} were given.")
        return embed(self.language, ids, None if visual is None else visual.tokens)

    def start(self, ids: Sequence[int], visual: VisualTokens | None, *, cached: bool = True) -> Context:
        """Start a conversation; nothing is read yet.

        Args:
            ids: Token ids of the prompt, with a sentinel for each frame in one run, or none.
            visual: What stands in the place of the sentinels; None where there are none.
            cached: Whether keys and values are kept, which changes nothing but the time.

        Returns:
            What the language model is yet to read.

        Raises:
            PromptError: When ids and visual tokens do not fit each other, or the prompt is too long.
        """
        context = Context(cached=cached)
        with torch.inference_mode():
            context.add(self._embedded(ids, visual))
        self._check_length(context)
        return context

    def add(self, context: Context, ids: Sequence[int]) -> None:
        """Add text to a conversation, such as the next question.

        Args:
            context: The conversation; it moves on.
            ids: Token ids without images.

        Raises:
            PromptError: When there are images among them, or the conversation becomes too long; it then stays as it
                was.
        """
        if len(find_run(ids)):
            raise PromptError("an image can only be given at the start of a conversation; start another one.")
        longer = context.length + len(ids)
        if longer >= self.config.phi.positions:
            raise PromptError(self._too_long(longer))
        with torch.inference_mode():
            context.add(self._embedded(ids, None))

    def generate(
        self, context: Context, *, limit: int = 512, sampling: Sampling | None = None, rule: Rule | None = None
    ) -> Iterator[GeneratedToken]:
        """Write an answer, token by token.

        Each token is added to the conversation before it is given, so that it can be gone on with at any time.

        Args:
            context: The conversation, with something unread; it moves on.
            limit: Tokens at most.
            sampling: Draw tokens; default the likeliest each time.
            rule: Changes the logits before a token is chosen.

        Returns:
            An iterator over the tokens; the last is one of ``config.phi.end``, unless a limit ended the answer.
        """
        source = None if sampling is None else sampling.generator(self.device)
        written: list[int] = []
        while len(written) < limit and context.length < self.config.phi.positions:
            with torch.inference_mode():
                state = read_on(self.language, context)[-1]
                logits = self.language.lm_head(state)
                if rule is not None:
                    logits = rule(written, logits)
                token = int(logits.argmax()) if sampling is None or source is None else sampling.draw(logits, source)
                written.append(token)
                context.add(self._embedded([token], None))
                prompt = self.seg_projector(state) if token == self.config.seg else None
            yield GeneratedToken(token, state, prompt)
            if token in self.config.phi.end:
                return

    def _check_length(self, context: Context) -> None:
        if context.length >= self.config.phi.positions:
            raise PromptError(self._too_long(context.length))

    def _too_long(self, length: int) -> str:
        return (
            f"the conversation has {length} tokens, those of the video included, and the language model reads "
            f"{self.config.phi.positions}; ask a shorter question, or start a new conversation."
        )

    # Segment.

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """Choose how a frame of this height and width goes into SAM2's square: it fills it."""
        return place_squashed(frame_size, self.config.sam2.image_size)

    def begin_tracks(self, tokens: Tensor) -> list[PhraseTrack]:
        """Start a track for each prompt token (N, C); the first frame it is given is the one that is prompted."""
        return begin_tracks(self.tracker, tokens)

    def segment(
        self, frames: Iterable[Tensor], tokens: Tensor, *, decoding: Decoding = "memory"
    ) -> Iterator[FramePrediction]:
        """Predict the masks of phrases, frame by frame as they come.

        Args:
            frames: Placed frames (3, S, S), of any number: memory does not grow with it.
            tokens: Prompt tokens (N, C).
            decoding: Through memory from the first frame (published for inference), or each frame by itself (as in
                training), where the prompt token is given again and the object score gates nothing.

        Returns:
            An iterator over predictions of N masks; it is empty where there is no phrase.
        """
        if not len(tokens):
            return
        tracks = self.begin_tracks(tokens)
        for frame in frames:
            with torch.inference_mode():
                placed = frame.to(self.device, self.tracker.dtype)
                prediction = (
                    follow_phrases(self.tracker, placed, tracks)
                    if decoding == "memory"
                    else self._decode_alone(placed, tokens)
                )
            yield prediction

    def _decode_alone(self, frame: Tensor, tokens: Tensor) -> FramePrediction:
        features = self.tracker.pyramid(self.tracker.encode(frame.unsqueeze(0)))
        decoded = decode_frame(self.tracker, features, tokens)
        none = torch.zeros(len(tokens), dtype=torch.bool, device=self.device)
        return FramePrediction(decoded.mask_logits[:, 0], decoded.score, none)

    # Learn.

    def loss(self, batch: Sequence[Example], weights: LossWeights | None = None) -> Losses:
        """Compute the losses of a training step; masks are decoded frame by frame.

        Args:
            batch: Videos with their conversations and masks.
            weights: How the losses are added up; default as published, without the padding of masks.

        Returns:
            The losses, with gradients where the model is in training mode.
        """
        weights = weights or LossWeights()
        rows: list[tuple[LabelledIds, VisualTokens | None]] = []
        for example in batch:
            visual = None if example.pixels is None else self.encode_pixels(example.pixels)
            rows += [(conversation, visual) for conversation in example.conversations]
        states, places = self._read_rows(rows)
        text = self._text_loss(states, rows)
        tokens = self.seg_projector(torch.cat([own[at] for own, at in zip(states, places, strict=True)]))  # (N, C)
        counts = iter([len(at) for at in places])
        per_video = [sum(next(counts) for _ in example.conversations) for example in batch]
        logits, targets = [], []
        for example, own in zip(batch, tokens.split(per_video), strict=True):
            for predicted, wanted in self._paired(example, own, weights.padded_masks):
                logits.append(predicted)
                targets.append(wanted)
        masks = sum(len(part) for part in logits)
        zero = 0.0 * tokens.sum()  # keeps the projector in the graph where there is no mask
        bce = sum((sigmoid_bce_loss(x, y, masks) for x, y in zip(logits, targets, strict=True)), zero)
        dice = sum((sigmoid_dice_loss(x, y, masks) for x, y in zip(logits, targets, strict=True)), zero)
        parts = weights.text * text, weights.bce * bce, weights.dice * dice
        return Losses(parts[0] + parts[1] + parts[2], *parts)

    def _read_rows(
        self, rows: Sequence[tuple[LabelledIds, VisualTokens | None]]
    ) -> tuple[list[Tensor], list[list[int]]]:
        """Final hidden states of each row (S, D), and where in them is what predicts each ``[SEG]``."""
        embedded = [self._embedded(row.ids, visual) for row, visual in rows]
        padded = nn.utils.rnn.pad_sequence(embedded, batch_first=True)  # (B, S, D)
        lengths = torch.tensor([len(row) for row in embedded], device=padded.device)
        keep = torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1)
        output = self.language.model(inputs_embeds=padded, attention_mask=keep.long(), use_cache=False)
        states = [own[: len(row)] for own, row in zip(output.last_hidden_state, embedded, strict=True)]
        places = []
        for row, visual in rows:
            found = seg_places(row.ids, self.config.seg, 0 if visual is None else len(visual.tokens))
            places.append([place - 1 for place in found])
        return states, places

    def _text_loss(self, states: Sequence[Tensor], rows: Sequence[tuple[LabelledIds, VisualTokens | None]]) -> Tensor:
        """Cross-entropy, averaged over all supervised tokens of the batch."""
        asked, wanted = [], []
        for own, (row, visual) in zip(states, rows, strict=True):
            labels = spliced_labels(row, visual)[1:].to(own.device)
            counted = labels != IGNORED
            asked.append(own[:-1][counted])
            wanted.append(labels[counted])
        logits = self.language.lm_head(torch.cat(asked))  # (supervised, V)
        if not len(logits):
            return logits.sum()
        return F.cross_entropy(logits.float(), torch.cat(wanted))

    def _paired(self, example: Example, tokens: Tensor, padded: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Mask logits and ground truth of each frame (n, H, W): phrases and masks in order, as many as there are both.

        Args:
            example: The video.
            tokens: Prompt tokens of its phrases (N, C).
            padded: Phrases that the ground truth is cut or padded to, see ``LossWeights``.
        """
        targets = example.masks.to(self.device, torch.float32)
        if padded is not None:
            targets = pad_masks(targets, padded)
        shown = min(len(tokens), len(targets))
        if padded is None:
            targets = targets[:shown]
        if not len(targets):
            return
        for index, frame in enumerate(example.frames.to(self.device, self.tracker.dtype)):
            predicted = targets.new_zeros(len(targets), *targets.shape[2:])
            if shown:
                with torch.no_grad():
                    features = self.tracker.pyramid(self.tracker.encode(frame.unsqueeze(0)))
                decoded = decode_frame(self.tracker, features, tokens[:shown], stability=False)
                enlarged = F.interpolate(
                    decoded.mask_logits.float(), size=targets.shape[2:], mode="bilinear", align_corners=False
                )[:, 0]
                predicted = torch.cat([enlarged, predicted[shown:]])
            yield predicted, targets[:, index]

    # What it is.

    def stages_to_compile(self) -> Sequence[Stage]:
        """Those of the tracker."""
        return self.tracker.stages_to_compile()

    def describe(self) -> dict[str, Any]:
        """Parts and parameter counts."""
        parts: Mapping[str, nn.Module | None] = {
            "image encoder": self.image_encoder,
            "video encoder": self.video_encoder,
            "image projector": self.image_projector,
            "video projector": self.video_projector,
            "language model": self.language,
            "language-to-vision projector": self.seg_projector,
            "SAM2": self.tracker,
        }
        trained = [self.language.get_input_embeddings(), self.language.lm_head, self.seg_projector]
        adapted = sum(value.numel() for name, value in self.language.named_parameters() if ".lora_" in name)
        return {
            "family": "VideoGLaMM",
            "parts": {name: count_parameters(part) for name, part in parts.items() if part is not None},
            "total": count_parameters(self),
            "trained": adapted + sum(count_parameters(part) for part in trained),
            "settings": {
                "frames seen": self.config.frames,
                "visual tokens": self.config.visual_tokens,
                "longest conversation": self.config.phi.positions,
                "language model's weights": "whole" if self._bits is None else f"{self._bits} bits",
                "low-rank adaptation": "merged" if self.config.lora is None else f"rank {self.config.lora.rank}",
                "tokenizer": self.tokenizer is not None,
            },
        }


def seg_places(ids: Sequence[int], seg: int, visual: int) -> list[int]:
    """Find the positions of ``[SEG]`` after the splice.

    Args:
        ids: Token ids with one run of image sentinels, or none.
        seg: Id of ``[SEG]``.
        visual: How many visual tokens take the place of the run.

    Returns:
        Positions, without one at the very start, which no state predicts.
    """
    run = find_run(ids)
    grown = visual - len(run) if len(run) else 0
    places = [
        place + (grown if place >= run.stop and len(run) else 0) for place, token in enumerate(ids) if token == seg
    ]
    return [place for place in places if place > 0]


def spliced_labels(row: LabelledIds, visual: VisualTokens | None) -> Tensor:
    """Line the labels of a conversation up with its positions after the splice, int64 (S,)."""
    labels = torch.tensor(list(row.labels))
    return splice(row.ids, labels, None if visual is None else visual.tokens, float(IGNORED))
