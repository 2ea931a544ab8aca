"""What a track keeps of the frames it has seen, and no more: a few spatial memory maps and object pointers.

SAM2 reads, at frame k, the maps of the last six frames and the pointers of the last fifteen (SAM2 paper, section 4);
older ones can never be read again, so they are dropped. Frames that a user prompted with clicks, a box or a mask
("conditioning frames") stay, the last few of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

CONDITIONING_SLOT = -1
"""Index of the temporal code that conditioning frames share: the last one."""


CONDITIONING_LIMIT = 4
"""How many conditioning frames are kept, the newest; transformers' SAM2 reads as many."""


@dataclass(frozen=True)
class MemoryMap:
    """The spatial memory of one frame: which frame of the track, and its map (memory_width, grid, grid)."""

    frame: int
    features: Tensor


@dataclass(frozen=True)
class ObjectPointer:
    """The object pointer of one frame: which frame of the track, and its vector (hidden,)."""

    frame: int
    vector: Tensor


Entry = TypeVar("Entry", MemoryMap, ObjectPointer)


def _without(entries: deque[Entry], frame: int) -> deque[Entry]:
    return deque((entry for entry in entries if entry.frame != frame), maxlen=entries.maxlen)


@dataclass
class MemoryBank:
    """The memory of one track.

    Attributes:
        map_limit: How many past maps can be read (``memory_slots - 1``).
        pointer_limit: How many past pointers can be read (SAM2's ``max_obj_ptrs_in_encoder - 1``).
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
        """Remember a frame; what falls out of the window is dropped.

        Args:
            frame: Number of the frame within the track, greater than every one stored before.
            features: Memory map (memory_width, grid, grid).
            pointer: Object pointer (hidden,).
            conditioning: True for a frame that the user prompted: it stays until newer ones take its place.
        """
        if conditioning:
            self.conditioning_maps.append(MemoryMap(frame, features))
            self.conditioning_pointers.append(ObjectPointer(frame, pointer))
        else:
            self.maps.append(MemoryMap(frame, features))
            self.pointers.append(ObjectPointer(frame, pointer))

    def read(self, frame: int) -> MemoryReading:
        """What frame ``frame`` may look at, in the order in which SAM2 lines it up.

        Args:
            frame: Number of the current frame within the track.

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
        """Forget one frame of the track, however it came to be remembered."""
        self.maps = _without(self.maps, frame)
        self.pointers = _without(self.pointers, frame)
        self.conditioning_maps = _without(self.conditioning_maps, frame)
        self.conditioning_pointers = _without(self.conditioning_pointers, frame)

    def copy(self) -> MemoryBank:
        """A bank of its own with the same content; the tensors, which nobody changes, are shared."""
        copied = MemoryBank(self.map_limit, self.pointer_limit)
        copied.maps.extend(self.maps)
        copied.pointers.extend(self.pointers)
        copied.conditioning_maps.extend(self.conditioning_maps)
        copied.conditioning_pointers.extend(self.conditioning_pointers)
        return copied

    def clear(self) -> None:
        """Forget everything."""
        self.maps.clear()
        self.pointers.clear()
        self.conditioning_maps.clear()
        self.conditioning_pointers.clear()


@dataclass(frozen=True)
class MemoryReading:
    """What one frame looks at, for one track (or, stacked, for several with the same layout).

    Attributes:
        slots: Index of each map's temporal code: its distance in frames minus one, or ``CONDITIONING_SLOT``.
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
        """Tracks whose layouts are equal can be conditioned in one batch."""
        return self.slots, self.ages

    @property
    def empty(self) -> bool:
        """Whether there is nothing to look at."""
        return not self.maps

    def as_tensors(self, hidden: int) -> MemoryTensors:
        """Line up what N tracks remember in single tensors.

        Args:
            hidden: Width of a pointer.

        Returns:
            The same content; there must be a map, and pointers and maps must be stacked (see ``stack_readings``).
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
    """What one frame looks at for N tracks, M maps and P pointers each, see ``MemoryReading``.

    Attributes:
        maps: Memory maps (N, M, memory_width, grid, grid).
        slots: Index of each map's temporal code, int64 (M,).
        pointers: Object pointers (N, P, hidden), P = 0 where there are none.
        ages: Distance in frames of each pointer, int64 (P,).
    """

    maps: Tensor
    slots: Tensor
    pointers: Tensor
    ages: Tensor


def stack_readings(readings: Sequence[MemoryReading]) -> MemoryReading:
    """Join the readings of tracks that have the same layout into one with a batch dimension.

    Args:
        readings: One reading a track; all layouts equal.

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
    """Stack along a new axis; of a single tensor a view."""
    return tensors[0].unsqueeze(dim) if len(tensors) == 1 else torch.stack(list(tensors), dim=dim)


def group_by_layout(readings: Sequence[MemoryReading], kinds: Sequence[Hashable]) -> list[list[int]]:
    """Find the tracks that can go through the model as one batch.

    Args:
        readings: One reading a track.
        kinds: One value a track for what else must be equal, such as the number of prompt tokens.

    Returns:
        Groups of positions, each ascending, in the order of their first members.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, (reading, kind) in enumerate(zip(readings, kinds, strict=True)):
        groups.setdefault((reading.layout, kind), []).append(index)
    return list(groups.values())
