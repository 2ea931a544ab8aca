"""Scenes and models for tests on every device; small enough for the imitated one."""

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
"""Odd, so that sizes do not divide by chance."""

MINIATURES = ("miniature", "refsam-miniature")


def shapes(count: int = 8, seed: int = 0) -> list[np.ndarray]:
    """Draw a moving red circle and a static blue square on grey; uint8 (H, W, 3)."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    frames = []
    for t in range(count):
        frame = np.full((*SIZE, 3), 110 + 40 * seed, np.uint8)
        frame[(x - 30 - 4 * t) ** 2 + (y - 45) ** 2 < 18**2] = (220, 40, 40)
        frame[58:88, 85:115] = (40, 90, 220)
        frames.append(frame)
    return frames


def circle(t: int) -> np.ndarray:
    """Draw the circle's mask in frame ``t``, bool (H, W)."""
    y, x = np.mgrid[0 : SIZE[0], 0 : SIZE[1]]
    return (x - 30 - 4 * t) ** 2 + (y - 45) ** 2 < 18**2


@functools.cache
def packaged(name: str, **options: Any) -> Any:
    """Load a bundled model on the CPU; do not modify it."""
    return load(name, device="cpu", **options)


def packaged_on(device: torch.device, name: str, **options: Any) -> Any:
    """Copy a bundled model to a device; building it on the imitated device would be slow."""
    return copy.deepcopy(packaged(name, **options)).to(device)


def sam2_model(dtype: torch.dtype = torch.float64) -> Sam2Segmenter:
    """Make a SAM2.1 with random weights; in float64, rounding never selects another mask."""
    return copy.deepcopy(sam2_segmenter("v2.1", dtype=dtype))


def placed(model: Segmenter[Any], frames: Sequence[np.ndarray]) -> Tensor:
    """Place frames in the model's square, on its device (T, 3, S, S)."""
    place = model.placement(SIZE)
    return torch.stack([place.place(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames]).to(model.device)


def devices_of(session: Session) -> set[torch.device]:
    """Find the devices of a session's tensors."""
    found: set[torch.device] = set()

    def collect(value: object) -> None:
        if isinstance(value, Tensor):
            found.add(value.device)
        elif isinstance(value, dict):
            collect(list(value.values()))
        elif isinstance(value, (list, tuple, deque)):
            for part in value:
                collect(part)
        elif dataclasses.is_dataclass(value):
            collect([getattr(value, field.name) for field in dataclasses.fields(value)])

    collect(session._state)
    return found


def close(found: np.ndarray, expected: np.ndarray, least: float) -> bool:
    """Check that each mask (..., H, W) has this IoU with the expected one, or differs in at most two pixels."""
    few = (found != expected).sum((-2, -1)) <= 2  # a large share of a small mask
    return bool(((ious(found, expected) >= least) | few).all())


def ious(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Compute the IoU of masks bool (..., H, W), 1 where both are empty: (...)."""
    union = (found | expected).sum((-2, -1))
    return np.where(union == 0, 1.0, (found & expected).sum((-2, -1)) / np.maximum(union, 1))
