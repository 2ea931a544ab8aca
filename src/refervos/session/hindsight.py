"""Segmentation of recordings in hindsight: decide at the end which object a sentence means, then correct the past.

On a stream, a sentence such as "the one that turns back" is answered before it can be understood. A recording can be
read more than once:

1. *Search.* A session segments the recording frame by frame, as on a stream. Successive masks that overlap form
   tracklets; the one with the largest sum of presence shows the object that the sentence means.
2. *Follow.* From the most certain frame of that tracklet, its mask as the prompt, the object is followed backwards to
   the first frame.
3. *Answer.* From the most certain frame on, the masks of the search are kept: the sentence has been understood, and
   finds an object again that a tracker loses. Before it, the followed masks replace them, except where the search is
   certain that the object is absent, or where both overlap and the area of the search's mask is closer to that of the
   chosen mask: the followed mask then shows one of several targets alone.

Only the contract of sessions is used, so that every model that accepts a sentence together with a mask has it. An
extension of this project: no published protocol has it. Memory hardly grows with the recording: frames are read again
in blocks, and masks are kept in a temporary file.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from refervos.errors import FrameError, PromptError, UnknownWordsWarning
from refervos.prompts import Prompt
from refervos.segmentation import Segmentation
from refervos.session.answer_file import Answer, AnswerFile
from refervos.session.session import Session
from refervos.session.tracklets import SAME_OBJECT, Tracklet, TrackletSearch, overlap

Item = TypeVar("Item")

Read = Callable[[int, int | None], Iterable[Item]]
"""Reads the frames of a recording from one index up to another, or to the end for None; is called several times."""

OpenSession = Callable[[Iterable[Prompt]], Session]
"""Opens a session with prompts, such as ``model.open``."""

CERTAINLY_ABSENT = 0.05
"""Presence up to which the search is believed although the followed object seems to be visible."""

BLOCK_BYTES = 256 * 2**20
"""Memory for frames that are read to be followed backwards."""


@dataclass(frozen=True)
class Findings:
    """Result of the search.

    Attributes:
        frames: Number of frames of the recording.
        largest: Size of the largest frame in bytes.
        chosen: For each prompt, the tracklet with the most evidence; None if no frame shows its object.
    """

    frames: int
    largest: int
    chosen: tuple[Tracklet | None, ...]


def answer_in_hindsight(
    read: Read[Item],
    prompts: Sequence[Prompt | str],
    open_session: OpenSession,
    *,
    image_of: Callable[[Item], Any] = lambda item: item,
    clip_length: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Item, Segmentation]]:
    """Segment a recording in hindsight.

    Args:
        read: Reads the recording; must return the same frames each time.
        prompts: At least one sentence.
        open_session: Opens the sessions of both passes; they must be new.
        image_of: Returns the image of an item of ``read``; by default items are images, uint8 RGB (H, W, 3).
        clip_length: Frames per clip; default the model's.
        advance: Called after each frame of the search, for a progress bar.

    Yields:
        Each item with its segmentation, in order, after the whole recording has been read.

    Raises:
        PromptError: When there is no sentence, a prompt has clicks, a box or a mask, or the model accepts no sentence
            together with a mask.
        FrameError: When there are no frames, or ``read`` returns fewer frames than before.
    """
    sentences = check_sentences(prompts)
    search = open_session(sentences)
    for sentence in sentences:  # before the search, which takes long
        search.model.begin(replace(sentence, mask=np.ones((1, 1), dtype=np.bool_)))
    with AnswerFile() as answers:
        findings = _search(search, (image_of(item) for item in read(0, None)), answers, clip_length, advance)
        past = ((index, image_of(item)) for index, item in _read_backwards(read, findings))
        for index, row, followed in _follow(open_session(()), findings.chosen, sentences, past, clip_length):
            tracklet = findings.chosen[row]
            assert tracklet is not None
            if index < tracklet.frame:
                answers.write(index, row, settle(answers.read(index, row), followed, float(tracklet.mask.mean())))
        index = -1
        for index, item in enumerate(islice(read(0, None), findings.frames)):
            yield item, _segmentation(index, sentences, [answers.read(index, row) for row in range(len(sentences))])
        if index + 1 < findings.frames:
            raise FrameError(_CHANGED.format(was=findings.frames, now=index + 1))


def check_sentences(prompts: Sequence[Prompt | str]) -> list[Prompt]:
    """Return the prompts as sentences; PromptError when there is none or one has clicks, a box or a mask."""
    sentences = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    if not sentences:
        raise PromptError("there is no sentence to segment in hindsight; give at least one.")
    for sentence in sentences:
        if sentence.geometric or sentence.expression is None:
            raise PromptError(
                f"hindsight decides which object a sentence means, but a prompt is marked by "
                f"{replace(sentence, expression=None).description}; omit hindsight."
            )
    return sentences


def settle(searched: Answer, followed: Answer, share: float) -> Answer:
    """Choose between the answers of both passes for a frame before the most certain one.

    Args:
        searched: The answer of the search.
        followed: The answer of following the chosen object.
        share: Share of the frame that the chosen mask covers, above 0.

    Returns:
        One of them.
    """
    if searched.presence <= CERTAINLY_ABSENT:
        return searched
    if overlap(searched.mask, followed.mask) < SAME_OBJECT:
        return followed
    return min(searched, followed, key=lambda answer: abs(math.log(float(answer.mask.mean()) / share)))


def _search(
    session: Session, images: Iterable[Any], answers: AnswerFile, clip_length: int | None, advance: Callable[[], None]
) -> Findings:
    """Segment the whole recording, store the answers, and choose a tracklet for each prompt."""
    searches = [TrackletSearch() for _ in session.expressions]
    frames = largest = 0
    for clip in session.chunks(images, clip_length):
        for segmentation in session.clip(clip):
            for row, (mask, presence) in enumerate(zip(segmentation.masks, segmentation.presence, strict=True)):
                searches[row].add(frames, mask, float(presence))
                answers.write(frames, row, Answer(mask, float(presence)))
            largest = max(largest, 3 * segmentation.masks[0].size)
            frames += 1
            advance()
    if not frames:
        raise FrameError("the recording has no frames; give at least one.")
    return Findings(frames, largest, tuple(search.winner() for search in searches))


def _follow(
    session: Session,
    chosen: Sequence[Tracklet | None],
    sentences: Sequence[Prompt],
    frames: Iterable[tuple[int, Any]],
    clip_length: int | None,
) -> Iterator[tuple[int, int, Answer]]:
    """Follow the chosen objects from their most certain frames on.

    Args:
        session: A new session without tracks.
        chosen: A tracklet for each prompt, or None.
        sentences: The prompts.
        frames: Index and image of each frame, in descending order.
        clip_length: Frames per clip; default the model's.

    Yields:
        For each frame and each prompt whose most certain frame has been reached: their indices, and the answer.
    """
    starts: dict[int, list[tuple[int, Prompt]]] = {}
    for row, tracklet in enumerate(chosen):
        if tracklet is not None:
            starts.setdefault(tracklet.frame, []).append((row, replace(sentences[row], mask=tracklet.mask)))
    rows: list[int] = []  # of the session's tracks, in their order
    for clip in _clips(session, frames, starts, clip_length):
        for row, prompt in starts.get(clip[0][0], ()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UnknownWordsWarning)  # the search has given it
                session.add(prompt)
            rows.append(row)
        segmentations = session.clip([image for _, image in clip])
        for (index, _), segmentation in zip(clip, segmentations, strict=True):
            for row, mask, presence in zip(rows, segmentation.masks, segmentation.presence, strict=True):
                yield index, row, Answer(mask, float(presence))


def _clips(
    session: Session, frames: Iterable[tuple[int, Any]], starts: Container[int], clip_length: int | None
) -> Iterator[list[tuple[int, Any]]]:
    """Split frames into clips, so that prompts start in the first frame of a clip."""
    length = session.model.clip_length if clip_length is None else clip_length
    clip: list[tuple[int, Any]] = []
    for index, item in frames:
        if clip and (len(clip) == length or index in starts):
            yield clip
            clip = []
        clip.append((index, item))
    if clip:
        yield clip


def _read_backwards(read: Read[Item], findings: Findings) -> Iterator[tuple[int, Item]]:
    """Read the recording backwards from the last of the most certain frames, in blocks of bounded size."""
    stop = max((tracklet.frame + 1 for tracklet in findings.chosen if tracklet is not None), default=0)
    size = max(1, BLOCK_BYTES // findings.largest)
    while stop > 0:
        start = max(0, stop - size)
        block = list(read(start, stop))
        if len(block) < stop - start:
            raise FrameError(_CHANGED.format(was=findings.frames, now=start + len(block)))
        while block:
            stop -= 1
            yield stop, block.pop()


def _segmentation(index: int, sentences: Sequence[Prompt], answers: Sequence[Answer]) -> Segmentation:
    return Segmentation(
        frame_index=index,
        track_ids=tuple(range(len(sentences))),
        expressions=tuple(sentence.description for sentence in sentences),
        masks=np.stack([answer.mask for answer in answers]),
        presence=np.array([answer.presence for answer in answers], dtype=np.float32),
        switched=np.zeros(len(sentences), dtype=np.bool_),
    )


_CHANGED = "the recording had {was} frames and now has {now}; it must not change while it is segmented."
