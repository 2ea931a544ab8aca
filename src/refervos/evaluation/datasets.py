"""Which part of which data set is evaluated, in words that every process can open it by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from refervos.data import catalogue
from refervos.data.files import Problems
from refervos.data.layouts import worlds as worlds_benchmark
from refervos.data.sample import Dataset, Sample, Video
from refervos.errors import ConfigError

Scoring = catalogue.Scoring | Literal["worlds"]
"""How a benchmark is scored: as the catalogue says, or over the splits of ``refervos.worlds``."""


@dataclass(frozen=True)
class Part:
    """A split of a data set, or its first videos.

    Attributes:
        name: Of the benchmark, such as ``mevis``, or ``worlds``.
        folder: Where it is; ``worlds`` needs none.
        split: Which split, default the benchmark's.
        videos: Only the first so many.
        allow_outside: Read files that its annotations name although they are outside its folder.
    """

    name: str
    folder: Path | None = None
    split: str | None = None
    videos: int | None = None
    allow_outside: bool = False

    @property
    def scoring(self) -> Scoring:
        """How it is scored; ConfigError when there is no such benchmark."""
        return "worlds" if self.name == worlds_benchmark.NAME else catalogue.find_benchmark(self.name).scoring

    def open(self) -> OpenPart:
        """Read its annotations.

        Raises:
            ConfigError: When there is no such benchmark or split, or its folder is not given.
            DataError: When it is not in its published layout, or something of it is missing or damaged.
        """
        if self.name == worlds_benchmark.NAME:
            dataset = worlds_benchmark.read_worlds(self.folder, self.split or worlds_benchmark.ALL, Problems())
        elif self.folder is None:
            title = catalogue.find_benchmark(self.name).title
            raise ConfigError(f"where {title} is must be told; give its folder after the name {self.name}.")
        else:
            dataset = catalogue.open_dataset(self.name, self.folder, self.split, allow_outside=self.allow_outside)
        return OpenPart(dataset, self.scoring, tuple(islice(dataset.videos(), self.videos)))


@dataclass(frozen=True, eq=False)
class OpenPart:
    """A part of a data set, ready to be read.

    Attributes:
        dataset: All of the split.
        scoring: How it is scored.
        videos: The videos that are evaluated, with their expressions.
    """

    dataset: Dataset
    scoring: Scoring
    videos: tuple[tuple[Video, list[Sample]], ...]

    def samples(self) -> Iterator[Sample]:
        """The expressions that are evaluated, video by video."""
        for _, samples in self.videos:
            yield from samples
