"""SAMWISE: text and image encoders in step, then SAM2's loop over frames with a memory that can change its mind.

The model keeps nothing between calls: what a sentence needs remembered lives in a ``SamwiseTrack`` held by the caller.
Shapes: N tracks, T frames, L text tokens, D text width, C = SAM2's hidden width, g = grid, S = image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from refervos.errors import ConfigError, PromptError
from refervos.frames import Placement, letterbox
from refervos.pretrained import Pretrained
from refervos.prompts import Prompt
from refervos.sam2.memory import MemoryBank, group_by_layout, stack_readings
from refervos.sam2.tracker import FrameFeatures, Sam2Tracker, gate
from refervos.samwise.cme import ConditionalMemoryEncoder, cme_labels, rewrite_memory_mask
from refervos.samwise.cmt import CrossModalTemporalAdapter
from refervos.samwise.config import SamwiseConfig
from refervos.segmenter import FramePrediction
from refervos.text.encoder import TextEncoder, pad_tokens
from refervos.text.tokenizer import Tokenizer
from refervos.weights import count_parameters

FIRST_ADAPTED_STAGE = 1
"""Adapters stand after Hiera stages 2, 3 and 4 (counted from 1), so stages 1 and 2 do not depend on the sentence."""


@dataclass
class SamwiseTrack:
    """One sentence and what has to be remembered for it.

    Attributes:
        ids: Token ids int64 (L,), without padding.
        verbs: bool (L,), the tokens that tell motion.
        memory: Maps and pointers of past frames.
        frame: Frames seen so far.
        last_switch: Frame at which the CME last fired, 0 before.
    """

    ids: Tensor
    verbs: Tensor
    memory: MemoryBank
    frame: int = 0
    last_switch: int = 0

    def restart(self) -> None:
        """Forget everything but the sentence."""
        self.memory.clear()
        self.frame = self.last_switch = 0


@dataclass(frozen=True)
class ClipFeatures:
    """A clip after early fusion.

    Attributes:
        stages: Hiera's four stage outputs, channels last: the first (V, T, ...) for V videos, the adapted ones
            (N, T, ...).
        prompts: Prompt tokens of each track (P, C): two padding points, the sentence, perhaps its motion.
        unbiased_prompts: The prompt tokens of the memory-free pass.
    """

    stages: tuple[Tensor, ...]
    prompts: list[Tensor]
    unbiased_prompts: list[Tensor]


@dataclass
class ClipOutput:
    """A training clip's predictions.

    Attributes:
        mask_logits: Low-resolution logits, not gated (N, T, 4g, 4g).
        score: Object score logits (N, T), or None.
        cme_logits: The CME's decisions (K, 2), track by track, frame by frame within each.
        cme_labels: int64 (K,), the class each should have, ``IGNORED_LABEL`` where there is none.
    """

    mask_logits: Tensor
    score: Tensor | None
    cme_logits: Tensor
    cme_labels: Tensor


@dataclass
class TrackedFrame:
    """One frame of n tracks.

    Attributes:
        mask_logits: (n, 1, 4g, 4g), gated by the object score at inference.
        score: Object score logits (n,), or None.
        pointer: What the object looks like (n, C).
        memory_logits: The mask that is remembered (n, 1, S, S).
        switched: bool (n,), where the CME rewrote it.
        cme_logits: The CME's decision (2,) for each row in which it ran.
        cme_labels: What it should have been (), in training.
    """

    mask_logits: Tensor
    score: Tensor | None
    pointer: Tensor
    memory_logits: Tensor
    switched: Tensor
    cme_logits: dict[int, Tensor] = field(default_factory=dict)
    cme_labels: dict[int, Tensor] = field(default_factory=dict)


class PromptMLP(nn.Module):
    """Three linear layers that turn a text state into a prompt token (text_width -> C)."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(text_width, width), nn.Linear(width, width), nn.Linear(width, width)])

    def forward(self, state: Tensor) -> Tensor:
        """(N, text_width) -> (N, C)."""
        state = torch.relu(self.layers[0](state))
        return self.layers[2](torch.relu(self.layers[1](state)))


