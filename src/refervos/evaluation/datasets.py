"""The evaluated part of a data set, described so that every process can open it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from refervos.data import catalogue
from refervos.data.files import Problems
from refervos.data.layouts import world_conversations
from refervos.data.layouts import worlds as worlds_benchmark
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import ConfigError

Scoring = catalogue.Scoring | Literal["worlds"]
"""Scoring of a benchmark: as in the catalogue, or over the splits of ``refervos.worlds``."""


@dataclass(frozen=True)
class Part:
    """A split of a data set, or its first videos.

    Attributes:
        name: Name of the benchmark, such as ``mevis``, or ``worlds`` or ``world-conversations``.
        folder: Folder of the data set; these two need none.
        split: The split; default the benchmark's.
        videos: Number of videos, from the first; default all.
        allow_outside: Also read files outside the folder, if annotations name them.
    """

    name: str
    folder: Path | None = None
    split: str | None = None
    videos: int | None = None
    allow_outside: bool = False

    @property
    def scoring(self) -> Scoring:
        """Scoring of the benchmark; ConfigError when it is unknown."""
        if self.name == world_conversations.NAME:
            return "video"
        return "worlds" if self.name == worlds_benchmark.NAME else catalogue.find_benchmark(self.name).scoring

    def open(self) -> OpenPart:
        """Read the annotations.

        Raises:
            ConfigError: When the benchmark or split is unknown, or the folder is missing.
            DataError: When the data set is not in its published layout, or files are missing or damaged.
        """
        if self.name == worlds_benchmark.NAME:
            dataset = worlds_benchmark.read_worlds(self.folder, self.split or worlds_benchmark.ALL, Problems())
        elif self.name == world_conversations.NAME:
            split = self.split or world_conversations.CAPTIONS
            dataset = world_conversations.read_world_conversations(self.folder, split, Problems())
        elif self.folder is None:
            title = catalogue.find_benchmark(self.name).title
            raise ConfigError(f"{title} needs the folder of the data set; give it after the name {self.name}.")
        else:
            dataset = catalogue.open_dataset(self.name, self.folder, self.split, allow_outside=self.allow_outside)
        return OpenPart(dataset, self.scoring, tuple(islice(dataset.videos(), self.videos)))


@dataclass(frozen=True, eq=False)
class OpenPart:
    """A part of a data set with its annotations read.

    Attributes:
        dataset: The whole split.
        scoring: Scoring of the benchmark.
        videos: The evaluated videos with their expressions.
    """

    dataset: Dataset
    scoring: Scoring
    videos: tuple[tuple[Video, list[Sample]], ...]

    def samples(self) -> Iterator[Sample]:
        """Yield the evaluated expressions, video by video."""
        for _, samples in self.videos:
            yield from samples
