"""Grounded conversations: questions about a video, answers whose phrases have masks in every frame.

The video is read once for the language model, frame by frame, and once more for the masks of each answer, so that
memory does not grow with its length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from refervos.errors import ConfigError, VideoError
from refervos.metrics.visual_grounding import boxes_around
from refervos.prompts import Prompt
from refervos.segmentation import Segmentation
from refervos.session.session import Session
from refervos.text.grounded import Phrase
from refervos.text.vocabulary import warn_of_words
from refervos.video import Frame, Source, open_source
from refervos.video.tracks import FrameNames
from refervos.videoglamm.conversation import UNKNOWN_WORDS, AnswerPiece, Conversation, Pieces, Turn
from refervos.videoglamm.frames import EncoderView, encoder_view, single_pixels
from refervos.videoglamm.language import Sampling

if TYPE_CHECKING:
    from refervos.videoglamm.model import VideoGlamm, VisualTokens

MOST_VIEWS = 128
"""Maximum number of frames kept while a video is read; of a longer one, every second is dropped, repeatedly."""


class Recording:
    """A recorded video or an image, which can be read several times.

    Args:
        video: A path, an image (uint8 (H, W, 3), PIL), frames (uint8 (T, H, W, 3), a sequence), or any other source of
            ``open_source`` that is not live. What can be read only once is read into memory.
        start: First frame.
        stop: Frame before which to end; None for all.

    Raises:
        VideoError: When it is live.
    """

    def __init__(self, video: Any, start: int = 0, stop: int | None = None) -> None:
        if isinstance(video, Tensor):
            video = video.cpu().numpy()
        elif isinstance(video, Image.Image):
            video = np.asarray(video.convert("RGB"))
        elif isinstance(video, Iterable) and not isinstance(video, (str, np.ndarray)) and iter(video) is iter(video):
            if hasattr(video, "info"):
                refuse_live(cast(Source, video))
            video = list(video)
        if isinstance(video, np.ndarray) and (video.ndim == 2 or (video.ndim == 3 and video.shape[2] in (1, 3, 4))):
            video = video[None]
        self._video, self._start, self._stop = video, start, stop

    def open(self) -> Source:
        """Open the source of its frames.

        Raises:
            VideoError: When it cannot be read or is live.
        """
        source = open_source(self._video, start=self._start, stop=self._stop)
        refuse_live(source)
        return source


def refuse_live(source: Source) -> None:
    """Refuse a live source, which cannot be read twice.

    Raises:
        VideoError: When it is live; it is then closed.
    """
    if source.info.live:
        source.close()
        raise VideoError(
            f"'{source.info.name}' is live; a conversation needs a recording, or a session that follows the stream."
        )


class VideoConversation:
    """Multi-turn conversation about a video, or about the last frames of a session.

    Args:
        model: A model with a tokenizer.
        video: See ``Recording``; or a session on this model that has segmented a frame.
        start: First frame of a recording.
        stop: Frame before which to end; None for all.

    Attributes:
        conversation: The conversation in terms of token ids and prompt tokens.
        session: The session, if it is about one.
        recording: The recording, if it is about one.
        frame_names: Names of the recording's frames: those of its image files, else their numbers.
        frame_size: Height and width of its first frame.

    Raises:
        ConfigError: When the session is on another model or has no frames.
        PromptError: When the model has no tokenizer.
        VideoError: When the video cannot be read or is live.
    """

    def __init__(self, model: VideoGlamm, video: Any, *, start: int = 0, stop: int | None = None) -> None:
        self.model = model
        self.session: Session | None = None
        self.recording: Recording | None = None
        self.frame_names: tuple[str, ...] = ()
        self.frame_size = (0, 0)
        with torch.inference_mode():
            if isinstance(video, Session):
                visual = self._read_session(video)
            else:
                visual = self._read_recording(Recording(video, start, stop))
        self.conversation = Conversation(model, visual)
        self._last: VideoAnswer | None = None
        self._warned: set[str] = set()

    def _read_session(self, session: Session) -> VisualTokens:
        if session.model is not self.model:
            raise ConfigError("the session runs on another model; open it on the model that is to talk about it.")
        if not session.past:
            raise ConfigError("the session has no frames yet; give it a frame before talking about it.")
        self.session = session
        return self.model.encode_views(session.past)

    def _read_recording(self, recording: Recording) -> VisualTokens:
        views: list[EncoderView] = []
        names: list[str] = []
        unique = FrameNames()
        stride = 1
        with recording.open() as source:
            still = source.info.still
            for count, frame in enumerate(source):
                if not count:
                    height, width = frame.image.shape[:2]
                    self.frame_size = (height, width)
                names.append(unique.of(frame))
                if count % stride:
                    continue
                views.append(encoder_view(frame.image, self.model.config))
                if len(views) > MOST_VIEWS:
                    views, stride = views[::2], 2 * stride
        self.recording = recording
        self.frame_names = tuple(names)
        if still and len(views) == 1:
            return self.model.encode_pixels(single_pixels(views[0]), single=True)
        return self.model.encode_views(views)

    @property
    def turns(self) -> Sequence[Turn]:
        """Questions and answers so far."""
        return self.conversation.turns

    def ask(self, question: str, *, limit: int = 512, sampling: Sampling | None = None) -> VideoAnswer:
        """Ask a question, with all earlier turns as context.

        Args:
            question: The question.
            limit: Maximum number of generated tokens.
            sampling: Sampling of tokens; default greedy decoding.

        Returns:
            The answer, which is generated as it is iterated over. An earlier answer is first generated to its end.

        Warns:
            UnknownWordsWarning: When the question has words that a model with a closed vocabulary does not know, once
                for each word.

        Raises:
            PromptError: When the question is invalid or the conversation becomes too long.
        """
        if self._last is not None:
            self._last.finish()
        pieces = self.conversation.ask(question, limit=limit, sampling=sampling)
        # With function words, such as "who": they decide what a question means.
        unknown = self.model.tokenizer.unknown_words(question)
        if set(unknown) - self._warned:
            self._warned.update(unknown)
            warn_of_words([unknown], advice=UNKNOWN_WORDS)
        self._last = VideoAnswer(self, question, pieces, unknown)
        return self._last


class VideoAnswer:
    """An answer to a question about a video, generated as it is iterated over.

    Iterating yields ``AnswerPiece``s: text as it is generated, each phrase as a whole. All else waits for its end.

    Args:
        talk: The conversation.
        question: The question.
        pieces: Increments of the answer, which end with a turn of the conversation.
        unknown_words: Words of the question that the model cannot read; none with an open vocabulary.
    """

    def __init__(
        self, talk: VideoConversation, question: str, pieces: Pieces, unknown_words: tuple[str, ...] = ()
    ) -> None:
        self.question, self.unknown_words = question, unknown_words
        self._talk, self._pieces = talk, pieces
        self._number = len(talk.turns)

    def __iter__(self) -> Iterator[AnswerPiece]:
        """Yield what has not been yielded yet."""
        return self._pieces

    def finish(self) -> Turn:
        """Generate the answer to its end."""
        for _ in self._pieces:
            pass
        return self._talk.turns[self._number]

    def stop(self) -> Turn:
        """End the answer here."""
        next(self._pieces, None)  # a generator that has not started would leave no turn
        self._pieces.close()
        return self.finish()

    @property
    def text(self) -> str:
        """The answer without markup."""
        return self.finish().answer.text

    @property
    def phrases(self) -> tuple[Phrase, ...]:
        """Its phrases with masks, in order, with their character spans in the text."""
        return self.finish().answer.phrases

    def follow(self, session: Session | None = None) -> list[int]:
        """Follow the phrases in a session from its next frame on.

        Args:
            session: A session on the same model; default the one that the conversation is about.

        Returns:
            Numbers of the tracks, one for each phrase.

        Raises:
            ConfigError: When there is no session, or it runs on another model.
        """
        target = session or self._talk.session
        if target is None or target.model is not self._talk.model:
            raise ConfigError("the phrases need a session to be followed in, on the model that named them; give one.")
        return follow_answer(target, self._talk.model, self.finish())

    def segmentations(self) -> Iterator[tuple[Frame, Segmentation]]:
        """Segment the phrases in every frame of the recording, clip by clip, in constant memory.

        Yields:
            Each frame with its segmentation: one mask and one presence for each phrase; nothing without a phrase.

        Raises:
            ConfigError: When the conversation is about a session, in which ``follow`` follows the phrases.
            VideoError: When the recording cannot be read again.
        """
        recording = self._talk.recording
        if recording is None:
            raise ConfigError("the conversation is about a session; call follow, and pass the next frames to it.")
        session = self._talk.model.open()
        if not self.follow(session):
            return
        with recording.open() as source:
            for clip in session.chunks(source):
                yield from zip(clip, session.clip([frame.image for frame in clip]), strict=True)

    def masks(self) -> Iterator[npt.NDArray[np.bool_]]:
        """Segment the phrases; yield bool (phrases, H, W) for every frame (see ``segmentations``)."""
        for _, segmentation in self.segmentations():
            yield segmentation.masks

    def boxes(self) -> Iterator[npt.NDArray[np.float64]]:
        """Locate the phrases; yield the tight boxes around their masks for every frame (see ``segmentations``).

        Yields:
            float64 (phrases, 4): left, top, right, bottom in pixels; NaN where a phrase is not visible.
        """
        for masks in self.masks():
            yield boxes_around(masks)


def follow_answer(session: Session, model: VideoGlamm, turn: Turn) -> list[int]:
    """Follow the phrases of an answer in a session from its next frame on.

    Args:
        session: A session on the model.
        model: The model that answered.
        turn: The question with its answer.

    Returns:
        Numbers of the tracks, one for each phrase.
    """
    return [
        session.follow(Prompt(phrase.text or f"object {number}"), model.begin_phrase(phrase, token))
        for number, (phrase, token) in enumerate(zip(turn.answer.phrases, turn.prompt_tokens, strict=True), 1)
    ]
