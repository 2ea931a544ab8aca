"""Simulated prompts of a user of SAM2: clicks, a box or a mask, later clicks, or a change to another object.

Prompts and ground truth are both derived from the exact masks of a clip.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refervos.errors import ConfigError
from refervos.training.stages.ranges import SHARE, WEIGHT
from refervos.typed_config import check_range

Masks = npt.NDArray[np.bool_]

PADDING = -1
"""Label of a padding point."""

KINDS = ("click", "clicks", "box", "mask", "background")
"""Kinds of first prompts."""


@dataclass(frozen=True)
class PromptShares:
    """Relative frequencies of the kinds of prompts.

    Attributes:
        click: One click on the object.
        clicks: Several clicks, some of them beside the object.
        box: A box with jittered corners.
        mask: A rough mask.
        background: One click on the background, with an empty ground truth.
        again: Probability, for each later frame, of a click on the same object.
        switch: Probability that the prompts change to another object in the second half of the clip.
    """

    click: float = 0.35
    clicks: float = 0.15
    box: float = 0.2
    mask: float = 0.22
    background: float = 0.08
    again: float = 0.2
    switch: float = 0.15

    def __post_init__(self) -> None:
        check_range(self, **dict.fromkeys(KINDS, WEIGHT), again=SHARE, switch=SHARE)
        if not any(getattr(self, kind) for kind in KINDS):
            raise ConfigError(f"asked has no kind of prompt above 0; give one of {', '.join(KINDS)} above 0.")


@dataclass(frozen=True)
class SimulatedPrompts:
    """Prompts for one object of a clip, and its ground truth.

    Attributes:
        points: Pixels x, y, float32 (T, P, 2).
        labels: 1 on the object, 0 off it, 2 and 3 corners of a box, -1 padding; int64 (T, P).
        masks: Mask prompts, bool (T, S, S); all False in frames without one.
        ground_truth: Masks to predict, bool (T, S, S).
    """

    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    masks: Masks
    ground_truth: Masks


def simulate_prompts(
    masks: Masks, shares: PromptShares, points: int, rng: np.random.Generator, least_area: int
) -> SimulatedPrompts:
    """Draw the prompts for one object (or for the background, or for one object and then another).

    Args:
        masks: Visible parts of the clip's K objects (K, T, S, S).
        shares: Relative frequencies of the kinds of prompts.
        points: P, at least 2.
        rng: Random generator.
        least_area: Least number of pixels of an object that gets a prompt.

    Returns:
        The prompts. Before the first, and where the object is not visible, the ground truth is an empty mask.
    """
    count, frames = masks.shape[:2]
    side = masks.shape[-1]
    prompts = SimulatedPrompts(
        np.zeros((frames, points, 2), np.float32),
        np.full((frames, points), PADDING, np.int64),
        np.zeros((frames, side, side), bool),
        np.zeros((frames, side, side), bool),
    )
    weights = np.array([getattr(shares, kind) for kind in KINDS])
    kind = str(rng.choice(KINDS, p=weights / weights.sum()))
    if kind == "background":
        _put_click(prompts, 0, ~masks[:, 0].any(0), 1, rng)
        return prompts
    target = int(rng.integers(count))
    turn = int(rng.integers(frames // 2, frames)) if frames > 3 and rng.random() < shares.switch else frames
    prompted = False
    for time in range(frames):
        if time == turn and prompted:
            seen = [k for k in range(count) if k != target and masks[k, time].sum() >= least_area]
            if seen:
                target, prompted = int(rng.choice(seen)), False
        mask = masks[target, time]
        if mask.sum() >= least_area:
            if not prompted:
                _put(prompts, time, mask, masks[:, time].any(0), kind, rng)
                prompted = True
            elif rng.random() < shares.again:
                _put_click(prompts, time, mask, 1, rng)
        if prompted:
            prompts.ground_truth[time] = mask
    return prompts


def _put(prompts: SimulatedPrompts, time: int, mask: Masks, union: Any, kind: str, rng: np.random.Generator) -> None:
    """Add a prompt for a mask (S, S) at a frame; ``union`` is the union of all objects."""
    if kind == "click":
        _put_click(prompts, time, mask, 1, rng)
    elif kind == "clicks":
        _put_click(prompts, time, mask, 1, rng)
        others = union & ~mask
        beside = others if others.any() and rng.random() < 0.6 else ~mask
        for position in range(1, prompts.labels.shape[1]):
            on = bool(rng.random() < 0.4)
            _put_click(prompts, time, mask if on else beside, int(on), rng, position)
    elif kind == "box":
        rows, columns = np.nonzero(mask)
        corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], np.float32)
        spread = 0.08 * (corners[1] - corners[0])
        prompts.points[time, :2] = corners + rng.normal(size=(2, 2)) * spread
        prompts.labels[time, :2] = (2, 3)
    else:
        prompts.masks[time] = roughen(mask, rng)


def _put_click(
    prompts: SimulatedPrompts, time: int, mask: Any, label: int, rng: np.random.Generator, position: int = 0
) -> None:
    """Add a click on a random pixel of a mask, if it has any."""
    rows, columns = np.nonzero(mask)
    if len(rows):
        chosen = int(rng.integers(len(rows)))
        prompts.points[time, position] = (columns[chosen] + 0.5, rows[chosen] + 0.5)
        prompts.labels[time, position] = label


def roughen(mask: Masks, rng: np.random.Generator) -> Masks:
    """Make a mask rough, as from another model or a hasty user: shift it a little and coarsen it to blocks.

    Args:
        mask: bool (S, S).
        rng: Random generator.

    Returns:
        bool (S, S); the mask itself where the rough one would be empty.
    """
    block = int(rng.choice((1, 2, 4, 8)))
    side = mask.shape[0]
    shift = rng.integers(-2, 3, size=2)
    shifted = np.roll(mask, shift, axis=(0, 1))
    coarse = shifted.reshape(side // block, block, side // block, block).mean(axis=(1, 3)) >= rng.uniform(0.2, 0.7)
    rough = np.repeat(np.repeat(coarse, block, axis=0), block, axis=1)
    return rough if rough.any() else mask
