"""Sources of clips and sentences for the referring stages: drawn worlds, or benchmarks on disk."""

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
from refervos.training.stages.world_tensors import (
    cell_labels,
    cell_movements,
    draw_framed,
    kind_names,
    place_frames,
    place_masks,
)
from refervos.worlds import Sprites, WorldConfig, decidable_from, sample_expressions

Item = TypeVar("Item")

Sampling = Literal["neighbours", "mixed"]

_ATTEMPTS = 8
"""Number of anchors to try for a clip in which the target is visible."""


@dataclass(frozen=True)
class BenchmarkSource:
    """A split of a benchmark on disk.

    Attributes:
        name: Name as in ``refervos data check``, such as ``mevis``.
        folder: Folder of the benchmark.
        split: Name of the split.
        allow_outside: Read files outside the folder if the annotations name them.
    """

    name: str
    folder: str
    split: str = "train"
    allow_outside: bool = False

    def open(self) -> Dataset:
        """Open the split.

        Raises:
            DataError: When the folder does not have the benchmark's layout.
            ConfigError: When there is no such benchmark or split.
        """
        return open_dataset(self.name, Path(self.folder).expanduser(), self.split, allow_outside=self.allow_outside)


@dataclass(frozen=True, eq=False)
class ReferringClip:
    """A clip with M sentences and their masks, as the model takes them.

    Attributes:
        pixels: Placed frames, float32 (T, 3, S, S).
        masks: Placed masks, bool (M, T, S, S).
        frame_size: Height and width of the frame inside the square; the rest is padding.
        expressions: The sentences.
        verbs: Motion words of each sentence; None to detect them.
        families: Family of each sentence, by which results are reported.
        decidable: First frame of each sentence from which the frames so far determine its target.
        movements: Movement of the contents of each cell, float32 (T, n, n, 6), see ``cell_movements``; None if unknown.
        void: Pixels to ignore, bool (M, T, S, S), none of them on a mask; None without any.
        names: Index of the kind of object in each cell, int64 (T, n, n), see ``cell_labels``; None if unknown.
    """

    pixels: Tensor
    masks: Tensor
    frame_size: tuple[int, int]
    expressions: tuple[str, ...]
    verbs: tuple[tuple[str, ...] | None, ...]
    families: tuple[str, ...]
    decidable: tuple[int, ...]
    movements: Tensor | None = None
    void: Tensor | None = None
    names: Tensor | None = None


class ClipSource(Protocol):
    """Source of clips with sentences; ``draw`` is a pure function of its arguments."""

    def draw(self, step: int, index: int, key: Key, frames: int, sentences: int) -> ReferringClip:
        """Draw a clip.

        Args:
            step: See ``SampleSource.draw``.
            index: See ``SampleSource.draw``.
            key: See ``SampleSource.draw``.
            frames: Length T of the clip.
            sentences: Number M of sentences; repeated if the clip has fewer.
        """
        ...


@dataclass(frozen=True)
class WorldClips:
    """Clips and sentences from ``refervos.worlds``.

    Attributes:
        world: Distribution of scenes.
        aspects: Width over height; one is drawn for each clip.
        families: Relative frequency of each family of sentences.
        image_size: Side S of the model's square.
        pairs: Share of the sentences that are followed by their near miss, see ``sample_expressions``.
        movements: Side in pixels of the cells whose movement is computed, and frames in a window; None to omit it.
        stride: Share of the clips in which every second frame is left out, so that slow events fit.
        decidable: Compute the frame from which each sentence is decidable, which takes a while.
        sprites: The world's cut-outs, if any.
        names: Side in pixels of the cells whose kind of object is named; None to omit it.
    """

    world: WorldConfig
    aspects: tuple[float, ...]
    families: Mapping[str, float]
    image_size: int
    pairs: float = 0.0
    movements: tuple[int, int] | None = None
    stride: float = 0.0
    decidable: bool = False
    sprites: Sprites | None = None
    names: int | None = None

    def draw(self, step: int, index: int, key: Key, frames: int, sentences: int) -> ReferringClip:
        """Draw a clip that fills the square's long side, and sentences about different objects where possible."""
        rng = np.random.default_rng([*key, step, index, 2])
        stride = 2 if self.stride and np.random.default_rng([*key, step, index, 3]).random() < self.stride else 1
        length = (frames - 1) * stride + 1
        clip = draw_framed([*key, step, index], self.world, length, self.aspects, self.image_size, self.sprites)
        if stride > 1:
            clip = clip.at(np.arange(frames) * stride)
        subjects = () if self.sprites is None else self.sprites.subjects
        expressions = _cycle(sample_expressions(clip, rng, sentences, self.families, subjects, self.pairs), sentences)
        masks = [place_masks(clip.target_masks(expression), self.image_size) for expression in expressions]
        return ReferringClip(
            pixels=place_frames(clip.frames, self.image_size),
            masks=torch.stack(masks),
            frame_size=(clip.frames.shape[1], clip.frames.shape[2]),
            expressions=tuple(expression.text for expression in expressions),
            verbs=tuple(tuple(expression.verbs) for expression in expressions),
            families=tuple(expression.family for expression in expressions),
            decidable=tuple(decidable_from(clip, expression) if self.decidable else 0 for expression in expressions),
            movements=None if self.movements is None else cell_movements(clip, self.image_size, *self.movements),
            names=None
            if self.names is None
            else cell_labels(clip, self.image_size, self.names, kind_names(self.sprites))[..., 0],
        )


