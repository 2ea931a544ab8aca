"""What a user might ask SAM2 of an object: clicks, a box, a mask, again later, or about another object.

Every question is drawn from the exact masks of a clip; from the same masks follows what the answer should be.
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
"""Label of a point that is none."""

KINDS = ("click", "clicks", "box", "mask", "background")
"""What may be asked first."""


@dataclass(frozen=True)
class AskedShares:
    """How often each kind of question is asked.

    Attributes:
        click: One click on the object.
        clicks: Several clicks, some of them beside the object.
        box: A box, its corners a little off.
        mask: A rough mask.
        background: One click where no object is; the answer is that there is nothing.
        again: Chance, for each later frame, of a click on the same object.
        switch: Chance that a clip turns to another object half way.
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
            raise ConfigError(f"asked has no question that is ever asked; give one of {', '.join(KINDS)} above 0.")


@dataclass(frozen=True)
class Questions:
    """The questions about one object of a clip, and the answers.

    Attributes:
        points: Pixels x, y, float32 (T, P, 2).
        labels: 1 on the object, 0 off it, 2 and 3 corners of a box, -1 padding; int64 (T, P).
        rough: The mask given at a frame, bool (T, S, S); all False where none is.
        truth: What should be answered, bool (T, S, S).
    """

    points: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    rough: Masks
    truth: Masks


def ask(masks: Masks, shares: AskedShares, points: int, rng: np.random.Generator, least_area: int) -> Questions:
    """Draw the questions about one object (or about none, or about one and then another).

    Args:
        masks: Visible parts of the clip's K objects (K, T, S, S).
        shares: How often each kind of question is asked.
        points: P, at least 2.
        rng: Draws.
        least_area: Pixels from which on an object is asked about.

    Returns:
        The questions. Before the first, and where the object is not visible, the answer is an empty mask.
    """
    count, frames = masks.shape[:2]
    side = masks.shape[-1]
    asked = Questions(
        np.zeros((frames, points, 2), np.float32),
        np.full((frames, points), PADDING, np.int64),
        np.zeros((frames, side, side), bool),
        np.zeros((frames, side, side), bool),
    )
    odds = np.array([getattr(shares, kind) for kind in KINDS])
    kind = str(rng.choice(KINDS, p=odds / odds.sum()))
    if kind == "background":
        _put_click(asked, 0, ~masks[:, 0].any(0), 1, rng)
        return asked
    target = int(rng.integers(count))
    turn = int(rng.integers(frames // 2, frames)) if frames > 3 and rng.random() < shares.switch else frames
    known = False
    for time in range(frames):
        if time == turn and known:
            seen = [k for k in range(count) if k != target and masks[k, time].sum() >= least_area]
            if seen:
                target, known = int(rng.choice(seen)), False
        mask = masks[target, time]
        if mask.sum() >= least_area:
            if not known:
                _put(asked, time, mask, masks[:, time].any(0), kind, rng)
                known = True
            elif rng.random() < shares.again:
                _put_click(asked, time, mask, 1, rng)
        if known:
            asked.truth[time] = mask
    return asked


def _put(asked: Questions, time: int, mask: Masks, anything: Any, kind: str, rng: np.random.Generator) -> None:
    """Ask about a mask (S, S) at a frame; ``anything`` is the union of all objects."""
    if kind == "click":
        _put_click(asked, time, mask, 1, rng)
    elif kind == "clicks":
        _put_click(asked, time, mask, 1, rng)
        elsewhere = anything & ~mask
        beside = elsewhere if elsewhere.any() and rng.random() < 0.6 else ~mask
        for position in range(1, asked.labels.shape[1]):
            on = bool(rng.random() < 0.4)
            _put_click(asked, time, mask if on else beside, int(on), rng, position)
    elif kind == "box":
        rows, columns = np.nonzero(mask)
        corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], np.float32)
        spread = 0.08 * (corners[1] - corners[0])
        asked.points[time, :2] = corners + rng.normal(size=(2, 2)) * spread
        asked.labels[time, :2] = (2, 3)
    else:
        asked.rough[time] = roughen(mask, rng)


def _put_click(asked: Questions, time: int, mask: Any, label: int, rng: np.random.Generator, position: int = 0) -> None:
    rows, columns = np.nonzero(mask)
    if len(rows):
        chosen = int(rng.integers(len(rows)))
        asked.points[time, position] = (columns[chosen] + 0.5, rows[chosen] + 0.5)
        asked.labels[time, position] = label


def roughen(mask: Masks, rng: np.random.Generator) -> Masks:
    """A mask as another model or a hasty user would draw it: in coarse blocks, a little shifted.

    Args:
        mask: bool (S, S).
        rng: Draws.

    Returns:
        bool (S, S); the mask itself where the rough one would be empty.
    """
    block = int(rng.choice((1, 2, 4, 8)))
    side = mask.shape[0]
    shift = rng.integers(-2, 3, size=2)
    moved = np.roll(mask, shift, axis=(0, 1))
    coarse = moved.reshape(side // block, block, side // block, block).mean(axis=(1, 3)) >= rng.uniform(0.2, 0.7)
    rough = np.repeat(np.repeat(coarse, block, axis=0), block, axis=1)
    return rough if rough.any() else mask
