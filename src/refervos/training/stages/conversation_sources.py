"""Sources of videos with conversations for VideoGLaMM: drawn worlds, or a mix of data sets on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

from refervos.data.conversations import GCG_QUESTION, Conversation
from refervos.data.sample import Dataset, GroundTruth, Sample, Video
from refervos.errors import TrainingError
from refervos.training.stage import Key
from refervos.training.stages.clip_sources import BenchmarkSource, sample_times
from refervos.training.stages.ranges import COUNT, FRAMES, WEIGHT
from refervos.training.stages.world_tensors import random_shape
from refervos.typed_config import check_not_empty, check_range
from refervos.videoglamm.losses import IGNORED_PIXEL
from refervos.worlds import WorldConfig
from refervos.worlds.conversation_writer import Turn
from refervos.worlds.conversations import ConversationClip, caption, draw_conversation
from refervos.worlds.facts import Facts
from refervos.worlds.grammar import ABSENT_ANSWER, REFERRING_ANSWERS
from refervos.worlds.judge import split_sentences

Rgb = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.int8]

REFERRING_PROMPTS = (
    "What is {} in this {}? Please respond with segmentation masks.",
    "Can you segment {} in this {}?",
)
"""The published requests to segment an expression in a video or an image; training has more wordings of them."""

LARGEST_ZOOM = 1.2
"""How much the copies of an image that stand for a video are enlarged at most, as published."""

COLOUR_CHANGE, HUE_CHANGE = 0.5, 0.1
"""Largest change of brightness, contrast and saturation in these copies, and of the hue, as published."""


@dataclass(frozen=True)
class Turns:
    """A conversation about a video, with a mask for each ``[SEG]``.

    Attributes:
        turns: Questions and tagged answers.
        masks: The mask of each ``[SEG]`` in order, 0 and 1, and -1 where it is not known, int8 (N, T, H, W).
    """

    turns: tuple[tuple[str, str], ...]
    masks: Masks


@dataclass(frozen=True, eq=False)
class DescribedObjects:
    """Objects of a video and a sentence about each.

    Attributes:
        sentences: A sentence about each object, without tags.
        masks: Their masks in all frames, bool (K, T, H, W).
    """

    sentences: tuple[str, ...]
    masks: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VideoWithTurns:
    """A video with conversations about it.

    Attributes:
        frames: Frames for the encoders, RGB (H, W, 3) each.
        masked_frames: The T frames for SAM2, RGB (H, W, 3) each.
        conversations: Conversations, independent of each other.
        image: Whether it is a single image, which the model reads without the video encoder.
        described: The objects that the caption describes, with their masks in all ``frames``; None if unknown.
        facts: Facts of a drawn clip, whose first conversation is its caption; None for other videos.
    """

    frames: Sequence[Rgb]
    masked_frames: Sequence[Rgb]
    conversations: tuple[Turns, ...]
    image: bool = False
    described: DescribedObjects | None = None
    facts: Facts | None = None


class ConversationSource(Protocol):
    """Source of videos with conversations; ``draw`` is a pure function of its arguments."""

    def draw(self, step: int, index: int, key: Key) -> VideoWithTurns:
        """Draw a video; see ``SampleSource.draw``."""
        ...


@dataclass(frozen=True)
class DrawnConversations:
    """Conversations from ``refervos.worlds``.

    Attributes:
        world: Distribution of scenes; its size and length are replaced.
        aspects: Width over height; one is drawn for each clip.
        lengths: Numbers of frames; one is drawn for each clip.
        image_size: Long side of the frames.
        questions: Conversations about each clip beside its caption.
        kinds: Weight of each kind of question.
        families: Weight of each family of claims in questions.
        variety: How often answers are worded otherwise than plainly.
        detail: How much captions say.
        vague: Share of objects of which captions say only that they are there, or that they move.
        patterns: Share of captions that name the pattern of every object.
        masked_frames: Number of frames for SAM2, evenly chosen; 1 for the first alone.
        judged: Whether the facts of the clips are needed.
    """

    world: WorldConfig
    aspects: tuple[float, ...]
    lengths: tuple[int, ...]
    image_size: int
    questions: int
    kinds: Mapping[str, float]
    families: Mapping[str, float]
    variety: float
    detail: int
    vague: float
    patterns: float
    masked_frames: int
    judged: bool = False

    def draw(self, step: int, index: int, key: Key) -> VideoWithTurns:
        """Draw a clip, describe it and ask about it."""
        rng = np.random.default_rng([*key, step, index, 0])
        world = random_shape(self.world, self.aspects, self.image_size, rng)
        world = replace(world, frames=int(rng.choice(self.lengths)))
        style: Any = {"variety": self.variety, "detail": self.detail}
        caption_style: Any = {**style, "patterns": self.patterns}
        drawn = draw_conversation(
            [*key, step, index, 1], world, max(1, self.questions), kinds=self.kinds, families=self.families, **style
        )
        clip = drawn.clip
        questions = [turns for turns in drawn.conversations if turns[0].kind != "description"][: self.questions]
        times = np.linspace(0, len(clip.frames) - 1, self.masked_frames).astype(int)
        shown = ConversationClip(clip.at(times), ())
        written = described = caption(clip, rng, **caption_style)
        if self.vague:  # what can be seen of the objects is described in full
            written = caption(clip, rng, vague=self.vague, **caption_style)
        return VideoWithTurns(
            frames=list(clip.frames),
            masked_frames=list(clip.frames[times]),
            conversations=tuple(
                Turns(
                    tuple((turn.question, turn.answer) for turn in turns),
                    np.concatenate([shown.masks(turn) for turn in turns]).astype(np.int8),
                )
                for turns in ((written,), *questions)
            ),
            described=describe_objects(drawn, described),
            facts=Facts.of(clip) if self.judged else None,
        )


def describe_objects(drawn: ConversationClip, caption: Turn) -> DescribedObjects:
    """Split the caption of a clip into its sentences, each about the objects of its first phrase.

    Args:
        drawn: The clip.
        caption: A caption of it.
    """
    masks, sentences, chosen, number = drawn.masks(caption), [], [], 0
    for sentence in split_sentences(caption.answer):
        first, *others = sentence.split("[SEG]")
        if others:
            chosen.append(number)
            sentences.append(re.sub(r"</?p>", " ", first + others[0].split("<p>")[0]))
        number += len(others)
    return DescribedObjects(tuple(sentences), masks[chosen])


@dataclass(frozen=True)
class DataShare:
    """Data sets that are drawn from together, and how often.

    Attributes:
        sources: Splits of benchmarks, as if they were one.
        rate: Relative frequency.
        loaded: Frames that are read of a video, at most.
        sampling: Choice of these frames: ``even``, or as in ``BenchmarkClips``.
        expressions: Expressions about each video, at most; each is a conversation of its own.
    """

    sources: tuple[BenchmarkSource, ...]
    rate: float = 1.0
    loaded: int = 16
    sampling: Literal["even", "mixed", "neighbours"] = "even"
    expressions: int = 1

    def __post_init__(self) -> None:
        check_not_empty(self, "sources")
        check_range(self, rate=WEIGHT, loaded=FRAMES, expressions=COUNT)


class DataMix:
    """Conversations from data sets on disk, drawn by their rates; there are no epochs, as published.

    Conversations of a data set are taken as they are. Expressions become published requests to segment them.

    Args:
        shares: The data sets.
        masked_frames: Number of frames for SAM2, evenly chosen among those that are read.

    Raises:
        TrainingError: When a data set has no masks to train on, or no share has a rate.
    """

    def __init__(self, shares: Sequence[DataShare], masked_frames: int) -> None:
        self.shares, self.masked_frames = tuple(shares), masked_frames
        self.items: list[list[Conversation | list[Sample]]] = []
        for share in self.shares:
            items: list[Conversation | list[Sample]] = []
            for source in share.sources:
                items += _items(source.open())
            self.items.append(items)
        rates = np.array([share.rate for share in self.shares])
        if not rates.sum() > 0:
            raise TrainingError("data: all rates are 0; give at least one data set a rate.")
        self.odds = rates / rates.sum()

    def draw(self, step: int, index: int, key: Key) -> VideoWithTurns:
        """Draw a data set by its rate, and anything of it."""
        rng = np.random.default_rng([*key, step, index, 0])
        number = int(rng.choice(len(self.shares), p=self.odds))
        share, items = self.shares[number], self.items[number]
        item = items[int(rng.integers(len(items)))]
        if isinstance(item, Conversation):
            return self._conversation(item, share, rng)
        return self._expressions([item[int(i)] for i in rng.permutation(len(item))[: share.expressions]], share, rng)

    def _conversation(self, conversation: Conversation, share: DataShare, rng: np.random.Generator) -> VideoWithTurns:
        phrases = [phrase for turn in conversation.turns for phrase in turn.phrases]
        chosen = _choose(range(len(conversation.video)), share, rng)
        masked = self._masked(chosen)
        frames = {index: conversation.video.frames.read(index) for index in sorted({*chosen, *masked})}
        size = frames[chosen[0]].shape[:2]
        masks = [_read_masks(phrase.ground_truth, masked, (size[0], size[1])) for phrase in phrases]
        turns = tuple((turn.question or GCG_QUESTION, turn.tagged) for turn in conversation.turns)
        stacked = np.stack(masks) if masks else np.zeros((0, len(masked), *size), np.int8)
        return self._video(conversation.video, chosen, masked, frames, (Turns(turns, stacked),), rng)

    def _expressions(self, samples: Sequence[Sample], share: DataShare, rng: np.random.Generator) -> VideoWithTurns:
        video, truth = samples[0].video, samples[0].ground_truth
        chosen = _choose(() if truth is None else truth.annotated, share, rng)
        masked = self._masked(chosen)
        frames = {index: video.frames.read(index) for index in sorted({*chosen, *masked})}
        size = frames[chosen[0]].shape[:2]
        word = "image" if len(video) == 1 else "video"
        conversations = []
        for sample in samples:
            question = REFERRING_PROMPTS[int(rng.integers(len(REFERRING_PROMPTS)))].format(
                sample.expression.lower(), word
            )
            answer = REFERRING_ANSWERS[int(rng.integers(len(REFERRING_ANSWERS)))]
            masks = _read_masks(sample.ground_truth, masked, (size[0], size[1]))[None]
            if sample.has_target is False:
                answer, masks = ABSENT_ANSWER, masks[:0]
            conversations.append(Turns(((question, answer),), masks))
        return self._video(video, chosen, masked, frames, tuple(conversations), rng)

    def _masked(self, chosen: Sequence[int]) -> list[int]:
        """Choose the frames for SAM2 among those that are read."""
        if len(chosen) == 1:
            return [chosen[0]]
        return [chosen[int(place)] for place in np.linspace(0, len(chosen) - 1, self.masked_frames)]

    def _video(
        self,
        video: Video,
        chosen: Sequence[int],
        masked: Sequence[int],
        frames: Mapping[int, Rgb],
        conversations: tuple[Turns, ...],
        rng: np.random.Generator,
    ) -> VideoWithTurns:
        shown = [frames[index] for index in masked]
        if len(shown) < self.masked_frames:  # an image, which stands for a video
            crops = [draw_crop(shown[0].shape[:2], rng) for _ in range(self.masked_frames)]
            original = shown[0]
            shown = [jitter(crop.apply(original), rng) for crop in crops]
            conversations = tuple(
                replace(
                    one,
                    masks=np.stack([np.stack([crop.apply(track[0]) for crop in crops]) for track in one.masks])
                    if len(one.masks)
                    else np.zeros((0, len(crops), *original.shape[:2]), np.int8),
                )
                for one in conversations
            )
        return VideoWithTurns([frames[index] for index in chosen], shown, conversations, image=len(video) == 1)


def _items(dataset: Dataset) -> list[Conversation | list[Sample]]:
    """What can be drawn: conversations, or the expressions with masks of each video and of equal annotated frames."""
    if dataset.conversations:
        return list(dataset.conversations)
    items: list[Conversation | list[Sample]] = []
    for _, samples in dataset.videos():
        by_frames: dict[tuple[int, ...], list[Sample]] = {}
        for sample in samples:
            if sample.ground_truth is not None and sample.ground_truth.annotated:
                by_frames.setdefault(tuple(sample.ground_truth.annotated), []).append(sample)
        items += by_frames.values()
    if not items:
        raise TrainingError(f"{dataset.name} {dataset.split} has no masks to train on; give a split with masks.")
    return items


def _choose(timeline: Sequence[int], share: DataShare, rng: np.random.Generator) -> list[int]:
    """Choose the frames that are read."""
    count = min(share.loaded, len(timeline))
    if share.sampling == "even":
        places = np.linspace(0, len(timeline) - 1, count).astype(int).tolist()
    else:
        places = sample_times(int(rng.integers(len(timeline))), len(timeline), count, share.sampling, rng)
    return [timeline[place] for place in places]


def _read_masks(truth: GroundTruth | None, indices: Sequence[int], size: tuple[int, int]) -> Masks:
    """Read masks of some frames, int8 (T, H, W): -1 in frames without annotation and in void pixels."""
    masks = np.full((len(indices), *size), IGNORED_PIXEL, np.int8)
    annotated = set() if truth is None else set(truth.annotated)
    for place, index in enumerate(indices):
        if truth is not None and index in annotated:
            masks[place] = truth.mask(index)
            void = truth.void(index)
            if void is not None:
                masks[place][void] = IGNORED_PIXEL
    return masks


# An image that stands for a video.


@dataclass(frozen=True)
class Crop:
    """A part of an image, enlarged to the whole.

    Attributes:
        box: Left, top, right and bottom in pixels.
    """

    box: tuple[float, float, float, float]

    def apply(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Crop an image, uint8 (H, W, 3), bilinearly, or a mask, int8 (H, W), by nearest neighbours."""
        height, width = image.shape[:2]
        if image.ndim == 3:
            cut = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, box=self.box)
            return np.array(cut)
        shifted = Image.fromarray((image + 1).astype(np.uint8))
        return np.array(shifted.resize((width, height), Image.Resampling.NEAREST, box=self.box)).astype(np.int8) - 1


def draw_crop(size: tuple[int, ...], rng: np.random.Generator) -> Crop:
    """Draw a part of an image of some height and width."""
    height, width = size[0], size[1]
    zoom = float(rng.uniform(1, LARGEST_ZOOM))
    wide, tall = width / zoom, height / zoom
    left, top = float(rng.uniform(0, width - wide)), float(rng.uniform(0, height - tall))
    return Crop((left, top, left + wide, top + tall))


def jitter(image: Rgb, rng: np.random.Generator) -> Rgb:
    """Change brightness, contrast, saturation and hue of an image at random.

    Args:
        image: uint8 (H, W, 3).
        rng: Random generator.
    """
    changed = Image.fromarray(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        changed = enhance(changed).enhance(float(rng.uniform(1 - COLOUR_CHANGE, 1 + COLOUR_CHANGE)))
    hue = np.array(changed.convert("HSV"))
    hue[..., 0] += np.uint8(round(float(rng.uniform(-HUE_CHANGE, HUE_CHANGE)) * 255) % 256)  # wraps around
    return np.array(Image.fromarray(hue, "HSV").convert("RGB"))