class BenchmarkClips:
    """Clips and sentences from one or more benchmarks.

    An entry of an epoch is a sentence with an anchor frame, of which there is one for each ``stride`` frames of the
    video. Every epoch contains each entry once, in a new order.

    Args:
        datasets: Data sets to draw from; expressions without masks are left out.
        batch: Samples in an optimiser step.
        stride: Frames between anchors, the length of the clips.
        placement: Returns the placement of a frame, given its height and width, in the model's square.
        sampling: ``neighbours``: consecutive annotated frames around the anchor. ``mixed``: the anchor, one of the
            three frames before it, one of the three after it, and any others of the video.
        flip: Share of clips to mirror, with "left" and "right" swapped in their sentences.

    Raises:
        TrainingError: When a data set has no masks to train on.
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
                    f"{dataset.name} {dataset.split} has no masks to train on; give a split with masks."
                )
            for sample in known:
                videos.setdefault((number, sample.video.id), []).append(len(self.samples))
                self.samples.append(sample)
        self.same_video = {number: samples for samples in videos.values() for number in samples}
        counts = [-(-len(_timeline(sample)) // stride) for sample in self.samples]
        self.owners = np.repeat(np.arange(len(self.samples)), counts)  # index of each entry's sample
        self.anchors = np.concatenate([np.arange(count) * stride for count in counts])

    def __len__(self) -> int:
        """Return the number of entries in an epoch."""
        return len(self.owners)

    def draw(self, step: int, index: int, key: Key, frames: int, sentences: int) -> ReferringClip:
        """Draw the next clip of the epoch, with its sentence and others about the same video."""
        epoch, position = divmod(step * self.batch + index, len(self))
        rng = np.random.default_rng([*key, step, index, 2])
        entry = int(_order(len(self), (*key, epoch))[position])
        owner, anchor = int(self.owners[entry]), int(self.anchors[entry])
        sample = self.samples[owner]
        chosen = self._frames_of(sample, anchor, frames, rng)
        others = [self.samples[other] for other in self.same_video[owner] if other != owner]
        others = [other for other in others if set(chosen) <= set(_timeline(other))]
        picked = rng.permutation(len(others))[: sentences - 1]
        samples = _cycle([sample] + [others[number] for number in picked], sentences)
        return self._place(samples, chosen, mirror=bool(rng.random() < self.flip))

    def _frames_of(self, sample: Sample, anchor: int, count: int, rng: np.random.Generator) -> list[int]:
        """Choose frames around the anchor, or around random ones until the target is visible in at least one."""
        timeline = _timeline(sample)
        for _ in range(_ATTEMPTS):
            chosen = [timeline[time] for time in sample_times(anchor, len(timeline), count, self.sampling, rng)]
            if sample.has_target is False or any(_mask(sample, index).any() for index in chosen):
                break
            anchor = int(rng.integers(len(timeline)))
        return chosen

    def _place(self, samples: Sequence[Sample], chosen: Sequence[int], *, mirror: bool) -> ReferringClip:
        """Read the chosen frames and masks of samples of one video, and place them in the model's square."""
        step = -1 if mirror else 1
        video = samples[0].video
        frames = [video.frames.read(index)[:, ::step] for index in chosen]
        masks = [[_mask(sample, index)[:, ::step] for index in chosen] for sample in samples]
        voids = {
            (row, time): void[:, ::step]
            for row, sample in enumerate(samples)
            for time, index in enumerate(chosen)
            if (void := _void(sample, index)) is not None and void.any()
        }
        sizes = {frame.shape[:2] for frame in frames} | {mask.shape for track in masks for mask in track}
        sizes |= {void.shape for void in voids.values()}
        if len(sizes) > 1:
            listed = " and ".join(f"{width}x{height}" for height, width in sorted(sizes))
            raise DataError(f"video {video.id!r}: frames and masks are {listed}; all must be of one size.")
        placement = self.placement(sizes.pop())
        pixels = [placement.place(torch.from_numpy(frame.copy()).permute(2, 0, 1)) for frame in frames]
        placed = torch.stack([_place_masks(np.stack(track), placement) for track in masks])  # (M, T, S, S)
        placed_void = torch.zeros_like(placed)
        for (row, time), void in voids.items():
            placed_void[row, time] = _place_masks(void[None].copy(), placement)[0]
        return ReferringClip(
            pixels=torch.stack(pixels),  # (T, 3, S, S)
            masks=placed & ~placed_void,
            void=placed_void if voids else None,
            frame_size=placement.resized,
            expressions=tuple(mirror_expression(s.expression) if mirror else s.expression for s in samples),
            verbs=(None,) * len(samples),
            families=tuple("none" if sample.has_target is False else sample.kind or "all" for sample in samples),
            decidable=(0,) * len(samples),
        )