class Samwise(Pretrained):
    """SAMWISE over a frozen SAM2 and a frozen RoBERTa.

    Args:
        config: Every hyper-parameter.
        tokenizer: Turns sentences into token ids; may be left out where ids are given.
    """

    model_type = "samwise"

    def __init__(self, config: SamwiseConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        if tokenizer is not None and len(tokenizer) > config.text.vocabulary:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} tokens and the text encoder {config.text.vocabulary}; "
                "they do not belong together."
            )
        self.config = config
        self.tokenizer = tokenizer
        self.compute_dtype = torch.float32
        self.tracker = Sam2Tracker(config.sam2)
        self.text = TextEncoder(config.text)
        self.adapters = nn.ModuleList(
            CrossModalTemporalAdapter(
                vision_width=config.sam2.stage_widths[FIRST_ADAPTED_STAGE + index],
                text_width=config.text.width,
                width=config.adapter_width,
                heads=config.adapter_heads,
                patch=config.hsa_patches[index] if config.hsa else None,
                text_to_visual=config.text_to_visual,
                visual_to_text=config.visual_to_text,
            )
            for index in range(3)
        )
        self.text_prompt = PromptMLP(config.text.width, config.sam2.hidden)
        self.motion_prompt = PromptMLP(config.text.width, config.sam2.hidden) if config.motion_prompt else None
        self.cme = ConditionalMemoryEncoder(config.sam2.hidden, feedforward=config.cme_feedforward)
        for part in self.frozen_parts():
            part.requires_grad_(False)
        self.eval()

    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """The parts that never train: SAM2 and the text encoder."""
        return self.tracker, self.text

    def train(self, mode: bool = True) -> Samwise:
        """Switch the trained parts to training mode; the frozen ones stay in evaluation mode (no dropout)."""
        super().train(mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    # What a session asks.

    @property
    def clip_length(self) -> int:
        """Frames that the adapters see at once in the published protocol."""
        return self.config.clip_length

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.text_prompt.parameters()).device

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """Letterbox: the aspect ratio is kept, zeros to the right and below."""
        return letterbox(frame_size, self.config.sam2.image_size, self.config.short_side)

    def begin(self, prompt: Prompt) -> SamwiseTrack:
        """Start a track for a sentence.

        Raises:
            PromptError: When the prompt has no expression or has clicks, a box or a mask, or the tokenizer is missing.
        """
        if prompt.expression is None or prompt.geometric:
            raise PromptError(
                f"SAMWISE is asked with a sentence alone, not with {prompt.description}; "
                "for clicks, boxes and masks load a SAM2 checkpoint."
            )
        if self.tokenizer is None:
            raise PromptError(
                "this model has no tokenizer files, so it cannot read sentences; "
                "convert the checkpoint again with --tokenizer FOLDER."
            )
        ids, verbs = self.tokenizer.encode(
            prompt.expression,
            prompt.verbs,
            find_motion=self.config.motion_prompt,
            limit=self.config.text.max_tokens,
        )
        return self.begin_tokens(ids, verbs)

    def begin_tokens(self, ids: Sequence[int], verbs: Sequence[bool] | None = None) -> SamwiseTrack:
        """Start a track from token ids.

        Args:
            ids: Token ids with start and end tokens, without padding.
            verbs: Which tokens tell motion, default none.
        """
        flags = [False] * len(ids) if verbs is None else list(verbs)
        sam2 = self.config.sam2
        return SamwiseTrack(
            ids=torch.tensor(list(ids), dtype=torch.long),
            verbs=torch.tensor(flags, dtype=torch.bool),
            memory=MemoryBank(map_limit=sam2.memory_slots - 1, pointer_limit=sam2.pointer_limit - 1),
        )

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[SamwiseTrack], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames of one video; the adapters see them together (see ``Segmenter``)."""
        with self.inference():
            if self.config.protocol == "published" and len(pixels) == 1:
                for track in tracks:  # the released loop takes a one-frame clip for an image
                    track.restart()
            clip = self.encode(pixels.unsqueeze(0), *self.text_batch(tracks))
        for time in range(len(pixels)):
            with self.inference():  # not around the yield: it would stay on in the caller's code
                frame = self.track_frame(clip, time, tracks)
            yield FramePrediction(frame.mask_logits[:, 0], frame.score, frame.switched)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and the precision that the model computes in."""
        mixed = self.compute_dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self.device.type, self.compute_dtype, enabled=mixed):
            yield

    def text_batch(self, tracks: Sequence[SamwiseTrack]) -> tuple[Tensor, Tensor]:
        """Token ids and verb marks of N tracks, (N, L) each, padded on the right, on the model's device."""
        ids = pad_tokens([track.ids for track in tracks], self.config.text.pad)
        verbs = torch.nn.utils.rnn.pad_sequence([track.verbs for track in tracks], batch_first=True)
        return ids.to(self.device), verbs.to(self.device)

    # Early fusion: video and text, in step.

    def encode(self, pixels: Tensor, ids: Tensor, verbs: Tensor) -> ClipFeatures:
        """Run image and text encoders in step, each adapting the other (SAMWISE paper, section 3.2).

        Args:
            pixels: Placed frames (V, T, 3, S, S); V divides N, and the N / V sentences about a video are neighbours.
            ids: Token ids (N, L), padded on the right.
            verbs: bool (N, L), tokens that tell motion.

        Returns:
            The clip's features and the tracks' prompt tokens.
        """
        videos, frames = pixels.shape[:2]
        count = ids.shape[0]
        keep = ids != self.config.text.pad  # (N, L)
        adapter_keep = None if self.config.protocol == "published" else keep
        text = self.text.run_segment(0, self.text.embed(ids), keep)  # (N, L, D)
        vision = self.tracker.encode_stage(0, self.tracker.embed_patches(pixels.flatten(0, 1)))  # (V*T, 4g, 4g, w)
        stages = [vision.unflatten(0, (videos, frames))]
        for stage in range(1, 4):
            vision = self.tracker.encode_stage(stage, vision)
            text = self.text.run_segment(stage, text, keep)
            if stage == FIRST_ADAPTED_STAGE and videos != count:
                # From here on the image depends on the sentence.
                vision = _for_each_sentence(vision.unflatten(0, (videos, frames)), count).flatten(0, 1)
            vision_delta, text_delta = self.adapters[stage - FIRST_ADAPTED_STAGE](vision, text, frames, adapter_keep)
            vision, text = vision + vision_delta, text + text_delta
            stages.append(vision.unflatten(0, (count, frames)))
        prompts, unbiased = self._prompt_tokens(text, verbs)
        return ClipFeatures(tuple(stages), prompts, unbiased)

    def _prompt_tokens(self, text: Tensor, verbs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Contextual and motion prompts from the final text state (SAMWISE paper, section 3.1)."""
        padding = self.tracker.padding_points(text.shape[0])  # (N, 2, C)
        contextual = self.text_prompt(text[:, 0]).unsqueeze(1)  # (N, 1, C)
        plain = list(torch.cat([padding, contextual], dim=1))  # (3, C) each
        if self.motion_prompt is None:
            return plain, plain
        published = self.config.protocol == "published"
        prompts = []
        for tokens, state, flags in zip(plain, text, verbs, strict=True):
            moving = state[flags]  # (verbs, D)
            if len(moving):
                motion = moving[:1] if published else moving.mean(dim=0, keepdim=True)
                tokens = torch.cat([tokens, self.motion_prompt(motion)])  # (4, C)
            prompts.append(tokens)
        return prompts, plain if published else prompts

    def frame_features(self, clip: ClipFeatures, time: int) -> FrameFeatures:
        """The feature pyramid of one frame, for all N tracks."""
        features = self.tracker.pyramid([stage[:, time] for stage in clip.stages])
        count = features.top.shape[0]
        return FrameFeatures(_for_each_sentence(features.fine, count), features.middle, features.top)

    # The loop over frames.

    def track_frame(self, clip: ClipFeatures, time: int, tracks: Sequence[SamwiseTrack]) -> TrackedFrame:
        """Condition, decode, decide and remember one frame; the tracks move on by one.

        Tracks that remember equally many frames are one batch.

        Args:
            clip: The clip's features.
            time: Which frame of the clip.
            tracks: The N tracks.

        Returns:
            The frame for all N tracks, in their order.
        """
        features = self.frame_features(clip, time)
        readings = [track.memory.read(track.frame) for track in tracks]
        groups = group_by_layout(readings, [len(prompt) for prompt in clip.prompts])
        frames = []
        for members in groups:
            mine = features if len(members) == len(tracks) else features.take(members)
            group = [tracks[index] for index in members]
            conditioned = self.tracker.condition(mine.top, stack_readings([readings[index] for index in members]))
            frame = self._decode(conditioned, mine, torch.stack([clip.prompts[index] for index in members]))
            unbiased = torch.stack([clip.unbiased_prompts[index] for index in members])
            decide = self._teach_cme if self.training else self._apply_cme
            decide(frame, mine, unbiased, group)
            maps = self.tracker.remember(mine.top, frame.memory_logits, frame.score)  # (n, 64, g, g)
            for row, track in enumerate(group):
                track.memory.store(track.frame, maps[row], frame.pointer[row])
                track.frame += 1
            frames.append(frame)
        return frames[0] if len(frames) == 1 else _merge(groups, frames)

    def _decode(self, conditioned: Tensor, features: FrameFeatures, prompts: Tensor) -> TrackedFrame:
        decoded = self.tracker.decode(conditioned, features, prompts)
        # Gated at inference only, so that training sees where an object was missed.
        logits = decoded.mask_logits if self.training else gate(decoded.mask_logits, decoded.score)
        return TrackedFrame(
            mask_logits=logits,
            score=decoded.score,
            pointer=self.tracker.pointer(decoded.tokens[:, 0], decoded.score),
            memory_logits=self.tracker.upsample(logits),
            switched=torch.zeros(len(logits), dtype=torch.bool, device=logits.device),
        )

    def _due(self, track: SamwiseTrack) -> bool:
        """Whether the CME looks at this track's current frame."""
        window = self.config.cme_window
        return self.config.cme and track.frame > window and track.frame - track.last_switch >= window - 1

    def _apply_cme(
        self, frame: TrackedFrame, features: FrameFeatures, prompts: Tensor, tracks: Sequence[SamwiseTrack]
    ) -> None:
        """Where the sentence now points elsewhere, rewrite the mask that goes into memory (SAMWISE paper, 3.3).

        The mask and the pointer of this frame stay. The memory-free pass stops after the decoder's first layer unless
        it is needed.
        """
        due = [row for row, track in enumerate(tracks) if self._due(track)]
        if not due:
            return
        unbiased = self.tracker.without_memory(features.top[due])
        logits = self.cme(frame.pointer[due], self.tracker.early_token(unbiased, prompts[due]))  # (due, 2)
        frame.cme_logits = dict(zip(due, logits, strict=True))
        always = self.config.cme_decision == "always"
        fired = list(range(len(due))) if always else (logits[:, 1] > logits[:, 0]).nonzero()[:, 0].tolist()
        if not fired:
            return
        rows = [due[index] for index in fired]
        again = self.tracker.decode(unbiased[fired], features.take(rows), prompts[rows])
        seen = torch.ones(len(rows), dtype=torch.bool) if again.score is None else again.score > 0
        there = self.tracker.upsample(gate(again.mask_logits, again.score))  # (fired, 1, S, S)
        for index, row in enumerate(rows):
            if not seen[index] and self.config.protocol != "published":
                continue  # there is nothing to switch to
            mask = rewrite_memory_mask(frame.memory_logits[row], there[index], self.config.switch_memory)
            frame.memory_logits[row] = mask
            frame.switched[row] = True
            tracks[row].last_switch = tracks[row].frame

    def _teach_cme(
        self, frame: TrackedFrame, features: FrameFeatures, prompts: Tensor, tracks: Sequence[SamwiseTrack]
    ) -> None:
        """Collect the CME's decisions and what they should have been; nothing is rewritten in training."""
        due = [row for row, track in enumerate(tracks) if self._due(track)]
        if not due:
            return
        with torch.no_grad():  # only the CME learns from its decision
            unbiased = self.tracker.without_memory(features.top[due])
            again = self.tracker.decode(unbiased, features.take(due), prompts[due])
            labels = cme_labels(
                frame.memory_logits[due, 0] > 0,
                self.tracker.upsample(again.mask_logits)[:, 0] > 0,
                again.score,
                published=self.config.protocol == "published",
            )
        logits = self.cme(frame.pointer[due].detach(), again.early_tokens[:, 0])
        frame.cme_logits = dict(zip(due, logits, strict=True))
        frame.cme_labels = dict(zip(due, labels, strict=True))

    # Training.

    def forward(
        self, pixels: Tensor, ids: Tensor, verbs: Tensor | None = None, *, chunk: int | None = None
    ) -> ClipOutput:
        """A training clip for each of N sentences; memory starts empty (SAMWISE paper, section 4.1).

        Args:
            pixels: Placed frames (V, T, 3, S, S), see ``encode``.
            ids: Token ids (N, L), padded on the right.
            verbs: bool (N, L), tokens that tell motion, default none.
            chunk: Frames that the adapters see at once, with one memory throughout; default all T.

        Returns:
            Masks, object scores, and the CME's decisions with their labels.
        """
        if verbs is None:
            verbs = torch.zeros_like(ids, dtype=torch.bool)
        tracks = [self.begin_tokens(row.tolist()) for row in ids]
        frames: list[TrackedFrame] = []
        for part in pixels.split(chunk or pixels.shape[1], dim=1):
            clip = self.encode(part, ids, verbs)
            frames += [self.track_frame(clip, time, tracks) for time in range(part.shape[1])]
        decisions = [
            (frame.cme_logits[row], frame.cme_labels[row])
            for row in range(len(tracks))
            for frame in frames
            if row in frame.cme_labels
        ]
        scores = [frame.score for frame in frames if frame.score is not None]
        none = pixels.new_zeros(0, 2)
        return ClipOutput(
            mask_logits=torch.cat([frame.mask_logits for frame in frames], dim=1),
            score=torch.stack(scores, dim=1) if scores else None,
            cme_logits=torch.stack([logits for logits, _ in decisions]) if decisions else none,
            cme_labels=torch.stack([label for _, label in decisions]) if decisions else none[:, 0].long(),
        )

    # What it is.

    def describe(self) -> dict[str, Any]:
        """Parts and parameter counts."""
        parts = {
            "SAM2 (frozen)": self.tracker,
            "text encoder (frozen)": self.text,
            "CMT adapters": self.adapters,
            "text prompt MLP": self.text_prompt,
            "motion prompt MLP": self.motion_prompt,
            "CME": self.cme,
        }
        return {
            "family": "SAMWISE",
            "parts": {name: count_parameters(part) for name, part in parts.items() if part is not None},
            "total": count_parameters(self),
            "trained": sum(p.numel() for p in self.parameters() if p.requires_grad),
            "settings": {
                "image size": self.config.sam2.image_size,
                "frames of a clip": self.config.clip_length,
                "temporal attention (HSA)": self.config.hsa,
                "motion prompt": self.config.motion_prompt,
                "object score": self.config.sam2.object_score,
                "CME": f"{self.config.switch_memory}, window {self.config.cme_window}" if self.config.cme else False,
                "protocol": self.config.protocol,
                "tokenizer": self.tokenizer is not None,
            },
        }


def _for_each_sentence(videos: Tensor, count: int) -> Tensor:
    """Repeat what belongs to V videos for their sentences: (V, ...) -> (count, ...), without copying for V = 1."""
    repeats = count // videos.shape[0]
    return videos.unsqueeze(1).expand(-1, repeats, *videos.shape[1:]).flatten(0, 1)


def _merge(groups: Sequence[Sequence[int]], frames: Sequence[TrackedFrame]) -> TrackedFrame:
    """Put the frames of groups of tracks back together, in the tracks' order.

    Args:
        groups: The tracks of each group.
        frames: Each group's frame, its rows in that order.

    Returns:
        One frame.
    """
    order = [index for members in groups for index in members]
    back = torch.tensor(order).argsort()

    def together(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[back.to(tensors[0].device)]

    scores = [frame.score for frame in frames if frame.score is not None]
    return TrackedFrame(
        mask_logits=together([frame.mask_logits for frame in frames]),
        score=together(scores) if scores else None,
        pointer=together([frame.pointer for frame in frames]),
        memory_logits=together([frame.memory_logits for frame in frames]),
        switched=together([frame.switched for frame in frames]),
        cme_logits={m[row]: v for m, frame in zip(groups, frames, strict=True) for row, v in frame.cme_logits.items()},
        cme_labels={m[row]: v for m, frame in zip(groups, frames, strict=True) for row, v in frame.cme_labels.items()},
    )
