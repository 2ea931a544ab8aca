"""Scenes and models for the tests that run on every device; small enough for one that is imitated."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refervos import load
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.segmenter import Segmenter
from refervos.session.session import Session
from test_sam2_segmenter import segmenter as sam2_segmenter

SENTENCES = ("the red circle", "the blue square")
SIZE = (95, 127)
"""Odd, so that nothing fits by chance."""

MINIATURES = ("miniature", "refsam-miniature")


def shapes(count: int = 8, seed: int = 0) -> list[np.ndarray]:
    """A red circle that moves and a blue square that stands, on grey; uint8 (H, W, 3)."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    frames = []
    for t in range(count):
        frame = np.full((*SIZE, 3), 110 + 40 * seed, np.uint8)
        frame[(x - 30 - 4 * t) ** 2 + (y - 45) ** 2 < 18**2] = (220, 40, 40)
        frame[58:88, 85:115] = (40, 90, 220)
        frames.append(frame)
    return frames


def circle(t: int) -> np.ndarray:
    """Where the circle is in frame ``t``, bool (H, W)."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    return (x - 30 - 4 * t) ** 2 + (y - 45) ** 2 < 18**2


@functools.cache
def packaged(name: str, **options: Any) -> Any:
    """A model of the package on the CPU; not to be changed."""
    return load(name, device="cpu", **options)


def packaged_on(device: torch.device, name: str, **options: Any) -> Any:
    """The same on a device; to build it there would take an imitation longer than all that is then asked of it."""
    return copy.deepcopy(packaged(name, **options)).to(device)


def sam2_model(dtype: torch.dtype = torch.float64) -> Sam2Segmenter:
    """A SAM2.1 of random weights that answers clicks, boxes and masks; in float64 rounding chooses no other mask."""
    return copy.deepcopy(sam2_segmenter("v2.1", dtype=dtype))


def placed(model: Segmenter[Any], frames: Sequence[np.ndarray]) -> Tensor:
    """Frames in the model's square, on its device (T, 3, S, S)."""
    place = model.placement(SIZE)
    return torch.stack([place.place(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames]).to(model.device)


def devices_of(session: Session) -> set[torch.device]:
    """Where a session's tensors are."""
    found: set[torch.device] = set()

    def look(value: object) -> None:
        if isinstance(value, Tensor):
            found.add(value.device)
        elif isinstance(value, dict):
            look(list(value.values()))
        elif isinstance(value, (list, tuple, deque)):
            for part in value:
                look(part)
        elif dataclasses.is_dataclass(value):
            look([getattr(value, field.name) for field in dataclasses.fields(value)])

    look(session._state)
    return found


def close(found: np.ndarray, expected: np.ndarray, least: float) -> bool:
    """Whether each mask bool (..., H, W) has at least this IoU with its twin, or differs in two pixels at most."""
    few = (found != expected).sum((-2, -1)) <= 2  # of a small mask these are much
    return bool(((ious(found, expected) >= least) | few).all())


def ious(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Intersection over union of masks bool (..., H, W), 1 where both are empty: (...)."""
    union = (found | expected).sum((-2, -1))
    return np.where(union == 0, 1.0, (found & expected).sum((-2, -1)) / np.maximum(union, 1))