_LEFT_RIGHT = re.compile(r"\b(left|right)(?=(?:most|wards?|er|hand|side)?(?:-?hand(?:ed)?)?\b)", re.IGNORECASE)


def mirror_expression(expression: str) -> str:
    """Swap "left" and "right" in a sentence, also in words such as "leftmost".

    Args:
        expression: ``the bright cup on the left``.

    Returns:
        ``the bright cup on the right``; lower case, capitals and capitalised words are kept.
    """

    def swap(match: re.Match[str]) -> str:
        word = match.group()
        new = "right" if word.lower() == "left" else "left"
        return new.upper() if word.isupper() else new.capitalize() if word[0].isupper() else new

    return _LEFT_RIGHT.sub(swap, expression)


def sample_times(anchor: int, length: int, count: int, sampling: Sampling, rng: np.random.Generator) -> list[int]:
    """Choose the frames of a training clip.

    Args:
        anchor: A frame that must be among them, from 0.
        length: Number of frames to choose from.
        count: Number of frames to choose.
        sampling: See ``BenchmarkClips``.
        rng: Random generator.

    Returns:
        Ascending frame indices; all different unless the video is too short.
    """
    if count >= length:
        return [time * length // count for time in range(count)]
    if sampling == "neighbours":
        first = anchor - int(rng.integers(count))
        first = min(max(first, 0), length - count)
        return list(range(first, first + count))
    chosen = {anchor}
    for direction in (-1, 1):
        near = min(max(anchor + direction * int(rng.integers(1, 4)), 0), length - 1)
        if len(chosen) < count:
            chosen.add(near)
    rest = np.setdiff1d(np.arange(length), list(chosen))
    return sorted(chosen | {int(time) for time in rng.choice(rest, count - len(chosen), replace=False)})


def _timeline(sample: Sample) -> Sequence[int]:
    """Return the indices of the annotated frames."""
    return () if sample.ground_truth is None else sample.ground_truth.annotated


def _mask(sample: Sample, index: int) -> Mask:
    assert sample.ground_truth is not None  # others were left out
    return sample.ground_truth.mask(index)


def _void(sample: Sample, index: int) -> Mask | None:
    assert sample.ground_truth is not None
    return sample.ground_truth.void(index)


def _place_masks(masks: npt.NDArray[np.bool_], placement: Placement) -> Tensor:
    """Resize and pad masks as ``Placement.place`` does frames: bool (T, H, W) -> bool (T, S, S)."""
    pixels = torch.from_numpy(masks).unsqueeze(0).float()
    resized = F.interpolate(pixels, size=placement.resized, mode="nearest-exact")[0] > 0.5
    height, width = placement.resized
    return F.pad(resized, (0, placement.image_size - width, 0, placement.image_size - height))


def _cycle(items: Sequence[Item], count: int) -> list[Item]:
    """Return the first ``count`` items, repeating from the start if there are fewer."""
    return [items[number % len(items)] for number in range(count)]


@lru_cache(maxsize=4)
def _order(length: int, seed: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Draw the order of an epoch."""
    return np.random.default_rng(seed).permutation(length)
