"""Bounded memory of a track: a few spatial memory maps and object pointers of past frames.

At frame k SAM2 reads the maps of the last six frames and the pointers of the last fifteen (SAM2 paper, section 4);
older ones can never be read again and are dropped. Conditioning frames, which a user prompted with clicks, a box or a
mask, are kept longer: the last few of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

CONDITIONING_SLOT = -1
"""Index of the temporal encoding that conditioning frames share: the last one."""


CONDITIONING_LIMIT = 4
"""Number of conditioning frames kept, the newest; transformers' SAM2 reads as many."""


@dataclass(frozen=True)
class MemoryMap:
    """Spatial memory of one frame: its index in the track and its map (memory_width, grid, grid)."""

    frame: int
    features: Tensor


@dataclass(frozen=True)
class ObjectPointer:
    """Object pointer of one frame: the frame's index in the track and the vector (hidden,)."""

    frame: int
    vector: Tensor


Entry = TypeVar("Entry", MemoryMap, ObjectPointer)


def _without(entries: deque[Entry], frame: int) -> deque[Entry]:
    return deque((entry for entry in entries if entry.frame != frame), maxlen=entries.maxlen)


@dataclass
class MemoryBank:
    """Memory of one track.

    Attributes:
        map_limit: Number of past maps that can be read (``memory_slots - 1``).
        pointer_limit: Number of past pointers that can be read (SAM2's ``max_obj_ptrs_in_encoder - 1``).
    """

    map_limit: int = 6
    pointer_limit: int = 15
    maps: deque[MemoryMap] = field(init=False)
    pointers: deque[ObjectPointer] = field(init=False)
    conditioning_maps: deque[MemoryMap] = field(init=False)
    conditioning_pointers: deque[ObjectPointer] = field(init=False)

    def __post_init__(self) -> None:
        self.maps = deque(maxlen=self.map_limit)
        self.pointers = deque(maxlen=self.pointer_limit)
        self.conditioning_maps = deque(maxlen=CONDITIONING_LIMIT)
        self.conditioning_pointers = deque(maxlen=CONDITIONING_LIMIT)

    def store(self, frame: int, features: Tensor, pointer: Tensor, *, conditioning: bool = False) -> None:
        """Store a frame and drop what falls out of the window.

        Args:
            frame: Index of the frame in the track, greater than every index stored before.
            features: Memory map (memory_width, grid, grid).
            pointer: Object pointer (hidden,).
            conditioning: True for a frame that the user prompted; it stays until newer conditioning frames replace it.
        """
        if conditioning:
            self.conditioning_maps.append(MemoryMap(frame, features))
            self.conditioning_pointers.append(ObjectPointer(frame, pointer))
        else:
            self.maps.append(MemoryMap(frame, features))
            self.pointers.append(ObjectPointer(frame, pointer))

    def read(self, frame: int) -> MemoryReading:
        """Return the memory that the current frame attends to, in SAM2's order.

        Args:
            frame: Index of the current frame in the track.

        Returns:
            Conditioning maps first, then past maps from the oldest to the newest; conditioning pointers first, then
            past pointers from the newest to the oldest.
        """
        maps = [(CONDITIONING_SLOT, entry.features) for entry in self.conditioning_maps]
        maps += [
            (frame - entry.frame - 1, entry.features) for entry in self.maps if frame - entry.frame <= self.map_limit
        ]
        pointers = [(frame - entry.frame, entry.vector) for entry in self.conditioning_pointers]
        pointers += [
            (frame - entry.frame, entry.vector)
            for entry in reversed(self.pointers)
            if frame - entry.frame <= self.pointer_limit
        ]
        return MemoryReading(
            slots=tuple(slot for slot, _ in maps),
            maps=[features for _, features in maps],
            ages=tuple(age for age, _ in pointers),
            pointers=[vector for _, vector in pointers],
        )

    def forget_frame(self, frame: int) -> None:
        """Remove one frame, conditioning or not."""
        self.maps = _without(self.maps, frame)
        self.pointers = _without(self.pointers, frame)
        self.conditioning_maps = _without(self.conditioning_maps, frame)
        self.conditioning_pointers = _without(self.conditioning_pointers, frame)

    def copy(self) -> MemoryBank:
        """Return an independent bank with the same content; the tensors, which are never modified, are shared."""
        copied = MemoryBank(self.map_limit, self.pointer_limit)
        copied.maps.extend(self.maps)
        copied.pointers.extend(self.pointers)
        copied.conditioning_maps.extend(self.conditioning_maps)
        copied.conditioning_pointers.extend(self.conditioning_pointers)
        return copied

    def clear(self) -> None:
        """Remove everything."""
        self.maps.clear()
        self.pointers.clear()
        self.conditioning_maps.clear()
        self.conditioning_pointers.clear()


