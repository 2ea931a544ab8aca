"""Where the stages that learn sentences take clips and sentences from: drawn worlds, or benchmarks on disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from refervos.data.catalogue import open_dataset
from refervos.data.sample import Dataset, Mask, Sample
from refervos.errors import DataError, TrainingError
from refervos.placement import Placement
from refervos.training.stage import Key
from refervos.training.stages.pictures import cell_movements, draw_framed, place_frames, place_masks
from refervos.worlds import Sprites, WorldConfig, decidable_from, sample_expressions

Item = TypeVar("Item")

Sampling = Literal["neighbours", "mixed"]

_ATTEMPTS = 8
"""Anchors that are tried for a clip in which the target is visible."""


@dataclass(frozen=True)
class BenchmarkSource:
    """A split of a benchmark on disk.

    Attributes:
        name: As ``refervos data check`` calls it, such as ``mevis``.
        folder: Where it is.
        split: Which part.
        allow_outside: Read files that its annotations name although they are outside its folder.
    """

    name: str
    folder: str
    split: str = "train"
    allow_outside: bool = False

    def open(self) -> Dataset:
        """Read what is there.

        Raises:
            DataError: When it is not in its layout.
            ConfigError: When there is no such benchmark or split.
        """
        return open_dataset(self.name, Path(self.folder).expanduser(), self.split, allow_outside=self.allow_outside)


@dataclass(frozen=True, eq=False)
class AskedClip:
    """A clip and the M sentences asked about it, as the model takes it.

    Attributes:
        pixels: Placed frames, float32 (T, 3, S, S).
        masks: Placed masks, bool (M, T, S, S).
        inside: Height and width of the frame inside the square; the rest is padding.
        expressions: The sentences.
        verbs: For each sentence its words that tell motion; None where they are to be found.
        families: For each sentence the kind of it that results are told by.
        decidable: For each sentence the first frame from which what was seen settles what it is about.
        movements: How what fills each cell moves, float32 (T, n, n, 6), see ``cell_movements``; None where that is not
            known.
        void: Pixels that do not count, bool (M, T, S, S), none of them on a mask; None where all do.
    """

    pixels: Tensor
    masks: Tensor
    inside: tuple[int, int]
    expressions: tuple[str, ...]
    verbs: tuple[tuple[str, ...] | None, ...]
    families: tuple[str, ...]
    decidable: tuple[int, ...]
    movements: Tensor | None = None
    void: Tensor | None = None


class ClipSource(Protocol):
    """Draws what is asked; a pure function of its arguments."""

    def draw(self, step: int, index: int, key: Key, frames: int, sentences: int) -> AskedClip:
        """Draw a sample.

        Args:
            step: As in ``SampleSource.draw``, like ``index`` and ``key``.
            index: See ``step``.
            key: See ``step``.
            frames: Length T of the clip.
            sentences: Number M of sentences; some come again where there is too little to ask.
        """
        ...


@dataclass(frozen=True)
class WorldClips:
    """Clips and sentences from ``refervos.worlds``.

    Attributes:
        world: What scenes are like.
        aspects: Width over height; one is drawn for each clip.
        families: How often each family of sentences is asked.
        side: Side S of the model's square.
        pairs: Share of the sentences that are followed by their near miss, see ``sample_expressions``.
        movements: Side in pixels of the cells whose movement is told, and frames in a window; None to leave it out.
        stride: Share of the clips in which every second frame is left out, so that what happens slowly can happen.
        decidable: Whether it is found out from which frame on a sentence is decidable, which takes a while.
        sprites: The world's cut-outs, if any.
    """

    world: WorldConfig
    aspects: tuple[float, ...]
    families: Mapping[str, float]
    side: int
    pairs: float = 0.0
    movements: tuple[int, int] | None = None
    stride: float = 0.0
    decidable: bool = False
    sprites: Sprites | None = None

    def draw(self, step: int, index: int, key: Key, frames: int, sentences: int) -> AskedClip:
        """Draw a clip that fills the square's long side, and sentences about different objects where possible."""
        rng = np.random.default_rng([*key, step, index, 2])
        stride = 2 if self.stride and np.random.default_rng([*key, step, index, 3]).random() < self.stride else 1
        length = (frames - 1) * stride + 1
        clip = draw_framed([*key, step, index], self.world, length, self.aspects, self.side, self.sprites)
        if stride > 1:
            clip = clip.at(np.arange(frames) * stride)
        subjects = () if self.sprites is None else self.sprites.subjects
        asked = _as_many(sample_expressions(clip, rng, sentences, self.families, subjects, self.pairs), sentences)
        return AskedClip(
            pixels=place_frames(clip.frames, self.side),
            masks=torch.stack([place_masks(clip.target_masks(expression), self.side) for expression in asked]),
            inside=(clip.frames.shape[1], clip.frames.shape[2]),
            expressions=tuple(expression.text for expression in asked),
            verbs=tuple(tuple(expression.verbs) for expression in asked),
            families=tuple(expression.family for expression in asked),
            decidable=tuple(decidable_from(clip, expression) if self.decidable else 0 for expression in asked),
            movements=None if self.movements is None else cell_movements(clip, self.side, *self.movements),
        )


