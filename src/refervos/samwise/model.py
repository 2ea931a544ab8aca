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
from refervos.samwise.cmt import Adapted, CrossModalTemporalAdapter
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.track import AdapterWindows, SamwiseTrack, stack_windows
from refervos.segmenter import FramePrediction, merge_predictions, order_of
from refervos.text.encoder import TextEncoder, pad_tokens
from refervos.text.tokenizer import Tokenizer
from refervos.weights import count_parameters

FIRST_ADAPTED_STAGE = 1
"""Adapters stand after Hiera stages 2, 3 and 4 (counted from 1), so stages 1 and 2 do not depend on the sentence."""

MEMORY_BUDGET = 2**30
"""Bytes that the sentences of one batch may take while they are encoded, unless the model is told otherwise."""

CPU_ACTIVATIONS = 128 * 2**20
"""Bytes of activations that a CPU works on at once: larger ones cost page faults and save nothing."""


@dataclass(frozen=True)
class ClipFeatures:
    """A clip after early fusion.

    Attributes:
        stages: Hiera's four stage outputs, channels last: the first (V, T, ...) for V videos, the adapted ones
            (N, T, ...).
        prompts: For each frame, the prompt tokens of each track (P, C): two padding points, the sentence, perhaps its
            motion. In clips they are the same for every frame.
        unbiased_prompts: The same for the memory-free pass.
    """

    stages: tuple[Tensor, ...]
    prompts: list[list[Tensor]]
    unbiased_prompts: list[list[Tensor]]


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
        self.memory_budget = MEMORY_BUDGET
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
        """Frames that the adapters see at once; online each frame is answered by itself."""
        return 1 if self.config.time == "online" else self.config.clip_length

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
            windows=AdapterWindows(len(self.adapters), self.config.clip_length - 1),
        )

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[SamwiseTrack], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames of one video; in clips the adapters see them together (see ``Segmenter``).

        Tracks go through in batches that fit ``memory_budget``; a single batch is answered frame by frame.
        """
        with self.inference():
            if self.config.protocol == "published" and len(pixels) == 1:
                for track in tracks:  # the released loop takes a one-frame clip for an image
                    track.restart()
            shared = self.encode_shared(pixels.unsqueeze(0))
        batches = self._batches(tracks, len(pixels))
        runs = [self._segment(shared, [tracks[index] for index in members]) for members in batches]
        if len(runs) == 1:
            yield from runs[0]
            return
        answers = [list(run) for run in runs]  # one batch after the other, so that one at a time takes memory
        for parts in zip(*answers, strict=True):
            yield merge_predictions(batches, parts)

    def _segment(self, shared: Sequence[Tensor], tracks: Sequence[SamwiseTrack]) -> Iterator[FramePrediction]:
        """Segment the frames of a clip for one batch of tracks."""
        with self.inference():
            clip = self.encode_tracks(shared, *self.text_batch(tracks), tracks)
        for time in range(shared[0].shape[1]):
            with self.inference():  # not around the yield: it would stay on in the caller's code
                frame = self.track_frame(clip, time, tracks)
            yield FramePrediction(frame.mask_logits[:, 0], frame.score, frame.switched)

    def _batches(self, tracks: Sequence[SamwiseTrack], frames: int) -> list[list[int]]:
        """Cut the tracks into batches that fit the memory budget; online, each of tracks with equal windows."""
        sam2 = self.config.sam2
        cells = (sam2.image_size // 8) ** 2
        # At the first adapter: the image tokens, what is added to them, and what the adapter makes of them.
        channels = 3 * sam2.stage_widths[1] + 2 * self.config.adapter_width
        size = max(1, self.memory_budget // (frames * cells * channels * self.compute_dtype.itemsize))
        groups: dict[int, list[int]] = {}
        for index, track in enumerate(tracks):
            groups.setdefault(track.windows.length, []).append(index)
        return [members[start : start + size] for members in groups.values() for start in range(0, len(members), size)]

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

    def encode(self, pixels: Tensor, ids: Tensor, verbs: Tensor, tracks: Sequence[SamwiseTrack] = ()) -> ClipFeatures:
        """Run image and text encoders in step, each adapting the other (SAMWISE paper, section 3.2).

        Args:
            pixels: Placed frames (V, T, 3, S, S); V divides N, and the N / V sentences about a video are neighbours.
            ids: Token ids (N, L), padded on the right.
            verbs: bool (N, L), tokens that tell motion.
            tracks: Online, the N tracks, all with windows of the same length; these move on by T frames. Not read in
                clips.

        Returns:
            The clip's features and the tracks' prompt tokens.
        """
        return self.encode_tracks(self.encode_shared(pixels), ids, verbs, tracks)

    def encode_shared(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What does not depend on the sentence: patch embedding and the first two image stages.

        Args:
            pixels: Placed frames (V, T, 3, S, S).

        Returns:
            The outputs of both stages, channels last, (V, T, ...) each; the second not adapted yet.
        """
        first, second = [], []
        for some in pixels.flatten(0, 1).split(self._frames_at_once(0)):
            first.append(self.tracker.encode_stage(0, self.tracker.embed_patches(some)))
            second.append(self.tracker.encode_stage(1, first[-1]))
        videos, frames = pixels.shape[:2]
        return together(first).unflatten(0, (videos, frames)), together(second).unflatten(0, (videos, frames))

    def encode_tracks(
        self, shared: Sequence[Tensor], ids: Tensor, verbs: Tensor, tracks: Sequence[SamwiseTrack] = ()
    ) -> ClipFeatures:
        """The rest of ``encode``, from what is shared on."""
        frames = shared[0].shape[1]
        count = ids.shape[0]
        online = self.config.time == "online"
        keep = ids != self.config.text.pad  # (N, L)
        text = self.text.run_segment(0, self.text.embed(ids), keep)  # (N, L, D)
        vision = shared[1]  # (V, T, 2g, 2g, w)
        stages = [shared[0]]
        for stage in range(1, 4):
            text = self.text.run_segment(stage, text, keep)
            if stage == FIRST_ADAPTED_STAGE:  # from here on the image depends on the sentence ...
                vision = _for_each_sentence(vision, count).flatten(0, 1)  # (N*T, 2g, 2g, w)
                if online:  # ... and the sentence on the frame
                    text, keep = (tensor.repeat_interleave(frames, dim=0) for tensor in (text, keep))
            else:
                rows = vision.split(self._frames_at_once(stage))
                vision = together([self.tracker.encode_stage(stage, some) for some in rows])
            adapted = self._adapt(stage - FIRST_ADAPTED_STAGE, vision, text, frames, keep, tracks)
            vision, text = vision + adapted.vision, text + adapted.text
            stages.append(vision.unflatten(0, (count, frames)))
        prompts, unbiased = self._prompt_tokens(text, verbs.repeat_interleave(frames, dim=0) if online else verbs)
        if not online:
            return ClipFeatures(tuple(stages), [prompts] * frames, [unbiased] * frames)
        return ClipFeatures(
            tuple(stages),
            [prompts[time::frames] for time in range(frames)],
            [unbiased[time::frames] for time in range(frames)],
        )

    def _frames_at_once(self, stage: int) -> int:
        """How many frames go through an image stage together: all on a GPU and where gradients are wanted; on a CPU so
        few that their activations stay near the cache.
        """
        if self.device.type != "cpu" or torch.is_grad_enabled():
            return 2**31
        sam2 = self.config.sam2
        widest = 4 * sam2.stage_widths[stage] * (4 * sam2.grid >> stage) ** 2  # inside the feed-forward networks
        return max(1, CPU_ACTIVATIONS // (widest * self.compute_dtype.itemsize))

    def _adapt(
        self, index: int, vision: Tensor, text: Tensor, frames: int, keep: Tensor, tracks: Sequence[SamwiseTrack]
    ) -> Adapted:
        """Run one adapter; online it looks back at the tracks' windows, and what it leaves goes into them."""
        adapter = self.adapters[index]
        if self.config.protocol == "published":
            return adapter(vision, text, frames)
        if self.config.time == "clip":
            return adapter(vision, text, frames, keep)
        past = stack_windows([track.windows for track in tracks], index)
        adapted: Adapted = adapter(vision, text, frames, keep, past=past, reach=self.config.clip_length)
        for track, inside in zip(tracks, adapted.inside, strict=True):
            track.windows.append(index, inside)
        return adapted

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
        prompts, unbiased_prompts = clip.prompts[time], clip.unbiased_prompts[time]
        groups = group_by_layout(readings, [len(prompt) for prompt in prompts])
        frames = []
        for members in groups:
            mine = features if len(members) == len(tracks) else features.take(members)
            group = [tracks[index] for index in members]
            conditioned = self.tracker.condition(mine.top, stack_readings([readings[index] for index in members]))
            frame = self._decode(conditioned, mine, torch.stack([prompts[index] for index in members]))
            unbiased = torch.stack([unbiased_prompts[index] for index in members])
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
            clip = self.encode(part, ids, verbs, tracks)
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
                "looks over time": f"{self.config.time}, {self.config.clip_length} frames",
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


def together(parts: Sequence[Tensor]) -> Tensor:
    """Join along the first axis, without copying a single part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _merge(groups: Sequence[Sequence[int]], frames: Sequence[TrackedFrame]) -> TrackedFrame:
    """Put the frames of groups of tracks back together, in the tracks' order.

    Args:
        groups: The tracks of each group.
        frames: Each group's frame, its rows in that order.

    Returns:
        One frame.
    """

    def in_order(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[order_of(groups).to(tensors[0].device)]

    scores = [frame.score for frame in frames if frame.score is not None]
    return TrackedFrame(
        mask_logits=in_order([frame.mask_logits for frame in frames]),
        score=in_order(scores) if scores else None,
        pointer=in_order([frame.pointer for frame in frames]),
        memory_logits=in_order([frame.memory_logits for frame in frames]),
        switched=in_order([frame.switched for frame in frames]),
        cme_logits={m[row]: v for m, frame in zip(groups, frames, strict=True) for row, v in frame.cme_logits.items()},
        cme_labels={m[row]: v for m, frame in zip(groups, frames, strict=True) for row, v in frame.cme_labels.items()},
    )
