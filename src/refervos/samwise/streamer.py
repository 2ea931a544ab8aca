"""SAMWISE's loop over frames: condition, decode, decide, remember; the tracks hold all that has to be remembered.

The loop does not care what computes its parts: PyTorch modules (``model.py``) or exported graphs.
Shapes: N tracks of which n are in one group, T frames, C = SAM2's hidden width, g = grid, S = image size.
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
    """A clip after early fusion.

    Attributes:
        features: The feature pyramid of each frame for all N tracks.
        prompts: For each frame, the prompt tokens of each track (P, C): two padding points, the sentence, perhaps its
            motion. In clips they are the same for every frame.
        unbiased_prompts: The same for the memory-free pass.
    """

    features: list[FrameFeatures]
    prompts: list[list[Tensor]]
    unbiased_prompts: list[list[Tensor]]


@dataclass
class TrackedFrame:
    """One frame of n tracks.

    Attributes:
        mask_logits: (n, 1, 4g, 4g), gated by the presence at inference.
        ungated: The same before the gate.
        score: Object score logits (n,), or None; at inference calibrated: the logit of the presence.
        object_score: The object score as it is (n,), or None: by its sign the memory takes the object to be there.
        pointer: What the object looks like (n, C).
        memory_logits: The mask that is remembered (n, 1, S, S).
        switched: bool (n,), where the CME changed what is remembered.
        cme_logits: The CME's decision (2,) for each row in which it ran.
        cme_labels: What it should have been (), in training.
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
    """The n tracks that go through one frame as one batch, because they remember equally many frames.

    Attributes:
        tracks: The tracks.
        features: The frame's features (n, ...).
        unbiased_prompts: Prompt tokens of the memory-free pass (n, P, C).
        cme_rows: Rows in which the CME runs.
        unbiased: Their features without memory (K, C, g, g), None where there are none.
        early: Their mask token as it leaves the decoder's first layer without memory (K, C), None in training.
        frame: What became of the frame.
        remembered: For each track, whether the frame goes into its memory.
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
    """The functions of ``Sam2Tracker`` that the loop over frames calls."""

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
    """What a session asks of SAMWISE; the parts come from the class that inherits this.

    Attributes:
        config: Every hyper-parameter.
        tokenizer: Turns sentences into token ids; None where there is none.
        tracker: SAM2, from conditioning to remembering.
        training: Whether gradients are wanted of what it answers.
        memory_budget: Bytes that one batch may take; None for what the device has room for.
    """

    config: SamwiseConfig
    tokenizer: Tokenizer | None
    tracker: StreamedTracker
    training: bool
    memory_budget: int | None

    # The other parts.

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    @abstractmethod
    def compute_dtype(self) -> torch.dtype:
        """Type of weights and activations."""

    @abstractmethod
    def encode_shared(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """What does not depend on the sentence: patch embedding and the first two image stages.

        Args:
            pixels: Placed frames (V, T, 3, S, S).

        Returns:
            The finest level of the feature pyramid (V, T, C/8, 4g, 4g), which is the first stage's; the output of the
            second stage, channels last and not adapted yet (V, T, 2g, 2g, w); and small frames (V, T, 3, S/2, S/2)
            where the model has movement features.
        """

    @abstractmethod
    def encode_tracks(
        self, shared: Sequence[Tensor], ids: Tensor, verbs: Tensor, tracks: Sequence[SamwiseTrack] = ()
    ) -> ClipFeatures:
        """The rest of early fusion, for N sentences.

        Args:
            shared: From ``encode_shared``; V divides N, and the N / V sentences about a video are neighbours.
            ids: Token ids (N, L), padded on the right.
            verbs: bool (N, L), tokens that tell motion.
            tracks: Online, the N tracks, all with windows of the same length; these move on by T frames.
        """

    @abstractmethod
    def switch_logits(self, tracked: Tensor, unbiased: Tensor) -> Tensor:
        """Decide whether the sentence now points at another object, see ``ConditionalMemoryEncoder.forward``."""

    @abstractmethod
    def correct(self, track: SamwiseTrack, prompt: Prompt, placement: Placement) -> FramePrediction:
        """Answer the track's last frame again, by clicks, a box or a mask on it (see ``Segmenter``)."""

    # What a session asks.

    def inference(self) -> AbstractContextManager[None]:
        """No gradients."""
        return torch.inference_mode()

    @property
    def clip_length(self) -> int:
        """Frames that the adapters see at once; online each frame is answered by itself."""
        return 1 if self.config.time == "online" else self.config.clip_length

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """Letterbox: the aspect ratio is kept, zeros to the right and below."""
        return letterbox(frame_size, self.config.sam2.image_size, self.config.short_side)

    def begin(self, prompt: Prompt) -> SamwiseTrack:
        """Start a track for a sentence, perhaps with clicks, a box or a mask on the first frame that it is given.

        Raises:
            PromptError: When the prompt has no expression, or the tokenizer is missing.
        """
        track = self.begin_tokens(*self._read(prompt))
        if prompt.geometric:
            check_geometry(prompt)
            track.first_frame_prompt = prompt
        return track

    def _read(self, prompt: Prompt) -> tuple[list[int], list[bool]]:
        """A prompt's sentence as token ids and verb marks."""
        if prompt.expression is None:
            raise PromptError(
                f"SAMWISE is asked with a sentence, not with {prompt.description} alone; "
                "for clicks, boxes and masks without one load a SAM2 checkpoint."
            )
        return self.read(prompt.expression, prompt.verbs)

    def read(self, expression: str, verbs: Sequence[str] | None = None) -> tuple[list[int], list[bool]]:
        """A sentence as token ids, and for each whether it tells motion.

        Args:
            expression: The sentence.
            verbs: Its words that tell motion; found by spaCy when not given and the model wants them.

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
            verbs: Which tokens tell motion, default none.
        """
        sam2 = self.config.sam2
        return SamwiseTrack(
            ids=torch.tensor(list(ids), dtype=torch.long),
            verbs=torch.tensor([False] * len(ids) if verbs is None else list(verbs), dtype=torch.bool),
            memory=MemoryBank(map_limit=sam2.memory_slots - 1, pointer_limit=sam2.pointer_limit - 1),
            windows=AdapterWindows(len(self.config.hsa_patches), self.config.clip_length - 1),
        )

    def set_prompt(self, track: SamwiseTrack, prompt: Prompt) -> None:
        """Ask a running track for something else; what it remembers stays until the CME decides otherwise.

        Raises:
            PromptError: When the prompt is no sentence.
        """
        if prompt.geometric:
            raise PromptError("the new prompt of a track must be a sentence; use correct for clicks, boxes and masks.")
        named = self.begin_tokens(*self._read(prompt))
        track.ids, track.verbs, track.text, track.manually_corrected = named.ids, named.verbs, None, False

    def restart(self, track: SamwiseTrack) -> None:
        """Forget all that was seen; the sentence stays."""
        track.restart()

    def mark_gap(self, track: SamwiseTrack) -> None:
        """Frames are missing before the next one: the adapters must not take it for the neighbour of the last."""
        track.windows.clear()

    def undo(self, track: SamwiseTrack) -> FramePrediction | None:
        """Take the last correction back (see ``sam2.correction.undo``)."""
        return undo(track)

    @property
    def mixes_sentences(self) -> bool:
        """As published: the padding of shorter sentences leaks into the adapters, and the released scripts ask one
        sentence at a time.
        """
        return self.config.protocol == "published"

    def check_restored(self, track: SamwiseTrack) -> None:
        """Check that a track that was read from a file can go on (see ``Segmenter``)."""
        text, dtype = self.config.text, self.compute_dtype
        check_tensor(track.ids, "a sentence", (None,), torch.int64)
        known = bool(((track.ids >= 0) & (track.ids < text.vocabulary)).all())
        check_state(known and 0 < len(track.ids) <= text.max_tokens, "a sentence has words that nobody can read")
        check_tensor(track.verbs, "the marks of verbs", (len(track.ids),), torch.bool)
        if track.text is not None:
            check_tensor(track.text, "a sentence that was read", (len(track.ids), text.width), dtype)
        check_state(0 <= track.last_switch <= track.frame, "a switch is of a frame that was not seen")
        if track.first_frame_prompt is not None:
            check_state(
                track.first_frame_prompt.geometric and track.frame == 0,
                "a track waits for clicks that it does not have",
            )
            track.first_frame_prompt.check()
            check_geometry(track.first_frame_prompt)
        track.windows.check_restored(self.config, dtype)
        check_restored(track, self.config.sam2, dtype)

    @property
    def state_types(self) -> tuple[type, ...]:
        """The classes that a track is made of."""
        return (SamwiseTrack, AdapterWindows, *STATE_TYPES)

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[SamwiseTrack], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames of one video; in clips the adapters see them together (see ``Segmenter``).

        Tracks go through in batches that fit ``memory_budget``; a single batch is answered frame by frame.

        Raises:
            PromptError: At once, before any track has moved, when a new track's click or box lies outside the first
                frame or its mask has another size.
        """
        for track in tracks:
            self.check(track, placements[0].frame_size)
        return self._segment(pixels.unsqueeze(0), tracks, placements)

    def check(self, track: SamwiseTrack, frame_size: tuple[int, int]) -> None:
        """Check that what a track waits to ask about its first frame fits it (see ``Segmenter``)."""
        if track.first_frame_prompt is not None:
            check_within(track.first_frame_prompt, frame_size)

    def _segment(
        self, clips: Tensor, tracks: Sequence[SamwiseTrack], placements: Sequence[Placement] = ()
    ) -> Iterator[FramePrediction]:
        """Segment one clip for all N tracks, or a clip for each (V, T, 3, S, S), in batches of tracks.

        The placements are read for tracks that begin with clicks, a box or a mask.
        """
        length = clips.shape[1]
        with self.inference():
            if self.config.protocol == "published" and length == 1:
                for track in tracks:  # the released loop takes a one-frame clip for an image
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
        answers = [list(run) for run in runs]  # one batch after the other, so that one at a time takes memory
        for parts in zip(*answers, strict=True):
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
            with self.inference():  # not around the yield: it would stay on in the caller's code
                frame = self.track_frame(clip, time, tracks)
                prediction = FramePrediction(frame.mask_logits[:, 0], frame.score, frame.switched)
                keep_last(tracks, clips[:, time], prediction)
                for row, track in enumerate(tracks):
                    if track.first_frame_prompt is not None:
                        answer = self.correct(track, track.first_frame_prompt, placements[time])
                        track.first_frame_prompt = track.before = None
                        prediction.mask_logits[row] = answer.mask_logits[0]
                        if prediction.score is not None and answer.score is not None:
                            prediction.score[row] = answer.score[0]
            yield prediction

    def _batches(self, tracks: Sequence[SamwiseTrack], frames: int) -> list[list[int]]:
        """Cut the tracks into batches that fit the memory budget; online, each of tracks with equal windows."""
        sam2 = self.config.sam2
        cells = (sam2.image_size // 8) ** 2
        # At the first adapter: the image tokens, what is added to them, and what the adapter makes of them.
        channels = 3 * sam2.stage_widths[1] + 2 * self.config.adapter_width
        one = frames * cells * channels * self.compute_dtype.itemsize
        size = max(1, batch_budget(self.device, self.memory_budget) // one) if len(tracks) > 1 else 1
        groups: dict[int, list[int]] = {}
        for index, track in enumerate(tracks):
            groups.setdefault(track.windows.length, []).append(index)
        return [members[start : start + size] for members in groups.values() for start in range(0, len(members), size)]

    def text_batch(self, tracks: Sequence[SamwiseTrack]) -> tuple[Tensor, Tensor]:
        """Token ids (N, L) of N tracks on the model's device, padded on the right, and in main memory their verb marks
        (N, L), which decide how many prompt tokens there are.
        """
        ids = pad_tokens([track.ids for track in tracks], self.config.text.pad)
        verbs = torch.nn.utils.rnn.pad_sequence([track.verbs for track in tracks], batch_first=True)
        return ids.to(self.device, non_blocking=True), verbs

    # The loop over frames.

    def track_frame(
        self, clip: ClipFeatures, time: int, tracks: Sequence[SamwiseTrack], *, remember: bool = True
    ) -> TrackedFrame:
        """Condition, decode, decide and remember one frame; the tracks move on by one.

        Tracks that remember equally many frames are one batch. At inference, one decision for all tracks is read back
        from the device, and a second where the CME fires.

        Args:
            clip: The clip's features.
            time: Which frame of the clip.
            tracks: The N tracks.
            remember: Whether the frame goes into memory; it need not where no frame comes after it.

        Returns:
            The frame for all N tracks, in their order.
        """
        features = clip.features[time]
        readings = [track.memory.read(track.frame) for track in tracks]
        members = group_by_layout(readings, [len(prompt) for prompt in clip.prompts[time]])
        groups = []
        for indices in members:
            mine = features if len(indices) == len(tracks) else features.take(indices)
            asked, unbiased_prompts = (
                torch.stack([each[index] for index in indices])
                for each in (clip.prompts[time], clip.unbiased_prompts[time])
            )  # (n, P, C) each
            cme_rows = [row for row, index in enumerate(indices) if self.cme_applies(tracks[index])]
            rows = _rows(cme_rows, len(indices))
            unbiased = self.tracker.without_memory(mine.top[rows]) if cme_rows else None
            conditioned = self.tracker.condition(mine.top, stack_readings([readings[index] for index in indices]))
            # The memory-free pass stops after the decoder's first layer, which both passes go through together.
            extra = None if unbiased is None or self.training else (unbiased, unbiased_prompts[rows])
            decoded = self.tracker.decode(conditioned, mine, asked, extra=extra)
            groups.append(
                TrackGroup(
                    tracks=[tracks[index] for index in indices],
                    features=mine,
                    unbiased_prompts=unbiased_prompts,
                    cme_rows=cme_rows,
                    unbiased=unbiased,
                    early=decoded.extra_early_token,
                    frame=self._answer(decoded),
                    remembered=[True] * len(indices),
                )
            )
        self._decide(groups)
        for group in groups:
            self._remember(group, remember)
        frames = [group.frame for group in groups]
        return frames[0] if len(frames) == 1 else _merge(members, frames)

    def _answer(self, decoded: Decoded) -> TrackedFrame:
        """What the decoder's answer says of the frame."""
        # Calibrated and gated at inference only, so that training sees where an object was missed.
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
        """What object scores (n,) say of presence.

        Returns:
            The logit of the presence, and by how much that is above the threshold's, (n,) each.
        """
        if score is None:
            return None, None
        exact = score.to(torch.promote_types(score.dtype, torch.float32))
        presence = exact * self.config.presence_scale + self.config.presence_shift
        threshold = self.config.presence_threshold
        return presence, presence - math.log(threshold / (1 - threshold))

    def cme_applies(self, track: SamwiseTrack) -> bool:
        """Whether the CME looks at this track's current frame."""
        window = self.config.cme_window
        return self.config.cme and track.frame > window and track.frame - track.last_switch >= window - 1

    def _decide(self, groups: Sequence[TrackGroup]) -> None:
        """Where the sentence now points elsewhere, change what is remembered (SAMWISE paper, 3.3).

        The memory-free pass stops after the decoder's first layer unless it is needed. As published, the mask and the
        pointer of this frame stay, and the other object is added to the mask that goes into memory. With the memory
        policy ``switch`` the frame's answer becomes the memory-free one, and what was remembered is forgotten. With
        the other policies than the published one, frames in which nothing is seen are not remembered.
        """
        doubts = []
        for group in groups:
            if group.early is not None and group.unbiased is not None:
                tracked = group.frame.pointer[_rows(group.cme_rows, len(group.tracks))]  # (K, C)
                logits = self.switch_logits(tracked, group.early)  # (K, 2)
                group.frame.cme_logits = dict(zip(group.cme_rows, logits, strict=True))
                doubts.append((group, group.cme_rows, group.unbiased, logits))
        gating = self.config.memory_policy != "published"
        gated = [group for group in groups if gating and group.frame.object_score is not None]
        always = self.config.cme_decision == "always"
        flags = [group.frame.object_score > 0 for group in gated if group.frame.object_score is not None]
        flags += [] if always else [logits[:, 1] > logits[:, 0] for *_, logits in doubts]
        decisions = _read_back(flags)
        for group, seen in zip(gated, decisions, strict=False):
            group.remembered = seen
        fired = []
        for index, (group, cme_rows, unbiased, _) in enumerate(doubts):
            fires = [True] * len(cme_rows) if always else decisions[len(gated) + index]
            places = [place for place, fire in enumerate(fires) if fire]
            if places:
                fired.append((group, [cme_rows[place] for place in places], unbiased[_rows(places, len(cme_rows))]))
        self._switch(fired)

    def _switch(self, fired: Sequence[tuple[TrackGroup, list[int], Tensor]]) -> None:
        """Change what is remembered of the rows in which the CME fired, given their features without memory."""
        if not fired:
            return
        again = [
            self._answer(self.tracker.decode(unbiased, group.features.take(rows), group.unbiased_prompts[rows]))
            for group, rows, unbiased in fired
        ]
        seen: list[list[bool]] = [[True] * len(rows) for _, rows, _ in fired]
        if self.config.protocol != "published" and self.config.sam2.object_score:
            seen = _read_back([each.object_score > 0 for each in again if each.object_score is not None])
        for (group, rows, _), other, visible in zip(fired, again, seen, strict=True):
            for index, (row, is_seen) in enumerate(zip(rows, visible, strict=True)):
                if is_seen:  # otherwise there is nothing to switch to
                    self._switch_track(group, row, other, index)

    def _switch_track(self, group: TrackGroup, row: int, other: TrackedFrame, index: int) -> None:
        """Change what is remembered of one track, by a row of the memory-free answer."""
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
        """Write the frame into the memories of the tracks that are to remember it, if any; the tracks move on."""
        frame = group.frame
        if remember:
            maps = self.tracker.remember(group.features.top, frame.memory_logits, frame.object_score)  # (n, 64, g, g)
            for row, track in enumerate(group.tracks):
                if group.remembered[row]:
                    track.memory.store(track.frame, maps[row], frame.pointer[row])
        for track in group.tracks:
            track.frame += 1


def _rows(rows: list[int], count: int) -> list[int] | slice:
    """An index of some of ``count`` rows; of all, one that neither copies nor sends numbers to the device."""
    return slice(None) if len(rows) == count else rows


def _read_back(flags: Sequence[Tensor]) -> list[list[bool]]:
    """Bring bool tensors (n,) of one device into main memory, for which it is waited for once."""
    if not flags:
        return []
    together: list[bool] = torch.cat(list(flags)).tolist()
    rest = iter(together)
    return [[next(rest) for _ in range(len(each))] for each in flags]


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
