"""VideoGLaMM in sessions: the language model points an object out, SAM2 follows it in constant memory.

Published: the language model reads frames sampled from the whole video, and the first ``[SEG]`` of its answer prompts
SAM2 in the first frame. Ours: it reads the clip that a session passes and the frames just before it, so that streams
work too, and it is asked again after a scene cut, on request (``set_prompt``), every ``config.ask_every`` frames, and
for objects that it did not find, or that SAM2 did not see where it was prompted (``config.retry_every``).

Shapes: T frames, N tracks, C = SAM2's hidden width, g = SAM2's grid, S = image size.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from refervos.errors import PromptError
from refervos.model_base import VideoSegmenterBase
from refervos.placement import Placement
from refervos.prompts import Prompt
from refervos.sam2.correction import STATE_TYPES, CorrectableTrack, check_restored, correct, keep_last, undo
from refervos.sam2.following import empty_memory, predict_from_tokens, segment_frame
from refervos.sam2.prompting import (
    GroupPrediction,
    check_geometry,
    check_within,
    geometry_kind,
    predict_from_geometry,
)
from refervos.sam2.tracker import NO_OBJECT_LOGIT, FrameFeatures, Sam2Tracker
from refervos.segmenter import FramePrediction, merge_predictions
from refervos.session.state_files import check_state, check_tensor
from refervos.text.grounded import Phrase
from refervos.videoglamm.config import VideoGlammConfig
from refervos.videoglamm.conversation import (
    ChatTokenizer,
    Conversation,
    check_question,
    grounding_question,
    opening_ids,
    referring_question,
)
from refervos.videoglamm.frames import EncoderView, SquashedPlacement, encoder_view, place_squashed

if TYPE_CHECKING:
    from refervos.videoglamm.model import VideoGlamm, VisualTokens

ANSWER_LIMIT = 64
"""Maximum number of tokens of an answer that points an object out; those of the training data have about ten."""


@dataclass(kw_only=True)
class ReferringTrack(CorrectableTrack):
    """State of one followed object.

    Attributes:
        question: Question that the language model is asked about the object; None for clicks, a box or a mask alone.
        due: Frame of the track, counted from 0, from which on the language model is asked; None if it is not to be
            asked again.
        token: Prompt token (C,) of the next frame; None for a frame without one.
        geometry: Clicks, a box or a mask on the first frame; None for none, and after the first frame.
        answer: The language model's last answer, without markup.
    """

    question: str | None
    due: int | None
    token: Tensor | None = None
    geometry: Prompt | None = None
    answer: str = ""


@dataclass(frozen=True)
class ClipFrames:
    """Frames of a clip, as SAM2 and the encoders take them.

    Attributes:
        images: The T frames, uint8 (3, H, W).
        views: The same resized for the encoders, after those of earlier frames.
    """

    images: Sequence[Tensor]
    views: Sequence[EncoderView]

    def __len__(self) -> int:
        """Return the number of frames of the clip."""
        return len(self.images)

    def readable(self, at: int, window: int) -> Sequence[EncoderView]:
        """Return what the language model reads at a frame: the window that ends with it, and the rest of the clip.

        Args:
            at: Index of the frame in the clip.
            window: Maximum length of the window; at least 1.
        """
        earlier = len(self.views) - len(self.images) + at
        return self.views[max(0, earlier + 1 - window) :]


class ReferringSegmenter(VideoSegmenterBase):
    """The ``Segmenter`` contract of VideoGLaMM."""

    config: VideoGlammConfig
    tokenizer: Any
    tracker: Sam2Tracker

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the weights."""

    @property
    @abstractmethod
    def compute_dtype(self) -> torch.dtype:
        """Data type of the weights and the computation."""

    @abstractmethod
    def encode_views(self, views: Sequence[EncoderView]) -> VisualTokens:
        """Sample and encode a video of resized frames for the language model."""

    @property
    def clip_length(self) -> int:
        """Default number of frames in a clip, which the language model reads before it points an object out."""
        return self.config.clip_length

    @property
    def mixes_sentences(self) -> bool:
        """False: each sentence is a conversation of its own."""
        return False

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        """Return the placement of a frame of this height and width, which fills SAM2's square."""
        return place_squashed(frame_size, self.config.sam2.image_size)

    def prepare(self, images: Sequence[Tensor], placements: Sequence[Placement], past: list[Any]) -> ClipFrames:
        """Resize frames for the encoders; for SAM2 each is placed when its turn comes (see ``Segmenter``).

        Args:
            images: The T frames, uint8 (3, H, W).
            placements: Ignored.
            past: The last frames before them, resized; replaced by the last ``config.frames - 1`` of all.

        Returns:
            The ``pixels`` of ``segment_clip``.
        """
        views = [*past, *(encoder_view(image.permute(1, 2, 0), self.config) for image in images)]
        past[:] = views[max(0, len(views) + 1 - self.config.frames) :]
        return ClipFrames(images, views)

    # Tracks.

    def begin(self, prompt: Prompt) -> ReferringTrack:
        """Start a track.

        Args:
            prompt: A sentence, for which the language model is asked; or clicks, a box or a mask on the first frame,
                with or without a sentence for later.

        Returns:
            The track.

        Raises:
            PromptError: When the sentence cannot be put into a question, or the mask is empty.
        """
        question = None if prompt.expression is None else self._question(prompt.expression)
        track = ReferringTrack(question=question, due=0, memory=empty_memory(self.config.sam2))
        if prompt.geometric:
            check_geometry(prompt)
            track.geometry, track.due = prompt, None
        return track

    def begin_phrase(self, phrase: Phrase, prompt_token: Tensor) -> ReferringTrack:
        """Start a track for a phrase of an answer.

        Args:
            phrase: The phrase; after a scene cut the language model is asked for it.
            prompt_token: Its prompt token (C,), which prompts the next frame.
        """
        try:
            question = self._question(phrase.text) if phrase.text.strip() else None
        except PromptError:  # it may have any markup
            question = None
        memory = empty_memory(self.config.sam2)
        return ReferringTrack(question=question, due=None, token=prompt_token, memory=memory)

    def read(self, expression: str, verbs: Sequence[str] | None = None) -> tuple[list[int], list[bool]]:
        """Encode the question about an expression as token ids, and motion flags, which VideoGLaMM does not use.

        Raises:
            PromptError: When the tokenizer is missing, or the question is too long or contains markup of the template.
        """
        ids = self._ids(self._question(expression))
        return ids, [False] * len(ids)

    def _question(self, expression: str) -> str:
        """Return the published question about an expression, or the expression itself if it is a question."""
        text = " ".join(check_question(expression).split())
        if text.endswith("?"):
            question = grounding_question(text, interrogative=True)
        elif self.config.question == "grounding":
            question = grounding_question(text)
        else:
            question = referring_question(text)
        self._ids(question)
        return question

    def _ids(self, question: str) -> list[int]:
        """Encode a conversation that opens with a question, with placeholders for the frames."""
        if self.tokenizer is None:
            raise PromptError(
                "this model has no tokenizer, so it cannot take text questions; load it with tokenizer files."
            )
        tokenizer = cast(ChatTokenizer, self.tokenizer)
        ids = opening_ids(tokenizer, check_question(question), self.config.frames)
        length = len(ids) - self.config.frames + self.config.visual_tokens
        if length >= self.config.phi.positions:
            raise PromptError(
                f"the expression needs a prompt of {length} tokens, {self.config.visual_tokens} of them for the video; "
                f"the model takes at most {self.config.phi.positions}, so use a shorter expression."
            )
        return ids

    def check(self, track: ReferringTrack, frame_size: tuple[int, int]) -> None:
        """Check that clicks, a box or a mask of a new track fit its first frame (see ``Segmenter``)."""
        if track.geometry is not None:
            check_within(track.geometry, frame_size)

    # Frames.

    def segment_clip(
        self, pixels: ClipFrames, tracks: Sequence[ReferringTrack], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        """Segment consecutive frames of one video, one at a time (see ``Segmenter``).

        Args:
            pixels: The T frames, from ``prepare``.
            tracks: The N tracks, of any age.
            placements: Placement of each frame in the square, length T.

        Returns:
            An iterator over T predictions, each computed when it is requested.

        Raises:
            PromptError: Immediately, before any track changes, when a new track's click or box lies outside the first
                frame or its mask has another size.
        """
        for track in tracks if placements else ():
            self.check(track, placements[0].frame_size)
        return self._segment(pixels, tracks, placements)

    @torch.inference_mode()
    def _segment(
        self, pixels: ClipFrames, tracks: Sequence[ReferringTrack], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        for at, (image, placement) in enumerate(zip(pixels.images, placements, strict=True)):
            self._ask(pixels, at, tracks)
            yield self._segment_frame(placement.place(image, self.device), tracks, placement)

    def _ask(self, pixels: ClipFrames, at: int, tracks: Sequence[ReferringTrack]) -> None:
        """Ask the language model for the objects for which it is due at a frame of the clip."""
        due = [track for track in tracks if is_due(track)]
        if not due:
            return
        window = 1 if self.config.reads == "onwards" else self.config.frames
        visual = self.encode_views(pixels.readable(at, window))  # once for all of them
        for track in due:
            assert track.question is not None
            track.answer, track.token = self.point_out(track.question, visual)
            if track.token is None:
                track.memory.clear()
            track.due = self._next_due(track, len(pixels) - at)

    def _next_due(self, track: ReferringTrack, unread: int) -> int | None:
        """Return the frame from which on the language model is asked again.

        Args:
            track: A track for which it has just been asked.
            unread: Frames from this one to the end of the clip, all of which it has read.
        """
        if self.config.ask_every is not None:
            return track.frame + self.config.ask_every
        return None if track.token is not None else track.frame + max(unread, self.config.frames)

    def point_out(self, question: str, visual: VisualTokens) -> tuple[str, Tensor | None]:
        """Ask the language model for an object.

        Args:
            question: The question.
            visual: The encoded video.

        Returns:
            The answer up to its first ``[SEG]``, and the prompt token of that (C,); None if there is none.
        """
        talk = Conversation(cast("VideoGlamm", self), visual)
        with closing(talk.ask(question, limit=ANSWER_LIMIT)) as pieces:
            token = next((piece.prompt_token for piece in pieces if piece.prompt_token is not None), None)
        return talk.turns[-1].answer.text, token

    def _segment_frame(self, frame: Tensor, tracks: Sequence[ReferringTrack], placement: Placement) -> FramePrediction:
        """Segment a placed frame (3, S, S); the tracks advance by one frame."""
        absent = [index for index, track in enumerate(tracks) if is_absent(track)]
        present = [index for index in range(len(tracks)) if index not in absent]
        groups = [members for members in (present, absent) if members]
        parts = []
        for members in groups:
            group = [tracks[index] for index in members]
            follow = self._follow if members is present else self._leave_out
            parts.append(follow(frame, group, placement))
        return merge_predictions(groups, parts)

    def _follow(self, frame: Tensor, tracks: Sequence[ReferringTrack], placement: Placement) -> FramePrediction:
        """Segment a frame for tracks with a prompt or a memory."""

        def first(features: FrameFeatures, group: Sequence[ReferringTrack]) -> GroupPrediction:
            tokens = [track.token for track in group if track.token is not None]
            if tokens:
                return predict_from_tokens(self.tracker, features, torch.stack(tokens).unsqueeze(1))
            prompts = [track.geometry for track in group if track.geometry is not None]
            return predict_from_geometry(self.tracker, features, prompts, placement)

        kinds = [prompt_kind(track) for track in tracks]
        prompted = [kind is not None for kind in kinds]
        prediction = segment_frame(self.tracker, frame, tracks, kinds, first, prompted)
        if self.config.retry_every is not None:
            _ask_again(tracks, prediction, self.config.retry_every)
        for track in tracks:
            track.token = track.geometry = None
        return prediction

    def _leave_out(self, frame: Tensor, tracks: Sequence[ReferringTrack], placement: Placement) -> FramePrediction:
        """Predict absence for tracks whose object the language model did not find."""
        side, count = self.config.sam2.mask_size, len(tracks)
        logits = frame.new_full((count, side, side), NO_OBJECT_LOGIT)
        none = torch.zeros(count, dtype=torch.bool, device=frame.device)
        prediction = FramePrediction(logits, frame.new_full((count,), NO_OBJECT_LOGIT), none)
        keep_last(tracks, frame.unsqueeze(0), prediction)
        for track in tracks:
            track.frame += 1
        return prediction

    # Changes by the user in mid-stream.

    def correct(self, track: ReferringTrack, prompt: Prompt, placement: Placement) -> FramePrediction:
        """Segment the last frame again from clicks, a box or a mask (see ``correction.correct``).

        A corrected track is not asked for again, except after a scene cut and by ``set_prompt``.
        """
        with torch.inference_mode():
            return correct(self.tracker, track, prompt, placement)

    def undo(self, track: ReferringTrack) -> FramePrediction | None:
        """Undo the last correction (see ``correction.undo``)."""
        return undo(track)

    def set_prompt(self, track: ReferringTrack, prompt: Prompt) -> None:
        """Ask the language model at the next frame, for the same sentence or another; memory of the same object stays.

        Raises:
            PromptError: When the prompt is not a sentence, or cannot be put into a question.
        """
        if prompt.geometric or prompt.expression is None:
            raise PromptError("the new prompt of a track must be a sentence; use correct for clicks, boxes and masks.")
        track.question = self._question(prompt.expression)
        track.due, track.token, track.geometry, track.manually_corrected = track.frame, None, None, False

    def restart(self, track: ReferringTrack) -> None:
        """Clear the memory and ask the language model at the next frame; a track without a sentence stays as it is."""
        if track.question is None:
            return
        track.memory.clear()
        track.frame = track.due = 0
        track.token = track.geometry = track.last = track.before = None
        track.manually_corrected = False

    def mark_gap(self, track: ReferringTrack) -> None:
        """Do nothing: no computation assumes that frames are adjacent."""

    # Saving and restoring.

    @property
    def state_types(self) -> tuple[type, ...]:
        """The classes that make up a track, and what sessions keep for this model."""
        return (ReferringTrack, EncoderView, SquashedPlacement, *STATE_TYPES)

    def check_restored(self, track: ReferringTrack) -> None:
        """Check a track read from a file (see ``Segmenter``)."""
        check_restored(track, self.config.sam2, self.compute_dtype)
        if track.question is not None:
            self._ids(track.question)
        check_state(
            track.due is None or (track.question is not None and track.due >= 0),
            "the frame at which a track asks its question is negative, or it has no question",
        )
        if track.token is not None:
            check_tensor(track.token, "a prompt token", (self.config.sam2.hidden,), self.compute_dtype)
        if track.geometry is not None:
            check_state(track.geometry.geometric and track.frame == 0, "a track has an invalid prompt for its frame")
            track.geometry.check()
            check_geometry(track.geometry)

    def check_past(self, past: list[Any]) -> None:
        """Check resized frames read from a file (see ``Segmenter``)."""
        check_state(len(past) < self.config.frames, "it keeps more frames than the model reads")
        clip, video = self.config.clip, self.config.internvideo
        for view in past:
            check_state(isinstance(view, EncoderView), "it keeps something other than frames")
            check_tensor(view.clip, "a kept frame", (3, clip.image_size, clip.image_size), torch.uint8)
            check_state((view.internvideo is None) == (video is None), "a kept frame fits other encoders")
            if video is not None:
                check_tensor(view.internvideo, "a kept frame", (3, video.image_size, video.image_size), torch.uint8)


def is_due(track: ReferringTrack) -> bool:
    """Return whether the language model is to be asked for a track at its next frame."""
    return track.due is not None and track.frame >= track.due and not track.manually_corrected


def is_absent(track: ReferringTrack) -> bool:
    """Return whether a track has neither a prompt for its next frame nor a memory to follow."""
    return prompt_kind(track) is None and track.memory.read(track.frame).empty


def prompt_kind(track: ReferringTrack) -> str | int | None:
    """Return a key that is equal for prompts that can be predicted in one batch; None without a prompt."""
    if track.token is not None:
        return "token"
    return None if track.geometry is None else geometry_kind(track.geometry)


def _ask_again(tracks: Sequence[ReferringTrack], prediction: FramePrediction, after: int) -> None:
    """Forget objects that SAM2 did not see in the frame in which they were prompted, and ask for them again.

    Args:
        tracks: The N tracks, with the prompt tokens of that frame, which they have advanced by.
        prediction: Its N predictions.
        after: Number of frames after it.
    """
    prompted = [row for row, track in enumerate(tracks) if track.token is not None and track.question is not None]
    if not prompted or prediction.score is None:
        return
    for row, seen in zip(prompted, (prediction.score[prompted] > 0).tolist(), strict=True):
        track = tracks[row]
        if not seen:
            track.memory.clear()
            again = track.frame - 1 + after
            track.due = again if track.due is None else min(track.due, again)