class BenchmarkClips:
    """Clips and sentences from benchmarks, taken together.

    Every sentence comes once for each ``stride`` frames of its video, with the first of them as its anchor;
    in every epoch each of these comes once, in an order of its own.

    Args:
        datasets: What to draw from; expressions without masks are left out.
        batch: Samples in an optimiser step.
        stride: Frames between anchors: the length of the clips.
        placement: How a frame of some height and width goes into the model's square.
        sampling: ``neighbours``: consecutive annotated frames around the anchor. ``mixed``: the anchor, one of the
            three frames before it, one of the three after it, and any others of the video.
        flip: Share of clips that are mirrored, "left" and "right" in their sentences too.

    Raises:
        TrainingError: When a data set has no masks to learn from.
    """

    def __init__(
        self,
        datasets: Sequence[Dataset],
        batch: int,
        stride: int,
        *,
        placement: Callable[[tuple[int, int]], Placement],
        sampling: Sampling = "mixed",
        flip: float = 0.5,
    ) -> None:
        self.batch, self.placement = batch, placement
        self.sampling: Sampling = sampling
        self.flip = flip
        self.samples: list[Sample] = []
        videos: dict[tuple[int, str], list[int]] = {}
        for number, dataset in enumerate(datasets):
            known = [
                sample
                for sample in dataset.samples
                if sample.ground_truth is not None and sample.ground_truth.annotated
            ]
            if not known:
                raise TrainingError(
                    f"{dataset.name} {dataset.split} has no masks to learn from; give a split with masks."
                )
            for sample in known:
                videos.setdefault((number, sample.video.id), []).append(len(self.samples))
                self.samples.append(sample)
        self.same_video = {number: together for together in videos.values() for number in together}
        counts = [-(-len(_timeline(sample)) // stride) for sample in self.samples]
        self.owners = np.repeat(np.arange(len(self.samples)), counts)  # which sample an entry is about
        self.anchors = np.concatenate([np.arange(count) * stride for count in counts])

    def __len__(self) -> int:
        """Samples in an epoch."""
        return len(self.owners)

    def draw(self, step: int, index: int, key: Key, frames: int, sentences: int) -> AskedClip:
        """Draw the clip whose turn it is, and other sentences about the same video where more than one is wanted."""
        epoch, place = divmod(step * self.batch + index, len(self))
        rng = np.random.default_rng([*key, step, index, 2])
        entry = int(_order(len(self), (*key, epoch))[place])
        owner, anchor = int(self.owners[entry]), int(self.anchors[entry])
        sample = self.samples[owner]
        chosen = self._frames_of(sample, anchor, frames, rng)
        others = [self.samples[other] for other in self.same_video[owner] if other != owner]
        others = [other for other in others if set(chosen) <= set(_timeline(other))]
        picked = rng.permutation(len(others))[: sentences - 1]
        asked = _as_many([sample] + [others[number] for number in picked], sentences)
        return self._placed(asked, chosen, mirror=bool(rng.random() < self.flip))

    def _frames_of(self, sample: Sample, anchor: int, count: int, rng: np.random.Generator) -> list[int]:
        """Frames around the anchor, or around other ones until the target is visible in one at least."""
        timeline = _timeline(sample)
        for _ in range(_ATTEMPTS):
            chosen = [timeline[time] for time in sample_times(anchor, len(timeline), count, self.sampling, rng)]
            if sample.has_target is False or any(_mask(sample, index).any() for index in chosen):
                break
            anchor = int(rng.integers(len(timeline)))
        return chosen

    def _placed(self, asked: Sequence[Sample], chosen: Sequence[int], *, mirror: bool) -> AskedClip:
        step = -1 if mirror else 1
        video = asked[0].video
        frames = [video.frames.read(index)[:, ::step] for index in chosen]
        masks = [[_mask(sample, index)[:, ::step] for index in chosen] for sample in asked]
        holes = {
            (row, time): hole[:, ::step]
            for row, sample in enumerate(asked)
            for time, index in enumerate(chosen)
            if (hole := _void(sample, index)) is not None and hole.any()
        }
        sizes = {frame.shape[:2] for frame in frames} | {mask.shape for track in masks for mask in track}
        sizes |= {hole.shape for hole in holes.values()}
        if len(sizes) > 1:
            told = " and ".join(f"{width}x{height}" for height, width in sorted(sizes))
            raise DataError(f"video {video.id!r}: frames and masks are {told}; all must be of one size.")
        placement = self.placement(sizes.pop())
        pixels = [placement.place(torch.from_numpy(frame.copy()).permute(2, 0, 1)) for frame in frames]
        placed = torch.stack([_place(torch.from_numpy(np.stack(track)), placement) for track in masks])  # (M, T, S, S)
        void = torch.zeros_like(placed)
        for (row, time), hole in holes.items():
            void[row, time] = _place(torch.from_numpy(hole.copy()).unsqueeze(0), placement)[0]
        return AskedClip(
            pixels=torch.stack(pixels),  # (T, 3, S, S)
            masks=placed & ~void,
            void=void if holes else None,
            inside=placement.resized,
            expressions=tuple(mirrored(s.expression) if mirror else s.expression for s in asked),
            verbs=(None,) * len(asked),
            families=tuple("none" if sample.has_target is False else sample.kind or "all" for sample in asked),
            decidable=(0,) * len(asked),
        )


_SIDE = re.compile(r"\b(left|right)(?=(?:most|wards?|er|hand|side)?(?:-?hand(?:ed)?)?\b)", re.IGNORECASE)


def mirrored(expression: str) -> str:
    """A sentence about the mirrored picture: "left" and "right" change places, as words and in "leftmost" and the like.

    Args:
        expression: ``the bright cup on the left``.

    Returns:
        ``the bright cup on the right``; case is kept for lower case, capitals and capitalised words.
    """

    def other(match: re.Match[str]) -> str:
        word = match.group()
        new = "right" if word.lower() == "left" else "left"
        return new.upper() if word.isupper() else new.capitalize() if word[0].isupper() else new

    return _SIDE.sub(other, expression)


def sample_times(anchor: int, length: int, count: int, sampling: Sampling, rng: np.random.Generator) -> list[int]:
    """Which frames make up a training clip.

    Args:
        anchor: A frame that must be among them, from 0.
        length: Frames to choose from.
        count: Frames wanted.
        sampling: See ``BenchmarkClips``.
        rng: Chooses.

    Returns:
        Ascending frames; all different unless the video is too short.
    """
    if count >= length:
        return [time * length // count for time in range(count)]
    if sampling == "neighbours":
        first = anchor - int(rng.integers(count))
        first = min(max(first, 0), length - count)
        return list(range(first, first + count))
    chosen = {anchor}
    for way in (-1, 1):
        near = min(max(anchor + way * int(rng.integers(1, 4)), 0), length - 1)
        if len(chosen) < count:
            chosen.add(near)
    rest = np.setdiff1d(np.arange(length), list(chosen))
    return sorted(chosen | {int(time) for time in rng.choice(rest, count - len(chosen), replace=False)})


def _timeline(sample: Sample) -> Sequence[int]:
    """The frames whose masks are known."""
    return () if sample.ground_truth is None else sample.ground_truth.annotated


def _mask(sample: Sample, index: int) -> Mask:
    assert sample.ground_truth is not None  # others were left out
    return sample.ground_truth.mask(index)


def _void(sample: Sample, index: int) -> Mask | None:
    assert sample.ground_truth is not None
    return sample.ground_truth.void(index)


def _place(masks: Tensor, placement: Placement) -> Tensor:
    """Masks bool (T, H, W) where ``Placement.place`` puts the frames: bool (T, S, S)."""
    masks = F.interpolate(masks.unsqueeze(0).float(), size=placement.resized, mode="nearest-exact")[0] > 0.5
    height, width = placement.resized
    return F.pad(masks, (0, placement.image_size - width, 0, placement.image_size - height))


def _as_many(items: Sequence[Item], count: int) -> list[Item]:
    """The first ``count`` items, going round again where there are fewer."""
    return [items[number % len(items)] for number in range(count)]


@lru_cache(maxsize=4)
def _order(length: int, seed: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """The order of an epoch."""
    return np.random.default_rng(seed).permutation(length)
