"""Units of work and the shards that they are packed into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refervos.batch.inputs import InputFacts
from refervos.batch.manifest import Entry

SHARD_SECONDS = 120.0
"""Work of a shard in seconds: larger ones save nothing and lose more in a failure (docs/batch.md)."""

_BYTES_PER_FRAME = 8000
"""Bytes of a frame of typical compressed video, from which a number of frames is estimated if it is unknown."""

_UNKNOWN_FRAMES = 250


@dataclass(frozen=True)
class Cost:
    """Cost of work on one worker.

    Attributes:
        load: Seconds to start a worker and load the model.
        overhead: Seconds per video.
        commit: Seconds per shard, for its lease, its file and the log.
        shared: Seconds per frame for decoding and for what all sentences share.
        sentence: Seconds per frame and sentence.
    """

    load: float = 20.0
    overhead: float = 2.0
    commit: float = 0.0
    shared: float = 0.5 / 30
    sentence: float = 0.5 / 30

    @classmethod
    def from_fps(cls, fps: float, **more: float) -> Cost:
        """Return the cost at a frame rate measured with one sentence, of which half is shared between sentences."""
        return cls(shared=0.5 / fps, sentence=0.5 / fps, **more)

    @property
    def fps(self) -> float:
        """Frames per second with one sentence."""
        return 1 / max(self.shared + self.sentence, 1e-9)

    def seconds(self, frames: int, sentences: int) -> float:
        """Return the seconds of work for one video."""
        return self.overhead + frames * (self.shared + self.sentence * sentences)


@dataclass(frozen=True)
class Unit:
    """One video with all its sentences: the smallest piece of work.

    Attributes:
        name: 16 hexadecimal digits that depend on the video's content, range and sentences, the model and the options.
        uri: Absolute path or address of the video.
        version: Version of the file (see ``InputFacts``).
        start: First frame.
        end: Frame before which to end; None for all.
        expressions: The sentences; the position of each is the number of its track.
        frames: Number of frames to segment, possibly estimated.
        work: Estimated seconds of work.
    """

    name: str
    uri: str
    version: str
    start: int
    end: int | None
    expressions: tuple[str, ...]
    frames: int
    work: float


@dataclass(frozen=True)
class Shard:
    """Units that are processed one after another and written to one file.

    Attributes:
        name: Name of the file, without suffix; unique in the folder of results.
        units: The units, in the order of the file.
        generation: 0, or the number of the repetition of failed units.
    """

    name: str
    units: tuple[Unit, ...]
    generation: int = 0

    @property
    def work(self) -> float:
        """Estimated seconds of work."""
        return sum(unit.work for unit in self.units)


def make_unit(entry: Entry, facts: InputFacts, frames: int | None, stamp: Mapping[str, Any], cost: Cost) -> Unit:
    """Make the unit of a manifest entry.

    Args:
        entry: The video and its sentences.
        facts: Facts of the file.
        frames: Number of frames found in the file; None if unknown.
        stamp: Model fingerprint and options that determine the masks.
        cost: Cost of the work.

    Returns:
        The unit; the same inputs give the same name.
    """
    identity = [entry.uri, facts.version, entry.start, entry.end, list(entry.expressions), stamp]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
    total = entry.frames or frames or (_UNKNOWN_FRAMES if not facts.size else facts.size // _BYTES_PER_FRAME + 1)
    chosen = len(range(total)[entry.start : entry.end])
    return Unit(
        name=digest[:16],
        uri=entry.uri,
        version=facts.version,
        start=entry.start,
        end=entry.end,
        expressions=entry.expressions,
        frames=chosen,
        work=cost.seconds(chosen, len(entry.expressions)),
    )


def pack(units: Sequence[Unit], seconds: float) -> list[tuple[Unit, ...]]:
    """Pack units into shards of at least so many seconds of work; only the last may be shorter.

    Args:
        units: The units.
        seconds: Least work of a shard.

    Returns:
        The shards, those with most work first; units are taken longest first, so that a long one stands alone.
    """
    shards: list[tuple[Unit, ...]] = []
    begun: list[Unit] = []
    work = 0.0
    for unit in sorted(units, key=lambda unit: (-unit.work, unit.name)):
        begun.append(unit)
        work += unit.work
        if work >= seconds:
            shards.append(tuple(begun))
            begun, work = [], 0.0
    if begun:
        shards.append(tuple(begun))
    return sorted(shards, key=lambda shard: (-sum(unit.work for unit in shard), shard[0].name))
