"""The SAMWISE model: interleaved text and image encoders, SAM2, and the CME; ``streamer.py`` has the loop over frames.

The model keeps no state between calls: all state of a sentence is in a ``SamwiseTrack`` held by the caller.
Shapes: N tracks, T frames, L text tokens, D text width, C = SAM2's hidden width, g = grid, S = image size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from refervos.checkpoints.weights import count_parameters
from refervos.errors import PromptError
from refervos.model_base import ClipOutput, TrainableModel
from refervos.ops.compilation import Stage
from refervos.ops.splitting import must_stay_whole
from refervos.placement import Placement
from refervos.prompts import Prompt
from refervos.sam2.correction import correct
from refervos.sam2.tracker import FrameFeatures, Sam2Tracker
from refervos.samwise.cme import ConditionalMemoryEncoder, cme_labels
from refervos.samwise.cmt import Adapted, CrossModalTemporalAdapter, for_each_sentence
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.motion import MotionFeatures, compare_frames, small_frames
from refervos.samwise.streamer import ClipFeatures, SamwiseStreamer, TrackedFrame, TrackGroup
from refervos.samwise.track import Lookback, SamwiseTrack, TrackWindows
from refervos.segmenter import FramePrediction, batch_budget
from refervos.text.encoder import TextEncoder
from refervos.text.tokenizer import Tokenizer

FIRST_ADAPTED_STAGE = 1
"""First Hiera stage (from 0) with an adapter after it; this stage and the one before do not depend on the sentence."""

CPU_ACTIVATIONS = 128 * 2**20
"""Bytes of activations processed at once on a CPU: larger ones cause page faults and save no time."""


@dataclass
class SamwiseOutput(ClipOutput):
    """Predictions of a training clip, with the CME's decisions.

    Attributes:
        cme_logits: Decision logits of the CME (K, 2), by track, then by frame.
        cme_labels: int64 (K,), target classes, ``IGNORED_LABEL`` for decisions without one.
    """

    cme_logits: Tensor
    cme_labels: Tensor


class PromptMLP(nn.Module):
    """MLP of three linear layers from a text state to a prompt token (text_width -> C)."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(text_width, width), nn.Linear(width, width), nn.Linear(width, width)])

    def forward(self, state: Tensor) -> Tensor:
        """Project text states: (N, text_width) -> (N, C)."""
        state = torch.relu(self.layers[0](state))
        return self.layers[2](torch.relu(self.layers[1](state)))