@dataclass(frozen=True)
class MemoryReading:
    """Memory that one frame attends to, for one track (or, stacked, for several with the same layout).

    Attributes:
        slots: Index of each map's temporal encoding: its distance in frames minus one, or ``CONDITIONING_SLOT``.
        maps: Memory maps, (memory_width, grid, grid) each; (N, memory_width, grid, grid) when stacked.
        ages: Distance in frames of each pointer.
        pointers: Object pointers, (hidden,) each; (N, hidden) when stacked.
    """

    slots: tuple[int, ...]
    maps: list[Tensor]
    ages: tuple[int, ...]
    pointers: list[Tensor]

    @property
    def layout(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Slots and ages; tracks with equal layouts can be conditioned in one batch."""
        return self.slots, self.ages

    @property
    def empty(self) -> bool:
        """True when there is no memory to attend to."""
        return not self.maps

    def as_tensors(self, hidden: int) -> MemoryTensors:
        """Join the stacked memory of N tracks (see ``stack_readings``), with at least one map, into single tensors.

        Args:
            hidden: Width of a pointer.

        Returns:
            The same content.
        """
        tokens = _stack([features.flatten(2).transpose(1, 2) for features in self.maps], dim=1)  # (N, M, g*g, 64)
        return MemoryTensors(
            maps=tokens.transpose(2, 3).unflatten(3, self.maps[0].shape[2:]),
            slots=torch.tensor(self.slots),
            pointers=(
                _stack(self.pointers, dim=1) if self.pointers else tokens.new_zeros(len(self.maps[0]), 0, hidden)
            ),
            ages=torch.tensor(self.ages, dtype=torch.int64),
        )


@dataclass(frozen=True)
class MemoryTensors:
    """Memory that one frame attends to, for N tracks with M maps and P pointers each; see ``MemoryReading``.

    Attributes:
        maps: Memory maps (N, M, memory_width, grid, grid).
        slots: Index of each map's temporal encoding, int64 (M,).
        pointers: Object pointers (N, P, hidden); P may be 0.
        ages: Distance in frames of each pointer, int64 (P,).
    """

    maps: Tensor
    slots: Tensor
    pointers: Tensor
    ages: Tensor


def stack_readings(readings: Sequence[MemoryReading]) -> MemoryReading:
    """Join the readings of tracks that have the same layout into one with a batch dimension.

    Args:
        readings: One per track, all with the same layout.

    Returns:
        A reading whose maps are (N, memory_width, grid, grid) and whose pointers are (N, hidden).
    """
    first = readings[0]
    return MemoryReading(
        slots=first.slots,
        maps=[_stack(maps) for maps in zip(*(reading.maps for reading in readings), strict=True)],
        ages=first.ages,
        pointers=[_stack(vectors) for vectors in zip(*(reading.pointers for reading in readings), strict=True)],
    )


def _stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Stack along a new axis; a single tensor is not copied."""
    return tensors[0].unsqueeze(dim) if len(tensors) == 1 else torch.stack(list(tensors), dim=dim)


def group_by_layout(readings: Sequence[MemoryReading], kinds: Sequence[Hashable]) -> list[list[int]]:
    """Group the tracks that can go through the model as one batch.

    Args:
        readings: One per track.
        kinds: One value per track for anything else that must be equal, such as the number of prompt tokens.

    Returns:
        Groups of track indices, each ascending, in the order of their first members.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, (reading, kind) in enumerate(zip(readings, kinds, strict=True)):
        groups.setdefault((reading.layout, kind), []).append(index)
    return list(groups.values())
