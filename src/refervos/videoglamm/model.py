"""VideoGLaMM: two visual encoders, a language model that generates ``[SEG]`` after a phrase, and SAM2 for the masks.

The model is stateless: the state of a conversation is a ``Context``, that of a phrase's mask a ``PhraseTrack``, both
held by the caller.
Shapes: F frames for the encoders, P visual tokens, S positions, D = the language model's width, N phrases,
C = SAM2's hidden width, g = SAM2's grid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from refervos.checkpoints.card import CardDetails
from refervos.checkpoints.weights import count_parameters
from refervos.errors import CheckpointError, PromptError, require_installed
from refervos.ops.compilation import Stage
from refervos.ops.precision import keeping_float32
from refervos.sam2.tracker import Sam2Tracker
from refervos.segmenter import FramePrediction
from refervos.text.vocabulary import FUNCTION_WORDS
from refervos.videoglamm.config import VideoGlammConfig
from refervos.videoglamm.decoding import PhraseTrack, begin_tracks, decode_frame, follow_phrases
from refervos.videoglamm.encoders import ImageEncoder, VideoEncoder, pool, projector
from refervos.videoglamm.frames import EncoderPixels, EncoderView, image_pixels, video_pixels, view_pixels
from refervos.videoglamm.language import (
    IGNORED,
    POSITION_BUFFERS,
    Context,
    Sampling,
    build_phi,
    embed,
    find_run,
    read_on,
    read_packed,
    splice,
)
from refervos.videoglamm.losses import (
    Losses,
    LossWeights,
    Mean,
    own_mean,
    pad_masks,
    sigmoid_bce_loss,
    sigmoid_dice_loss,
)
from refervos.videoglamm.quantisation import Bits, quantise
from refervos.videoglamm.referring import ReferringSegmenter

if TYPE_CHECKING:
    from refervos.videoglamm.video_conversation import VideoConversation

Decoding = Literal["memory", "frames"]
"""Mask decoding: ``memory`` prompts the first frame and propagates the mask, ``frames`` prompts every frame."""

ENCODED_AT_ONCE = 4
"""Batch size of the encoders, in frames or chunks."""

Rule = Callable[[Sequence[int], Tensor], Tensor]
"""Maps the ids generated so far and the logits (V,) of the next token to changed logits."""


@dataclass(frozen=True)
class VisualTokens:
    """Visual input of the language model: a video or an image.

    Attributes:
        tokens: (P, D).
        placeholders: Number of image placeholders in a prompt, one for each frame.
    """

    tokens: Tensor
    placeholders: int


@dataclass(frozen=True)
class GeneratedToken:
    """One generated token.

    Attributes:
        id: Token id.
        state: The final hidden state that predicted it, at the position before it (D,).
        prompt_token: SAM2 prompt token (C,) if the token is ``[SEG]``, otherwise None.
    """

    id: int
    state: Tensor
    prompt_token: Tensor | None


@dataclass(frozen=True)
class LabelledIds:
    """One conversation of a training video.

    Attributes:
        ids: Token ids with at most one run of image placeholders.
        labels: The id for supervised positions, -100 for all others.
        weights: Factor of the loss at each position; None for 1 everywhere.
        counted: Whether its supervised positions count in the mean over tokens.
    """

    ids: Sequence[int]
    labels: Sequence[int]
    weights: Sequence[float] | None = None
    counted: bool = True


@dataclass(frozen=True)
class Example:
    """One video of a training batch.

    Attributes:
        pixels: Frames for the encoders; None for text-only conversations.
        conversations: Conversations about the video; their ``[SEG]`` tokens match the masks in order.
        frames: Placed frames for SAM2 (T, 3, S, S).
        masks: Ground truth at any size, 0 or 1, and -1 for ignored pixels (K, T, H, W).
        image: True if the pixels are those of a single image, see ``encode_image``.
    """

    pixels: EncoderPixels | None
    conversations: Sequence[LabelledIds]
    frames: Tensor
    masks: Tensor
    image: bool = False


class BatchReading(NamedTuple):
    """Result of reading the conversations of a training step.

    Attributes:
        text: The cross-entropy of the answers, averaged over all supervised tokens of the batch.
        tokens: For each video the prompt tokens of its ``[SEG]`` in order (N, C).
        states: The final hidden states from which these are projected (N, D).
    """

    text: Tensor
    tokens: list[Tensor]
    states: list[Tensor]


class VideoGlamm(ReferringSegmenter):
    """VideoGLaMM (Munasinghe et al. 2025, arXiv 2411.04923) over VideoGPT+ with Phi-3-mini.

    Args:
        config: Hyper-parameters.
        tokenizer: Tokenizer for text prompts; optional if token ids are given.

    Raises:
        MissingDependencyError: When transformers, or peft for a model with LoRA, is not installed.
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
        # From hidden states to SAM2 prompt tokens (the L-to-V adapter of the paper).
        self.seg_projector = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.sam2.hidden))
        self.tracker = Sam2Tracker(config.sam2)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the training mode of the trainable parts; frozen parts stay in evaluation mode (no dropout)."""
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """Return the parts that are never trained: encoders and tracker."""
        parts = (self.image_encoder, self.video_encoder, self.tracker)
        return tuple(part for part in parts if part is not None)

    def choose_trained(self, *, projectors: bool = False) -> dict[str, list[nn.Parameter]]:
        """Enable gradients of the trainable parts: LoRA, token embeddings, head and language-to-vision projector.

        Args:
            projectors: Whether to train the projectors of both encoders, too. The paper trains them; the released code
                freezes them unintentionally.

        Returns:
            The trainable parameters by part.
        """
        parts: dict[str, list[nn.Parameter]] = {
            "LoRA": [value for name, value in self.language.named_parameters() if ".lora_" in name],
            "token embeddings": list(self.language.get_input_embeddings().parameters()),
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
        """Quantise the language model for inference (see ``quantisation.quantise``).

        Args:
            bits: 8 or 4; the weights are quantised when the model is next moved to a device.
        """
        quantise(self.language, bits)
        self.config = replace(self.config, lora=None)
        self._bits = bits

    def _write(self, folder: Path, dtype: torch.dtype | None, max_shard_size: int, card: CardDetails) -> None:
        if self._bits is not None:
            raise CheckpointError(
                f"a model with {self._bits}-bit weights cannot be saved; load it without quantisation to save it."
            )
        super()._write(folder, dtype, max_shard_size, card)

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the language model's layers are recomputed in the backward pass to save memory."""
        return self._gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        # Renamed in transformers 5.23; older versions have the second name only.
        switch = "enable" if on else "disable"
        names = (f"activation_checkpointing_{switch}", f"gradient_checkpointing_{switch}")
        method = next(getattr(self.language, name) for name in names if hasattr(self.language, name))
        method(*([{"use_reentrant": False}] if on else []))
        self._gradient_checkpointing = on

    @property
    def words(self) -> tuple[str, ...]:
        """Vocabulary of a word-level tokenizer, in lower case; empty for other tokenizers, which read any word."""
        return () if self.tokenizer is None else self.tokenizer.words

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """List the words that the tokenizer cannot read, except for function words, each once and in order."""
        unread = () if self.tokenizer is None else self.tokenizer.unknown_words(text)
        return tuple(word for word in unread if word not in FUNCTION_WORDS)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.tracker.sine_top.device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Data type of weights and activations."""
        return self.tracker.dtype

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply a conversion or move, but keep the rotary position buffers in float32."""
        buffers = self.language.named_buffers()
        exact = [value for name, value in buffers if name.rpartition(".")[2] in POSITION_BUFFERS]
        return super()._apply(keeping_float32(fn, exact), recurse)

    # Encode.

    def encode_video(self, frames: Sequence[Any]) -> VisualTokens:
        """Sample, preprocess and encode a video.

        Args:
            frames: uint8 arrays or tensors (H, W, 3), at least one; ``config.frames`` of them are used.

        Raises:
            FrameError: When there is no frame, or a frame is not an image.
        """
        return self.encode_pixels(video_pixels(frames, self.config))

    def encode_views(self, views: Sequence[EncoderView]) -> VisualTokens:
        """Sample and encode a video of resized frames for the language model.

        Args:
            views: The resized frames, at least one.
        """
        return self.encode_pixels(view_pixels(views, self.config))

    def encode_image(self, image: Any) -> VisualTokens:
        """Preprocess and encode a single image, with the image encoder alone and without pooling.

        Args:
            image: uint8 array or tensor (H, W, 3).

        Raises:
            FrameError: When it is not an image.
        """
        return self.encode_pixels(image_pixels(image, self.config), single=True)

    def encode_pixels(self, pixels: EncoderPixels, *, single: bool = False) -> VisualTokens:
        """Encode preprocessed frames: image tokens of all frames, then video tokens of all frames.

        Features are projected before they are pooled.

        Args:
            pixels: F frames.
            single: Whether they are a single image instead of a video.

        Returns:
            The visual tokens.
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

    # Generate.

    def read_ids(self, ids: Sequence[int], visual: VisualTokens | None) -> Tensor:
        """Run the language model on a whole conversation, without a cache.

        Args:
            ids: Token ids (L,) with at most one run of image placeholders.
            visual: Visual tokens for the placeholders.

        Returns:
            Final hidden states after the last norm (S, D).
        """
        context = Context(cached=False)
        context.add(self._embedded(ids, visual))
        return read_on(self.language, context)

    def seg_tokens(self, ids: Sequence[int], visual: VisualTokens | None, states: Tensor) -> Tensor:
        """Compute the SAM2 prompt tokens of all ``[SEG]`` in a conversation.

        Args:
            ids: Token ids (L,).
            visual: Visual tokens for the placeholders.
            states: Final hidden states (S, D); the last one is optional.

        Returns:
            (N, C), in order.
        """
        places = seg_places(ids, self.config.seg, 0 if visual is None else len(visual.tokens))
        return self.seg_projector(states[[place - 1 for place in places]])

    def _embedded(self, ids: Sequence[int], visual: VisualTokens | None) -> Tensor:
        """Return the embeddings of a conversation (S, D)."""
        run = find_run(ids)
        if visual is not None and len(run) not in (0, visual.placeholders):
            raise PromptError(f"the prompt has {len(run)} images; {visual.placeholders} were given.")
        return embed(self.language, ids, None if visual is None else visual.tokens)

    def start(self, ids: Sequence[int], visual: VisualTokens | None, *, cached: bool = True) -> Context:
        """Start a conversation; the prompt is processed by the first call of ``generate``.

        Args:
            ids: Token ids of the prompt, with one run of placeholders, one for each frame, or none.
            visual: Visual tokens for the placeholders; None without placeholders.
            cached: Whether to use a key-value cache; the results are the same.

        Returns:
            The state of the conversation.

        Raises:
            PromptError: When ids and visual tokens do not match, or the prompt is too long.
        """
        context = Context(cached=cached)
        with torch.inference_mode():
            context.add(self._embedded(ids, visual))
        self._check_length(context)
        return context

    def add(self, context: Context, ids: Sequence[int]) -> None:
        """Append text to a conversation, such as a follow-up question.

        Args:
            context: The state of the conversation; changed in place.
            ids: Token ids without placeholders.

        Raises:
            PromptError: When the ids contain placeholders or the conversation becomes too long; the state is then
                unchanged.
        """
        if len(find_run(ids)):
            raise PromptError("images are only possible at the start of a conversation; start a new one.")
        longer = context.length + len(ids)
        if longer >= self.config.phi.positions:
            raise PromptError(self._too_long(longer))
        with torch.inference_mode():
            context.add(self._embedded(ids, None))

    def generate(
        self, context: Context, *, limit: int = 512, sampling: Sampling | None = None, rule: Rule | None = None
    ) -> Iterator[GeneratedToken]:
        """Generate an answer, token by token.

        Each token is appended to the conversation before it is yielded, so that iteration can stop at any time.

        Args:
            context: The state of the conversation, with pending positions; changed in place.
            limit: Maximum number of tokens.
            sampling: Sampling of tokens; default greedy decoding.
            rule: Processor of the logits.

        Returns:
            An iterator over the tokens; the last one is in ``config.phi.end`` unless a limit ended the answer.
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
            f"the conversation has {length} tokens, including those of the video, and the language model takes at most "
            f"{self.config.phi.positions}; ask a shorter question, or start a new conversation."
        )

    def converse(self, video: Any, *, start: int = 0, stop: int | None = None) -> VideoConversation:
        """Start a conversation about a video, or about the last frames of a session.

        Args:
            video: A path, an image, frames or any other recorded source of ``open_source``; or a session on this model.
            start: First frame of a recording.
            stop: Frame before which to end; None for all.

        Returns:
            The conversation; ``ask`` answers questions with text and with masks for phrases.

        Raises:
            ConfigError: When the session is on another model or has no frames.
            PromptError: When the model has no tokenizer.
            VideoError: When the video cannot be read or is live.
        """
        from refervos.videoglamm.video_conversation import VideoConversation

        return VideoConversation(self, video, start=start, stop=stop)

    # Segment.

    def begin_tracks(self, tokens: Tensor) -> list[PhraseTrack]:
        """Start a track for each prompt token (N, C); its first frame is the prompted one."""
        return begin_tracks(self.tracker, tokens)

    def segment(
        self, frames: Iterable[Tensor], tokens: Tensor, *, decoding: Decoding = "memory"
    ) -> Iterator[FramePrediction]:
        """Predict the masks of phrases, frame by frame.

        Args:
            frames: Any number of placed frames (3, S, S); memory use is constant.
            tokens: Prompt tokens (N, C).
            decoding: ``memory`` propagates from the first frame (published for inference); ``frames`` decodes each
                frame on its own as in training, with the prompt token and without gating by the object score.

        Returns:
            An iterator over predictions of N masks; empty if N is 0.
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

    # Train.

    def loss(self, batch: Sequence[Example], weights: LossWeights | None = None) -> Losses:
        """Compute the losses of a training step; masks are decoded frame by frame.

        Args:
            batch: Training videos.
            weights: Weights of the losses; default those published, without the padding of masks.

        Returns:
            The losses.
        """
        weights = weights or LossWeights()
        text, tokens, _ = self.read_batch(batch)
        bce, dice = self.mask_losses(batch, tokens, weights.padded_masks)
        parts = weights.text * text, weights.bce * bce, weights.dice * dice
        return Losses(parts[0] + parts[1] + parts[2], *parts)

    def encode_examples(self, batch: Sequence[Example]) -> list[VisualTokens | None]:
        """Encode the videos of a training step; None for text-only conversations."""
        return [
            None if example.pixels is None else self.encode_pixels(example.pixels, single=example.image)
            for example in batch
        ]

    def read_batch(
        self,
        batch: Sequence[Example],
        videos: Sequence[VisualTokens | None] | None = None,
        *,
        packed: bool = False,
        mean: Mean = own_mean,
    ) -> BatchReading:
        """Read the conversations of a training step.

        Args:
            batch: Videos with their conversations.
            videos: Their visual tokens, see ``encode_examples``; default: they are encoded here.
            packed: Read the beginning that the conversations of a video share, its visual tokens, only once. The result
                is the same; of long videos and short answers it costs a fraction.
            mean: Averages over the supervised tokens; called with ``text``.

        Returns:
            The loss of the answers, and the prompt tokens with the hidden states before them.
        """
        if videos is None:
            videos = self.encode_examples(batch)
        rows = [
            (conversation, visual)
            for example, visual in zip(batch, videos, strict=True)
            for conversation in example.conversations
        ]
        states = self._packed_states(batch, videos) if packed else self._states(rows)
        text = self._text_loss(states, rows, mean)
        places = [seg_places(row.ids, self.config.seg, 0 if v is None else len(v.tokens)) for row, v in rows]
        before = torch.cat([own[[place - 1 for place in at]] for own, at in zip(states, places, strict=True)])
        tokens = self.seg_projector(before)  # (N, C)
        counts = iter([len(at) for at in places])
        per_video = [sum(next(counts) for _ in example.conversations) for example in batch]
        return BatchReading(text, list(tokens.split(per_video)), list(before.split(per_video)))

    def mask_losses(
        self,
        batch: Sequence[Example],
        tokens: Sequence[Tensor],
        padded_masks: int | None = None,
        mean: Mean = own_mean,
    ) -> tuple[Tensor, Tensor]:
        """Decode prompt tokens frame by frame, as in published training, and compare the masks with the ground truth.

        Args:
            batch: Videos with their masks.
            tokens: The prompt tokens of each (N, C).
            padded_masks: See ``LossWeights``.
            mean: Averages over masks; called with ``bce`` and ``dice``.

        Returns:
            Binary cross-entropy and dice loss, without their weights.
        """
        logits, targets = [], []
        for example, own in zip(batch, tokens, strict=True):
            for predicted, wanted in self._paired(example, own, padded_masks):
                logits.append(predicted)
                targets.append(wanted)
        zero = 0.0 * torch.cat(list(tokens)).sum()  # keeps the projector in the graph where there is no mask
        masks = zero.new_tensor(sum(len(part) for part in logits))
        bce = sum((sigmoid_bce_loss(x, y, 1) for x, y in zip(logits, targets, strict=True)), zero)
        dice = sum((sigmoid_dice_loss(x, y, 1) for x, y in zip(logits, targets, strict=True)), zero)
        return mean("bce", bce, masks), mean("dice", dice, masks)

    def _states(self, rows: Sequence[tuple[LabelledIds, VisualTokens | None]]) -> list[Tensor]:
        """Final hidden states of each row (S, D)."""
        embedded = [self._embedded(row.ids, visual) for row, visual in rows]
        padded = nn.utils.rnn.pad_sequence(embedded, batch_first=True)  # (B, S, D)
        lengths = torch.tensor([len(row) for row in embedded], device=padded.device)
        keep = torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1)
        output = self.language.model(inputs_embeds=padded, attention_mask=keep.long(), use_cache=False)
        return [own[: len(row)] for own, row in zip(output.last_hidden_state, embedded, strict=True)]

    def _packed_states(self, batch: Sequence[Example], videos: Sequence[VisualTokens | None]) -> list[Tensor]:
        """The same, of rows whose beginnings up to the visual tokens are read once for each video."""
        beginnings, tails = [], []
        for example, visual in zip(batch, videos, strict=True):
            ids = [list(conversation.ids) for conversation in example.conversations]
            shared = find_run(ids[0]).stop
            if any(other[:shared] != ids[0][:shared] for other in ids):
                raise PromptError(
                    "the conversations of a video must begin alike, up to its images; read them without packing."
                )
            beginnings.append(self._embedded(ids[0][:shared], visual))
            tails.append([self._embedded(own[shared:], None) for own in ids])
        return [states for row in read_packed(self.language, beginnings, tails) for states in row]

    def _text_loss(
        self, states: Sequence[Tensor], rows: Sequence[tuple[LabelledIds, VisualTokens | None]], mean: Mean
    ) -> Tensor:
        """Return the cross-entropy, averaged over all supervised tokens."""
        supervised, wanted, factors = [], [], list[float]()
        number = 0
        for own, (row, visual) in zip(states, rows, strict=True):
            labels = spliced_labels(row, visual)[1:].to(own.device)
            counted = labels != IGNORED
            supervised.append(own[:-1][counted])
            wanted.append(labels[counted])
            number += len(wanted[-1]) if row.counted else 0
            weights = [1.0] * len(row.labels) if row.weights is None else row.weights
            pairs = zip(weights[1:], row.labels[1:], strict=True)  # nothing predicts the first
            factors += [weight for weight, label in pairs if label != IGNORED]
        logits = self.language.lm_head(torch.cat(supervised))  # (supervised, V)
        entropy = F.cross_entropy(logits.float(), torch.cat(wanted), reduction="none")
        total = (entropy * torch.tensor(factors).to(entropy)).sum()
        return mean("text", total, total.new_tensor(float(number)))

    def _paired(self, example: Example, tokens: Tensor, padded: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield mask logits and ground truth of each frame (n, H, W); phrases and masks are matched in order.

        Args:
            example: The video.
            tokens: Prompt tokens of its phrases (N, C).
            padded: Number of phrases to which the ground truth is truncated or padded, see ``LossWeights``.
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

    # Describe.

    def stages_to_compile(self) -> Sequence[Stage]:
        """List the stages of the tracker."""
        return self.tracker.stages_to_compile()

    def describe(self) -> dict[str, Any]:
        """Return the parts and their parameter counts."""
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
                "frames": self.config.frames,
                "visual tokens": self.config.visual_tokens,
                "longest conversation": self.config.phi.positions,
                "quantisation": "none" if self._bits is None else f"{self._bits} bits",
                "LoRA": "merged" if self.config.lora is None else f"rank {self.config.lora.rank}",
                "tokenizer": self.tokenizer is not None,
            },
        }


def seg_places(ids: Sequence[int], seg: int, visual: int) -> list[int]:
    """Find the positions of ``[SEG]`` after the insertion of visual tokens.

    Args:
        ids: Token ids with at most one run of image placeholders.
        seg: Id of ``[SEG]``.
        visual: Number of visual tokens.

    Returns:
        Positions; a ``[SEG]`` at position 0 is skipped, because no state predicts it.
    """
    run = find_run(ids)
    grown = visual - len(run) if len(run) else 0
    places = [
        place + (grown if place >= run.stop and len(run) else 0) for place, token in enumerate(ids) if token == seg
    ]
    return [place for place in places if place > 0]


def spliced_labels(row: LabelledIds, visual: VisualTokens | None) -> Tensor:
    """Return the labels of a conversation after the insertion of visual tokens, int64 (S,)."""
    labels = torch.tensor(list(row.labels))
    return splice(row.ids, labels, None if visual is None else visual.tokens, float(IGNORED))