class Samwise(SamwiseStreamer, TrainableModel):
    """SAMWISE over a frozen SAM2 and a frozen RoBERTa.

    Args:
        config: All hyper-parameters.
        tokenizer: Tokenizer for sentences; not needed when token ids are passed.
    """

    model_type = "samwise"
    config: SamwiseConfig
    tracker: Sam2Tracker

    def __init__(self, config: SamwiseConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(config, tokenizer)
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
        self.motion_features = MotionFeatures(config.adapter_width) if config.motion_features else None
        self.text_prompt = PromptMLP(config.text.width, config.sam2.hidden)
        self.motion_prompt = PromptMLP(config.text.width, config.sam2.hidden) if config.motion_prompt else None
        self.cme = ConditionalMemoryEncoder(config.sam2.hidden, feedforward=config.cme_feedforward)
        for part in self.frozen_parts():
            part.requires_grad_(False)
        self.eval()

    def frozen_parts(self) -> tuple[nn.Module, ...]:
        """Return the parts that are never trained: SAM2 and the text encoder."""
        return self.tracker, self.text

    def trained_parts(self) -> dict[str, nn.Module]:
        """Return the trained parts by name."""
        parts = {
            "adapters": self.adapters,
            "motion features": self.motion_features,
            "text prompt": self.text_prompt,
            "motion prompt": self.motion_prompt,
            "CME": self.cme if self.config.cme else None,
        }
        return {name: part for name, part in parts.items() if part is not None}

    # The ``Segmenter`` contract.

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.text_prompt.parameters()).device

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type of weights and activations; position tables stay in float32."""
        return next(self.text_prompt.parameters()).dtype

    def segment_clips(self, pixels: Tensor, tracks: Sequence[SamwiseTrack]) -> Iterator[FramePrediction]:
        """Segment one clip for each track, in batches that fit ``memory_budget`` (see ``BatchSegmenter``).

        Batching shares the overhead of starting operations: on one CPU core the miniature needs a fifth less time per
        frame in clips of eight, and half the time online.

        Raises:
            PromptError: When a new track has clicks, a box or a mask.
        """
        if any(track.first_frame_prompt is not None for track in tracks):
            raise PromptError("batches of clips take sentences only; open a session for clicks, a box or a mask.")
        return self._segment(pixels, tracks)

    def correct(self, track: SamwiseTrack, prompt: Prompt, placement: Placement) -> FramePrediction:
        """Segment the last frame again from clicks, a box or a mask (see ``sam2.correction``).

        From then on the image is encoded without the adapters, and the sentence still acts as a prompt token: on
        synthetic clips whose sentence had been misread, that kept a mean IoU of 0.70 with the clicked object over the
        next ten frames, against 0.28 with the adapters.
        """
        with self.inference():
            return correct(self.tracker, track, prompt, placement, self.calibrated)

    def switch_logits(self, tracked: Tensor, unbiased: Tensor) -> Tensor:
        """Run the CME."""
        logits: Tensor = self.cme(tracked, unbiased)
        return logits

    # Early fusion of video and text.

    def encode(self, pixels: Tensor, ids: Tensor, verbs: Tensor, tracks: Sequence[SamwiseTrack] = ()) -> ClipFeatures:
        """Run the image and text encoders interleaved, each adapting the other (SAMWISE paper, section 3.2).

        Args:
            pixels: Placed frames (V, T, 3, S, S); V divides N, and the N / V sentences about a video are adjacent.
            ids: Token ids (N, L), padded on the right.
            verbs: bool (N, L), tokens of motion words.
            tracks: Online, the N tracks, all with windows of the same length; the windows advance by T frames. Unused
                in clips.

        Returns:
            The clip's features and the tracks' prompt tokens.
        """
        return self.encode_tracks(self.encode_shared(pixels), ids, verbs, tracks)

    def encode_shared(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """See ``SamwiseStreamer``; runs a few frames at a time and keeps only the required outputs."""
        videos, frames = pixels.shape[:2]
        fine, second = [], []
        for frames_part in pixels.flatten(0, 1).split(self._frames_at_once(0)):
            first = self.tracker.encode_stage(0, self.tracker.embed_patches(frames_part))
            fine.append(self.tracker.fine_level(first))
            second.append(self.tracker.encode_stage(1, first))
        shared = [cat_if_several(part).unflatten(0, (videos, frames)) for part in (fine, second)]
        return (*shared, small_frames(pixels)) if self.motion_features is not None else tuple(shared)

    def encode_tracks(
        self, shared: Sequence[Tensor], ids: Tensor, verbs: Tensor, tracks: Sequence[SamwiseTrack] = ()
    ) -> ClipFeatures:
        """Run the sentence-dependent rest of ``encode`` (see ``SamwiseStreamer``)."""
        fine, second, *small = shared
        frames, count = fine.shape[1], len(ids)
        padded = self._padded(ids, tracks)
        windows = TrackWindows(tracks, len(second)) if tracks and self.config.time == "online" else None
        stages, text = self.encode_stages(
            second,
            ids,
            padded=padded,
            text=self._initial_text(ids, padded, tracks),
            windows=windows,
            motion=self._motion_of(small[0], windows) if small else None,
            unadapted=[row for row, track in enumerate(tracks) if track.manually_corrected],
        )
        features = [
            FrameFeatures(
                for_each_sentence(fine[:, time], count),
                *self.tracker.coarse_levels(*(stage[:, time] for stage in stages)),
            )
            for time in range(frames)
        ]
        if self.config.time == "clip":
            prompts, unbiased = self._prompt_tokens(text, verbs)
            return ClipFeatures(features, [prompts] * frames, [unbiased] * frames)
        prompts, unbiased = self._prompt_tokens(text, verbs.repeat_interleave(frames, dim=0))
        return ClipFeatures(
            features,
            [prompts[time::frames] for time in range(frames)],
            [unbiased[time::frames] for time in range(frames)],
        )

    def encode_stages(
        self,
        second: Tensor,
        ids: Tensor,
        *,
        padded: bool = True,
        text: Tensor | None = None,
        windows: Lookback | None = None,
        motion: Tensor | None = None,
        unadapted: Sequence[int] = (),
    ) -> tuple[list[Tensor], Tensor]:
        """Run the later image stages and text layers, each adapting the other.

        Args:
            second: Output of the second image stage (V, T, ...), see ``encode_shared``.
            ids: Token ids (N, L), padded on the right.
            padded: Whether the ids may contain padding; False is faster.
            text: Text states at the input of the first adapter (N, L, D); default computed from the token ids.
            windows: Online, the earlier frames for the adapters, to which these frames are added; default no earlier
                frames, and nothing is stored.
            motion: Movement features (V*T, 2g, 2g, A), if the model has them.
            unadapted: Rows of sentences for which the adapters do not change the image.

        Returns:
            The three adapted stages, channels last (N, T, ...), and the final text state (N, L, D), online (N*T, L, D).
        """
        frames, count = second.shape[1], ids.shape[0]
        online = self.config.time == "online"
        keep = self._keep_mask(ids, padded)  # (N, L)
        text = self._encode_text(ids, keep) if text is None else text  # (N, L, D)
        vision = second.flatten(0, 1)  # (V*T, 2g, 2g, w)
        stages = []
        for stage in range(FIRST_ADAPTED_STAGE, 4):
            if stage > FIRST_ADAPTED_STAGE:
                text = self.text.run_segment(stage, text, keep)
                parts = vision.split(self._frames_at_once(stage))
                vision = cat_if_several([self.tracker.encode_stage(stage, part) for part in parts])
            elif online:  # from here on the text depends on the frame
                text = text.repeat_interleave(frames, dim=0)
                keep = None if keep is None else keep.repeat_interleave(frames, dim=0)
            adapted = self._adapt(stage - FIRST_ADAPTED_STAGE, vision, text, frames, keep, windows, motion)
            motion = None
            for row in unadapted:
                adapted.vision.unflatten(0, (count, frames))[row] = 0
            if stage == FIRST_ADAPTED_STAGE:  # from here on the image depends on the sentence
                vision = for_each_sentence(second, count).flatten(0, 1)  # (N*T, 2g, 2g, w)
            # In place without gradients: the changes are as large as the frames themselves.
            vision = vision + adapted.vision if torch.is_grad_enabled() else adapted.vision.add_(vision)
            text = text + adapted.text
            del adapted
            stages.append(vision.unflatten(0, (count, frames)))
        return stages, text

    def _adapt(
        self,
        index: int,
        vision: Tensor,
        text: Tensor,
        frames: int,
        keep: Tensor | None,
        windows: Lookback | None,
        motion: Tensor | None,
    ) -> Adapted:
        """Run one adapter; online it attends to the windows and adds its tokens to them."""
        adapter = self.adapters[index]
        if self.config.protocol == "published":  # attends to padding like text
            return adapter(vision, text, frames)
        if self.config.time == "clip":
            return adapter(vision, text, frames, keep, motion=motion)
        past = None if windows is None else windows.before(index)
        adapted: Adapted = adapter(vision, text, frames, keep, past=past, reach=self.config.clip_length, motion=motion)
        if windows is not None:
            windows.keep(index, adapted.inside)
        return adapted

    def _motion_of(self, small: Tensor, windows: TrackWindows | None) -> Tensor:
        """Compute movement features of small frames (V, T, 3, s, s); earlier ones are in the tracks' windows."""
        assert self.motion_features is not None
        compared = compare_frames(small, None if windows is None else windows.pictures())
        if windows is not None:
            windows.keep_pictures(small)
        motion: Tensor = self.motion_features(compared)
        return motion

    def _padded(self, ids: Tensor, tracks: Sequence[SamwiseTrack]) -> bool:
        """Return False if token ids (N, L) are known, without a transfer from the device, to contain no padding."""
        pad = self.config.text.pad
        return not tracks or any(len(track.ids) != ids.shape[1] or pad in track.ids.tolist() for track in tracks)

    def _keep_mask(self, ids: Tensor, padded: bool) -> Tensor | None:
        """Return a mask that is False on padding, bool (N, L); None without padding, which is faster."""
        return ids != self.config.text.pad if padded else None

    def _initial_text(self, ids: Tensor, padded: bool, tracks: Sequence[SamwiseTrack]) -> Tensor:
        """Compute text states at the input of the first adapter (N, L, D), cached in running tracks."""
        # As published, padding is attended to like text, so that the lengths of other sentences matter.
        if torch.is_grad_enabled() or not tracks or (self.mixes_sentences and len(tracks) > 1):
            return self._encode_text(ids, self._keep_mask(ids, padded))
        for track in tracks:
            if track.text is None:
                own = track.ids.to(self.device).unsqueeze(0)  # (1, L)
                track.text = self._encode_text(own, self._keep_mask(own, self._padded(own, [track])))[0]
        states = [track.text for track in tracks if track.text is not None]
        return states[0].unsqueeze(0) if len(states) == 1 else pad_sequence(states, batch_first=True)

    def _encode_text(self, ids: Tensor, keep: Tensor | None) -> Tensor:
        """Run the text segments before the first adapter: (N, L) -> (N, L, D)."""
        text = self.text.run_segment(0, self.text.embed(ids), keep)
        return self.text.run_segment(FIRST_ADAPTED_STAGE, text, keep)

    def _frames_at_once(self, stage: int) -> int:
        """Choose how many frames to run through an image stage at once.

        All, with gradients or while a graph is traced; otherwise on a GPU as many as the memory budget allows, and on a
        CPU so few that their activations fit the cache.
        """
        if must_stay_whole():
            return 2**31
        sam2 = self.config.sam2
        widest = 4 * sam2.stage_widths[stage] * (4 * sam2.grid >> stage) ** 2  # inside the feed-forward networks
        one = widest * self.compute_dtype.itemsize
        if self.device.type == "cpu":
            return max(1, CPU_ACTIVATIONS // one)
        # Besides the widest activations: their activated copy, queries, keys and values, and the tokens themselves.
        return max(1, batch_budget(self.device, self.memory_budget) // (3 * one))

    def _prompt_tokens(self, text: Tensor, verbs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Compute contextual and motion prompts from the final text state (SAMWISE paper, section 3.1)."""
        padding = self.tracker.padding_points(text.shape[0])  # (N, 2, C)
        contextual = self.text_prompt(text[:, 0]).unsqueeze(1)  # (N, 1, C)
        plain = list(torch.cat([padding, contextual], dim=1))  # (3, C) each
        if self.motion_prompt is None:
            return plain, plain
        published = self.config.protocol == "published"
        prompts = []
        for tokens, state, flags in zip(plain, text, verbs.tolist(), strict=True):
            moving = [word for word, flag in zip(state, flags, strict=True) if flag]  # (D,) each
            if moving:
                motion = moving[0] if published else torch.stack(moving).mean(dim=0)
                tokens = torch.cat([tokens, self.motion_prompt(motion.unsqueeze(0))])  # (4, C)
            prompts.append(tokens)
        return prompts, plain if published else prompts

    # Training.

    @property
    def image_size(self) -> int:
        """Side of the model's square input."""
        return self.config.sam2.image_size

    def upsample(self, mask_logits: Tensor) -> Tensor:
        """Upsample low-resolution mask logits (N, M, 4g, 4g) to the square (N, M, S, S)."""
        return self.tracker.upsample(mask_logits)

    def _decide(self, groups: Sequence[TrackGroup]) -> None:
        """Apply the CME; in training, collect its decisions and their labels instead."""
        if not self.training:
            super()._decide(groups)
            return
        for group in groups:
            self._collect_cme(group)

    def _collect_cme(self, group: TrackGroup) -> None:
        """Collect the CME's decisions and their labels, for training."""
        frame, rows = group.frame, group.cme_rows
        if group.unbiased is None:
            return
        with torch.no_grad():  # only the CME is trained by its decisions
            memory_free = self.tracker.decode(group.unbiased, group.features.take(rows), group.unbiased_prompts[rows])
            labels = cme_labels(
                frame.memory_logits[rows, 0] > 0,
                self.tracker.upsample(memory_free.mask_logits)[:, 0] > 0,
                memory_free.score,
                published=self.config.protocol == "published",
            )
        logits = self.cme(frame.pointer[rows].detach(), memory_free.early_tokens[:, 0])
        frame.cme_logits = dict(zip(rows, logits, strict=True))
        frame.cme_labels = dict(zip(rows, labels, strict=True))

    def forward(
        self,
        pixels: Tensor,
        ids: Tensor,
        verbs: Tensor | None = None,
        *,
        chunk: int | None = None,
        final_frames: int | None = None,
    ) -> SamwiseOutput:
        """Segment a training clip for each of N sentences, starting with empty memory (SAMWISE paper, section 4.1).

        Args:
            pixels: Placed frames (V, T, 3, S, S), see ``encode``.
            ids: Token ids (N, L), padded on the right.
            verbs: bool (N, L), tokens of motion words, default none.
            chunk: Frames that the adapters process at once, with one memory throughout; default all T.
            final_frames: Predict only this many frames at the end, each by itself and without memory; default all, each
                with the memory of the earlier ones.

        Returns:
            Masks, object scores, and the CME's decisions with their labels.
        """
        if verbs is None:
            verbs = torch.zeros_like(ids, dtype=torch.bool)
        tracks = [self.begin_tokens(row.tolist()) for row in ids]
        frames: list[TrackedFrame] = []
        length, number = pixels.shape[1], 0
        for part in pixels.split(chunk or length, dim=1):
            clip = self.encode(part, ids, verbs, tracks)
            for time in range(part.shape[1]):
                number += 1
                if final_frames is None or length - number < final_frames:
                    remember = final_frames is None and number < length
                    frames.append(self.track_frame(clip, time, tracks, remember=remember))
        decisions = [
            (frame.cme_logits[row], frame.cme_labels[row])
            for row in range(len(tracks))
            for frame in frames
            if row in frame.cme_labels
        ]
        scores = [frame.object_score for frame in frames if frame.object_score is not None]
        none = pixels.new_zeros(0, 2)
        return SamwiseOutput(
            mask_logits=torch.cat([frame.ungated for frame in frames], dim=1),
            gated_logits=None if self.training else torch.cat([frame.mask_logits for frame in frames], dim=1),
            score=torch.stack(scores, dim=1) if scores else None,
            cme_logits=torch.stack([logits for logits, _ in decisions]) if decisions else none,
            cme_labels=torch.stack([label for _, label in decisions]) if decisions else none[:, 0].long(),
        )

    # Description.

    def stages_to_compile(self) -> Sequence[Stage]:
        """List the tracker's stages, and those bound by kernel launches on a GPU: text, adapters and small heads."""
        small = [*self.adapters, self.text_prompt, self.motion_prompt, self.cme]
        return (
            *self.tracker.stages_to_compile(),
            Stage(self.text, "embed", launches_only=True),
            Stage(self.text, "run_segment", launches_only=True),
            *(Stage(part, "forward", launches_only=True) for part in small if part is not None),
        )

    def describe(self) -> dict[str, Any]:
        """Describe the model: parts, parameter counts and settings."""
        parts = {
            "SAM2 (frozen)": self.tracker,
            "text encoder (frozen)": self.text,
            "CMT adapters": self.adapters,
            "motion features": self.motion_features,
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
                "temporal window": f"{self.config.time}, {self.config.clip_length} frames",
                "temporal attention (HSA)": self.config.hsa,
                "motion prompt": self.config.motion_prompt,
                "object score": self.config.sam2.object_score,
                "CME": f"{self.config.switch_memory}, window {self.config.cme_window}" if self.config.cme else False,
                "protocol": self.config.protocol,
                "tokenizer": self.tokenizer is not None,
            },
        }


def cat_if_several(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate along the first axis; a single part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
