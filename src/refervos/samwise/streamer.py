"""SAMWISE's loop over frames: condition, decode, decide, remember. All state is in the tracks.

The parts can be PyTorch modules (``model.py``) or exported graphs.
Shapes: N tracks, n of them in one group, T frames, C = SAM2's hidden width, g = grid, S = image size.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from refervos.errors import PromptError
from refervos.placement import Placement, letterbox
from refervos.prompts import Prompt
from refervos.sam2.correction import STATE_TYPES, check_restored, keep_last, undo
from refervos.sam2.mask_decoder import Decoded
from refervos.sam2.memory import MemoryBank, MemoryReading, group_by_layout, stack_readings
from refervos.sam2.prompting import check_geometry, check_within
from refervos.sam2.tracker import FrameFeatures, gate
from refervos.samwise.cme import rewrite_memory_mask
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.track import AdapterWindows, SamwiseTrack
from refervos.segmenter import FramePrediction, batch_budget, merge_predictions, order_of
from refervos.session.state_files import check_state, check_tensor
from refervos.text.encoder import pad_tokens
from refervos.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ClipFeatures:
    """Clip after early fusion.

    Attributes:
        features: The feature pyramid of each frame for all N tracks.
        prompts: For each frame, the prompt tokens of each track (P, C): two padding points, the contextual prompt and,
            if any, the motion prompt. In clips they are the same for every frame.
        unbiased_prompts: Likewise for the memory-free pass.
    """

    features: list[FrameFeatures]
    prompts: list[list[Tensor]]
    unbiased_prompts: list[list[Tensor]]


@dataclass
class TrackedFrame:
    """Prediction of one frame for n tracks.

    Attributes:
        mask_logits: (n, 1, 4g, 4g), gated by the presence at inference.
        ungated: Mask logits before gating.
        score: Object score logits (n,), or None; calibrated at inference, so that they are presence logits.
        object_score: Raw object score logits (n,), or None; memory is gated by their sign.
        pointer: Object pointers (n, C).
        memory_logits: Mask logits to be stored in memory (n, 1, S, S).
        switched: bool (n,), True where the CME changed the stored memory.
        cme_logits: Decision logits of the CME (2,) for each row in which it ran.
        cme_labels: Their target labels (), in training.
    """

    mask_logits: Tensor
    ungated: Tensor
    score: Tensor | None
    object_score: Tensor | None
    pointer: Tensor
    memory_logits: Tensor
    switched: Tensor
    cme_logits: dict[int, Tensor] = field(default_factory=dict)
    cme_labels: dict[int, Tensor] = field(default_factory=dict)


@dataclass
class TrackGroup:
    """Group of n tracks processed as one batch, because their memories have the same layout.

    Attributes:
        tracks: The tracks.
        features: The frame's features (n, ...).
        unbiased_prompts: Prompt tokens of the memory-free pass (n, P, C).
        cme_rows: Rows in which the CME runs.
        unbiased: Their features without memory (K, C, g, g), None when there are no such rows.
        early: Their mask tokens after the decoder's first layer, without memory (K, C), None in training.
        frame: Prediction of the frame.
        remembered: For each track, whether to store the frame in its memory.
    """

    tracks: list[SamwiseTrack]
    features: FrameFeatures
    unbiased_prompts: Tensor
    cme_rows: list[int]
    unbiased: Tensor | None
    early: Tensor | None
    frame: TrackedFrame
    remembered: list[bool]


class StreamedTracker(Protocol):
    """Functions of ``Sam2Tracker`` that the loop over frames calls."""

    def condition(self, top: Tensor, memory: MemoryReading) -> Tensor:
        """See ``Sam2Tracker.condition``."""
        ...

    def without_memory(self, top: Tensor) -> Tensor:
        """See ``Sam2Tracker.without_memory``."""
        ...

    def decode(
        self,
        conditioned: Tensor,
        features: FrameFeatures,
        sparse: Tensor,
        *,
        extra: tuple[Tensor, Tensor] | None = None,
    ) -> Decoded:
        """See ``Sam2Tracker.decode``."""
        ...

    def pointer(self, token: Tensor, score: Tensor | None) -> Tensor:
        """See ``Sam2Tracker.pointer``."""
        ...

    def remember(self, top: Tensor, mask_logits: Tensor, score: Tensor | None) -> Tensor:
        """See ``Sam2Tracker.remember``."""
        ...

    def upsample(self, mask_logits: Tensor) -> Tensor:
        """See ``Sam2Tracker.upsample``."""
        ...


class SamwiseStreamer(ABC):
    """SAMWISE's implementation of ``Segmenter``; subclasses provide the parts.

    Attributes:
        config: All hyper-parameters.
        tokenizer: Tokenizer for sentences, or None.
        tracker: SAM2, from conditioning to remembering.
        training: Whether the model is in training mode.
        memory_budget: Memory budget of one batch in bytes; None to derive it from the device's free memory.
    """

    config: SamwiseConfig
    tokenizer: Tokenizer | None
    tracker: StreamedTracker
    training: bool
    memory_budget: int | None

    # The parts.

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the computation."""

    @property
    @abstractmethod
    def compute_dtype(self) -> torch.dtype:
        """Type of weights and activations."""

    @abstractmethod
    def encode_shared(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Run the sentence-independent part: patch embedding and the first two image stages.

        Args:
            pixels: Placed frames (V, T, 3, S, S).

        Returns:
            The finest level of the feature pyramid (V, T, C/8, 4g, 4g); the output of the second stage, channels last,
            before its adapter (V, T, 2g, 2g, w); and small frames (V, T, 3, S/2, S/2) if the model has movement
            features.
        """

    @abstractmethod
    def encode_tracks(
        self, shared: Sequence[Tensor], ids: Tensor, verbs: Tensor, tracks: Sequence[SamwiseTrack] = ()
    ) -> ClipFeatures:
        """Run the rest of early fusion, for N sentences.

        Args:
            shared: Output of ``encode_shared``; V divides N, and the N / V sentences about a video are adjacent.
            ids: Token ids (N, L), padded on the right.
            verbs: bool (N, L), tokens of motion words.
            tracks: Online, the N tracks, all with windows of the same length; the windows advance by T frames.
        """

    @abstractmethod
    def switch_logits(self, tracked: Tensor, unbiased: Tensor) -> Tensor:
        """Predict whether the sentence now refers to another object, see ``ConditionalMemoryEncoder.forward``."""

    @abstractmethod
    def correct(self, track: SamwiseTrack, prompt: Prompt, placement: Placement) -> FramePrediction:
        """Segment the track's last frame again from clicks, a box or a mask (see ``Segmenter``)."""

    # The ``Segmenter`` contract.

    def inference(self) -> AbstractContextManager[None]:
        """Return a context that disables gradients."""
        return torch.inference_mode()

    @property
    def clip_length(self) -> int:
        """Frames that the adapters process at once; 1 online."""
        return 1 if self.config.time == "online" else self.config.clip_length

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """Letterbox the frame: keep its aspect ratio, pad with zeros on the right and below."""
        return letterbox(frame_size, self.config.sam2.image_size, self.config.short_side)

    def begin(self, prompt: Prompt) -> SamwiseTrack:
        """Start a track for a sentence, optionally with clicks, a box or a mask on its first frame.

        Raises:
            PromptError: When the prompt has no expression, or the tokenizer is missing.
        """
        track = self.begin_tokens(*self._read_prompt(prompt))
        if prompt.geometric:
            check_geometry(prompt)
            track.first_frame_prompt = prompt
        return track

    def _read_prompt(self, prompt: Prompt) -> tuple[list[int], list[bool]]:
        """Encode a prompt's sentence as token ids and motion flags."""
        if prompt.expression is None:
            raise PromptError(
                f"SAMWISE needs a sentence and was given {prompt.description} alone; "
                "for clicks, boxes and masks without a sentence load a SAM2 checkpoint."
            )
        return self.read(prompt.expression, prompt.verbs)

    def read(self, expression: str, verbs: Sequence[str] | None = None) -> tuple[list[int], list[bool]]:
        """Encode a sentence as token ids and a motion flag per token.

        Args:
            expression: The sentence.
            verbs: Its motion words; found by spaCy when not given, if the model uses them.

        Raises:
            PromptError: When the sentence is too long, a verb is not in it, or the tokenizer is missing.
        """
        if self.tokenizer is None:
            raise PromptError(
                "this model has no tokenizer files, so it cannot read sentences; "
                "convert the checkpoint again with --tokenizer FOLDER."
            )
        return self.tokenizer.encode(
            expression, verbs, find_motion=self.config.motion_prompt, limit=self.config.text.max_tokens
        )

    def begin_tokens(self, ids: Sequence[int], verbs: Sequence[bool] | None = None) -> SamwiseTrack:
        """Start a track from token ids.

        Args:
            ids: Token ids with start and end tokens, without padding.
            verbs: Motion flag of each token, default all False.
        """
        sam2 = self.config.sam2
        return SamwiseTrack(
            ids=torch.tensor(list(ids), dtype=torch.long),
            verbs=torch.tensor([False] * len(ids) if verbs is None else list(verbs), dtype=torch.bool),
            memory=MemoryBank(map_limit=sam2.memory_slots - 1, pointer_limit=sam2.pointer_limit - 1),
            windows=AdapterWindows(len(self.config.hsa_patches), self.config.clip_length - 1),
        )

    def set_prompt(self, track: SamwiseTrack, prompt: Prompt) -> None:
        """Replace the sentence of a running track; its memory stays until the CME switches.

        Raises:
            PromptError: When the prompt is not a sentence.
        """
        if prompt.geometric:
            raise PromptError("the new prompt of a track must be a sentence; use correct for clicks, boxes and masks.")
        new = self.begin_tokens(*self._read_prompt(prompt))
        track.ids, track.verbs, track.text, track.manually_corrected = new.ids, new.verbs, None, False

    def restart(self, track: SamwiseTrack) -> None:
        """Reset the track, keeping only its sentence."""
        track.restart()

    def mark_gap(self, track: SamwiseTrack) -> None:
        """Clear the adapters' windows, because the next frame does not follow the last one."""
        track.windows.clear()

    def undo(self, track: SamwiseTrack) -> FramePrediction | None:
        """Undo the last correction (see ``sam2.correction.undo``)."""
        return undo(track)

    @property
    def mixes_sentences(self) -> bool:
        """True in the published protocol, where the padding of shorter sentences leaks into the adapters."""
        return self.config.protocol == "published"

    def check_restored(self, track: SamwiseTrack) -> None:
        """Check a track read from a file (see ``Segmenter``)."""
        text, dtype = self.config.text, self.compute_dtype
        check_tensor(track.ids, "a sentence", (None,), torch.int64)
        known = bool(((track.ids >= 0) & (track.ids < text.vocabulary)).all())
        check_state(known and 0 < len(track.ids) <= text.max_tokens, "a sentence has invalid token ids or length")
        check_tensor(track.verbs, "the motion flags", (len(track.ids),), torch.bool)
        if track.text is not None:
            check_tensor(track.text, "the text states of a sentence", (len(track.ids), text.width), dtype)
        check_state(0 <= track.last_switch <= track.frame, "a switch belongs to a frame that the track has not seen")
        if track.first_frame_prompt is not None:
            check_state(
                track.first_frame_prompt.geometric and track.frame == 0,
                "a track has an invalid prompt for its first frame",
            )
            track.first_frame_prompt.check()
            check_geometry(track.first_frame_prompt)
        track.windows.check_restored(self.config, dtype)
        check_restored(track, self.config.sam2, dtype)

    @property
    def state_types(self) -> tuple[type, ...]:
        """The classes that make up a track."""
        return (SamwiseTrack, AdapterWindows, *STATE_TYPES)

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[SamwiseTrack], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames of one video, which in clips the adapters process jointly (see ``Segmenter``).

        Tracks are processed in batches that fit ``memory_budget``; a single batch is segmented frame by frame.

        Raises:
            PromptError: Immediately, before any track changes, when a new track's click or box lies outside the first
                frame or its mask has another size.
        """
        for track in tracks:
            self.check(track, placements[0].frame_size)
        return self._segment(pixels.unsqueeze(0), tracks, placements)

    def check(self, track: SamwiseTrack, frame_size: tuple[int, int]) -> None:
        """Check that the prompt for a track's first frame fits that frame (see ``Segmenter``)."""
        if track.first_frame_prompt is not None:
            check_within(track.first_frame_prompt, frame_size)

    def _segment(
        self, clips: Tensor, tracks: Sequence[SamwiseTrack], placements: Sequence[Placement] = ()
    ) -> Iterator[FramePrediction]:
        """Segment one clip for all N tracks, or a clip for each (V, T, 3, S, S), in batches of tracks.

        The placements are used for tracks that start with clicks, a box or a mask.
        """
        length = clips.shape[1]
        with self.inference():
            if self.config.protocol == "published" and length == 1:
                for track in tracks:  # the released loop treats a one-frame clip as an image
                    track.restart()
            shared = self.encode_shared(clips)
        batches = self._batches(tracks, length)
        several = len(clips) > 1 and len(batches) > 1
        runs = (
            self._segment_batch(
                clips[members] if several else clips,
                [part[members] for part in shared] if several else shared,
                [tracks[index] for index in members],
                placements,
            )
            for members in batches
        )
        if len(batches) == 1:
            yield from next(runs)
            return
        predictions = [list(run) for run in runs]  # one batch after the other, to save memory
        for parts in zip(*predictions, strict=True):
            yield merge_predictions(batches, parts)

    def _segment_batch(
        self,
        clips: Tensor,
        shared: Sequence[Tensor],
        tracks: Sequence[SamwiseTrack],
        placements: Sequence[Placement],
    ) -> Iterator[FramePrediction]:
        with self.inference():
            clip = self.encode_tracks(shared, *self.text_batch(tracks), tracks)
        for time in range(clips.shape[1]):
            with self.inference():  # not around the yield, or it would stay active in the caller's code
                frame = self.track_frame(clip, time, tracks)
                prediction = FramePrediction(frame.mask_logits[:, 0], frame.score, frame.switched)
                keep_last(tracks, clips[:, time], prediction)
                for row, track in enumerate(tracks):
                    if track.first_frame_prompt is not None:
                        corrected = self.correct(track, track.first_frame_prompt, placements[time])
                        track.first_frame_prompt = track.before = None
                        prediction.mask_logits[row] = corrected.mask_logits[0]
                        if prediction.score is not None and corrected.score is not None:
                            prediction.score[row] = corrected.score[0]
            yield prediction

    def _batches(self, tracks: Sequence[SamwiseTrack], frames: int) -> list[list[int]]:
        """Split the tracks into batches that fit the memory budget; online, by the length of their windows."""
        sam2 = self.config.sam2
        cells = (sam2.image_size // 8) ** 2
        # At the first adapter: the image tokens, their change, and the tokens inside the adapter.
        channels = 3 * sam2.stage_widths[1] + 2 * self.config.adapter_width
        one = frames * cells * channels * self.compute_dtype.itemsize
        size = max(1, batch_budget(self.device, self.memory_budget) // one) if len(tracks) > 1 else 1
        groups: dict[tuple[int, int], list[int]] = {}
        for index, track in enumerate(tracks):
            groups.setdefault(track.windows.lengths, []).append(index)
        return [members[start : start + size] for members in groups.values() for start in range(0, len(members), size)]

    def text_batch(self, tracks: Sequence[SamwiseTrack]) -> tuple[Tensor, Tensor]:
        """Stack token ids (N, L) on the model's device, padded on the right, and motion flags (N, L) in main memory.

        The flags stay in main memory because they determine the number of prompt tokens.
        """
        ids = pad_tokens([track.ids for track in tracks], self.config.text.pad)
        verbs = torch.nn.utils.rnn.pad_sequence([track.verbs for track in tracks], batch_first=True)
        return ids.to(self.device, non_blocking=True), verbs

    # The loop over frames.

    def track_frame(
        self, clip: ClipFeatures, time: int, tracks: Sequence[SamwiseTrack], *, remember: bool = True
    ) -> TrackedFrame:
        """Condition, decode, decide and remember one frame; the tracks advance by one.

        Tracks with the same memory layout are one batch. At inference there is one synchronising read from the device
        for all tracks, and a second when the CME switches.

        Args:
            clip: The clip's features.
            time: Index of the frame in the clip.
            tracks: The N tracks.
            remember: Store the frame in memory; unnecessary when no frame follows.

        Returns:
            The prediction for all N tracks, in their order.
        """
        features = clip.features[time]
        readings = [track.memory.read(track.frame) for track in tracks]
        members = group_by_layout(readings, [len(prompt) for prompt in clip.prompts[time]])
        groups = []
        for indices in members:
            group_features = features if len(indices) == len(tracks) else features.take(indices)
            prompts, unbiased_prompts = (
                torch.stack([each[index] for index in indices])
                for each in (clip.prompts[time], clip.unbiased_prompts[time])
            )  # (n, P, C) each
            cme_rows = [row for row, index in enumerate(indices) if self.cme_applies(tracks[index])]
            rows = _rows(cme_rows, len(indices))
            unbiased = self.tracker.without_memory(group_features.top[rows]) if cme_rows else None
            conditioned = self.tracker.condition(
                group_features.top, stack_readings([readings[index] for index in indices])
            )
            # The memory-free pass stops after the decoder's first layer, which runs once for both passes.
            extra = None if unbiased is None or self.training else (unbiased, unbiased_prompts[rows])
            decoded = self.tracker.decode(conditioned, group_features, prompts, extra=extra)
            groups.append(
                TrackGroup(
                    tracks=[tracks[index] for index in indices],
                    features=group_features,
                    unbiased_prompts=unbiased_prompts,
                    cme_rows=cme_rows,
                    unbiased=unbiased,
                    early=decoded.extra_early_token,
                    frame=self._tracked_frame(decoded),
                    remembered=[True] * len(indices),
                )
            )
        self._decide(groups)
        for group in groups:
            self._remember(group, remember)
        frames = [group.frame for group in groups]
        return frames[0] if len(frames) == 1 else _merge(members, frames)

    def _tracked_frame(self, decoded: Decoded) -> TrackedFrame:
        """Gate, calibrate and upsample the decoder's output."""
        # Only at inference, so that training losses are computed on ungated logits.
        score = object_score = decoded.score
        gated_logits = remembered = decoded.mask_logits
        if not self.training:
            score, margin = self.calibrated(decoded.score)
            gated_logits, remembered = gate(decoded.mask_logits, margin), gate(decoded.mask_logits, object_score)
        return TrackedFrame(
            mask_logits=gated_logits,
            ungated=decoded.mask_logits,
            score=score,
            object_score=object_score,
            pointer=self.tracker.pointer(decoded.tokens[:, 0], object_score),
            memory_logits=self.tracker.upsample(remembered),
            switched=torch.zeros(len(gated_logits), dtype=torch.bool, device=gated_logits.device),
        )

    def calibrated(self, score: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Calibrate object scores (n,).

        Returns:
            Presence logits and their margins over the threshold, (n,) each.
        """
        if score is None:
            return None, None
        exact = score.to(torch.promote_types(score.dtype, torch.float32))
        presence = exact * self.config.presence_scale + self.config.presence_shift
        threshold = self.config.presence_threshold
        return presence, presence - math.log(threshold / (1 - threshold))

    def cme_applies(self, track: SamwiseTrack) -> bool:
        """Return whether the CME runs on this track's current frame."""
        window = self.config.cme_window
        return self.config.cme and track.frame > window and track.frame - track.last_switch >= window - 1

    def _decide(self, groups: Sequence[TrackGroup]) -> None:
        """Change the stored memory where the sentence now refers to another object (SAMWISE paper, 3.3).

        The memory-free pass is completed only for tracks that switch. As published, the mask and the pointer of this
        frame stay, and the other object is added to the stored mask. With the memory policy ``switch`` the prediction
        is replaced by the memory-free one, and the earlier memory is cleared. With policies other than ``published``,
        frames in which no object is seen are not stored.
        """
        candidates = []
        for group in groups:
            if group.early is not None and group.unbiased is not None:
                tracked = group.frame.pointer[_rows(group.cme_rows, len(group.tracks))]  # (K, C)
                logits = self.switch_logits(tracked, group.early)  # (K, 2)
                group.frame.cme_logits = dict(zip(group.cme_rows, logits, strict=True))
                candidates.append((group, group.cme_rows, group.unbiased, logits))
        gating = self.config.memory_policy != "published"
        gated = [group for group in groups if gating and group.frame.object_score is not None]
        always = self.config.cme_decision == "always"
        flags = [group.frame.object_score > 0 for group in gated if group.frame.object_score is not None]
        flags += [] if always else [logits[:, 1] > logits[:, 0] for *_, logits in candidates]
        decisions = _read_back(flags)
        for group, seen in zip(gated, decisions, strict=False):
            group.remembered = seen
        fired = []
        for index, (group, cme_rows, unbiased, _) in enumerate(candidates):
            fires = [True] * len(cme_rows) if always else decisions[len(gated) + index]
            places = [place for place, fire in enumerate(fires) if fire]
            if places:
                fired.append((group, [cme_rows[place] for place in places], unbiased[_rows(places, len(cme_rows))]))
        self._switch(fired)

    def _switch(self, fired: Sequence[tuple[TrackGroup, list[int], Tensor]]) -> None:
        """Apply the switches of rows in which the CME fired, given their features without memory."""
        if not fired:
            return
        memory_free = [
            self._tracked_frame(self.tracker.decode(unbiased, group.features.take(rows), group.unbiased_prompts[rows]))
            for group, rows, unbiased in fired
        ]
        seen: list[list[bool]] = [[True] * len(rows) for _, rows, _ in fired]
        if self.config.protocol != "published" and self.config.sam2.object_score:
            seen = _read_back([each.object_score > 0 for each in memory_free if each.object_score is not None])
        for (group, rows, _), other, visible in zip(fired, memory_free, seen, strict=True):
            for index, (row, is_seen) in enumerate(zip(rows, visible, strict=True)):
                if is_seen:  # otherwise there is nothing to switch to
                    self._switch_track(group, row, other, index)

    def _switch_track(self, group: TrackGroup, row: int, other: TrackedFrame, index: int) -> None:
        """Apply the switch of one track, from a row of the memory-free prediction."""
        frame, track = group.frame, group.tracks[row]
        if self.config.memory_policy == "switch":
            track.memory.clear()
            frame.mask_logits[row] = other.mask_logits[index]
            frame.ungated[row] = other.ungated[index]
            frame.pointer[row] = other.pointer[index]
            frame.memory_logits[row] = other.memory_logits[index]
            for before, after in ((frame.score, other.score), (frame.object_score, other.object_score)):
                if before is not None and after is not None:
                    before[row] = after[index]
        else:
            frame.memory_logits[row] = rewrite_memory_mask(
                frame.memory_logits[row], other.memory_logits[index], self.config.switch_memory
            )
        frame.switched[row] = True
        group.remembered[row] = True
        track.last_switch = track.frame

    def _remember(self, group: TrackGroup, remember: bool) -> None:
        """Store the frame in the memories of the tracks that should remember it; all tracks advance by one."""
        frame = group.frame
        if remember:
            maps = self.tracker.remember(group.features.top, frame.memory_logits, frame.object_score)  # (n, 64, g, g)
            for row, track in enumerate(group.tracks):
                if group.remembered[row]:
                    track.memory.store(track.frame, maps[row], frame.pointer[row])
        for track in group.tracks:
            track.frame += 1


def _rows(rows: list[int], count: int) -> list[int] | slice:
    """Return an index of some of ``count`` rows; for all rows, one that avoids a copy and a transfer to the device."""
    return slice(None) if len(rows) == count else rows


def _read_back(flags: Sequence[Tensor]) -> list[list[bool]]:
    """Copy bool tensors (n,) of one device to main memory with a single synchronisation."""
    if not flags:
        return []
    joined: list[bool] = torch.cat(list(flags)).tolist()
    rest = iter(joined)
    return [[next(rest) for _ in range(len(each))] for each in flags]


def _merge(groups: Sequence[Sequence[int]], frames: Sequence[TrackedFrame]) -> TrackedFrame:
    """Merge the predictions of groups of tracks, in the order of the tracks.

    Args:
        groups: Indices of each group's tracks.
        frames: Each group's prediction, its rows in that order.

    Returns:
        One prediction.
    """

    def in_order(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[order_of(groups).to(tensors[0].device)]

    scores = [frame.score for frame in frames if frame.score is not None]
    object_scores = [frame.object_score for frame in frames if frame.object_score is not None]
    return TrackedFrame(
        mask_logits=in_order([frame.mask_logits for frame in frames]),
        ungated=in_order([frame.ungated for frame in frames]),
        score=in_order(scores) if scores else None,
        object_score=in_order(object_scores) if object_scores else None,
        pointer=in_order([frame.pointer for frame in frames]),
        memory_logits=in_order([frame.memory_logits for frame in frames]),
        switched=in_order([frame.switched for frame in frames]),
        cme_logits={m[row]: v for m, frame in zip(groups, frames, strict=True) for row, v in frame.cme_logits.items()},
        cme_labels={m[row]: v for m, frame in zip(groups, frames, strict=True) for row, v in frame.cme_labels.items()},
    )
