"""Three-valued motion facts of one object: each motion word is clearly true, clearly false, or unclear.

A person who watches the clip should agree with every clear value, so the margins are wide and much is unclear. Only
the frames from the object's first to its last appearance count. Movement that is hidden behind another object in
between counts, because it can be inferred; movement outside the frame does not.

Under a moving camera there are two paths, relative to the frame and relative to the background. A word is clear only if
both paths agree: a house that the camera passes does not "move left", and no object "stays still" in front of a sliding
background.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

FALSE, UNCLEAR, TRUE = -1, 0, 1

DIRECTIONS: dict[str, tuple[int, int]] = {
    "moves left": (0, -1),
    "moves right": (0, 1),
    "moves up": (1, -1),
    "moves down": (1, 1),
}
"""Axis and sign of each direction word."""

DIAGONALS: dict[str, tuple[int, int]] = {
    "moves up and left": (-1, -1),
    "moves up and right": (1, -1),
    "moves down and left": (-1, 1),
    "moves down and right": (1, 1),
}
"""Signs along x and y of each diagonal word."""

SIDES: dict[str, tuple[int, int]] = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}
"""Axis and sign of each border of the frame."""

ENTRIES = tuple(f"enters from the {side}" for side in SIDES)

MOVEMENTS = (
    *("moves", "stays still", *DIRECTIONS, *DIAGONALS),
    *("turns back", "bounces", "curves", "grows", "shrinks", "spins", "speeds up", "stops", "starts"),
    *("enters", *ENTRIES, "leaves", "leaves and returns"),
)
"""Motion words that concern one object alone."""

FEWEST_FRAMES = 4
"""Minimum number of frames for clear motion facts."""

# Distances in short sides.
_FAR = 0.1  # noticed by everyone
_TURN_FAR = 0.07  # minimum before and after a turn
_NEAR = 0.006  # noticed by nobody
_BACK = 0.01  # maximum in a direction, over the whole clip, of an object that does "not move" in it


@dataclass(frozen=True, eq=False)
class ObjectTimeline:
    """Position, size, rotation and visibility of one object over the T frames of a clip; lengths in short sides.

    Attributes:
        centres: x, y in the frame (T, 2).
        radii: Radii of the circle around it (T,).
        angles: Radians (T,).
        turning_shows: Whether rotation changes its appearance.
        present: Share of its silhouette that is inside the frame, hidden or not (T,).
        seen: Whether enough of it is visible (T,).
        extent: Width and height of the frame.
        camera: The camera's offsets (T, 2).
    """

    centres: Floats
    radii: Floats
    angles: Floats
    turning_shows: bool
    present: Floats
    seen: Bools
    extent: tuple[float, float]
    camera: Floats

    def window(self) -> slice:
        """Return the range from the first to the last frame in which it is seen; empty if it never is."""
        when = np.flatnonzero(self.seen)
        return slice(int(when[0]), int(when[-1]) + 1) if when.size else slice(0, 0)


def movement_facts(timeline: ObjectTimeline) -> dict[str, int]:
    """Evaluate every motion word for one object.

    Args:
        timeline: The object.

    Returns:
        TRUE, FALSE or UNCLEAR for each of ``MOVEMENTS``.
    """
    facts = dict.fromkeys(MOVEMENTS, UNCLEAR)
    window = timeline.window()
    if window.stop - window.start < FEWEST_FRAMES:
        return facts
    radii, turns = timeline.radii[window], np.abs(timeline.angles[window] - timeline.angles[window][0])
    rigid = bool(np.ptp(radii) < 1e-6 and (turns[-1] < 1e-6))
    framed = timeline.centres[window]
    facts |= _path_facts(framed, timeline, window, rigid)
    if np.ptp(timeline.camera, axis=0).any():
        grounded = _path_facts(framed + timeline.camera[window], timeline, window, rigid)
        facts |= {word: facts[word] if facts[word] == truth else UNCLEAR for word, truth in grounded.items()}
    facts |= _growth_facts(radii)
    facts["spins"] = _spins(turns, timeline.turning_shows)
    facts |= _border_facts(timeline)
    return facts


def path_length(centres: Floats) -> float:
    """Return the length of a path (T, 2), in the path's unit."""
    return float(np.hypot(*np.diff(centres, axis=0).T).sum())


def _verdict(clearly: bool, clearly_not: bool) -> int:
    return TRUE if clearly else FALSE if clearly_not else UNCLEAR


def _path_facts(path: Floats, timeline: ObjectTimeline, window: slice, rigid: bool) -> dict[str, int]:
    """Evaluate the words about the centre's path, (n, 2) with n at least ``FEWEST_FRAMES``."""
    steps = np.diff(path, axis=0)  # (n - 1, 2)
    speeds = np.hypot(*steps.T)
    length = float(speeds.sum())
    moving = speeds > 1e-4
    facts = {
        "moves": _verdict(length > _FAR, length < _NEAR and rigid),
        "stays still": _verdict(length < 1e-3 and rigid, length > _FAR),
    }
    forward = {
        word: float(np.maximum(sign * steps[:, axis], 0).sum()) for word, (axis, sign) in DIRECTIONS.items()
    }  # distance covered in each direction; movement back is not subtracted
    mostly_moving = float(moving.mean()) >= 0.7
    for word, (axis, sign) in DIRECTIONS.items():
        net, sideways = sign * float(path[-1, axis] - path[0, axis]), float(np.ptp(path[:, 1 - axis]))
        steady = forward[word] - net < _NEAR and mostly_moving
        facts[word] = _verdict(steady and net > _FAR and net > 2 * sideways, forward[word] < _BACK)
    for word, (across, down) in DIAGONALS.items():
        pair = forward["moves right" if across > 0 else "moves left"], forward["moves down" if down > 0 else "moves up"]
        net_x, net_y = across * float(path[-1, 0] - path[0, 0]), down * float(path[-1, 1] - path[0, 1])
        steady = pair[0] - net_x < _NEAR and pair[1] - net_y < _NEAR and mostly_moving
        balanced = 0.55 < (net_x + 1e-9) / (net_y + 1e-9) < 1.8
        facts[word] = _verdict(steady and min(net_x, net_y) > _TURN_FAR and balanced, min(pair) < _BACK)
    facts |= _turn_facts(path, steps, moving, timeline, window)
    facts |= _pace_facts(speeds, length, rigid)
    return facts


def _turn_facts(path: Floats, steps: Floats, moving: Bools, timeline: ObjectTimeline, window: slice) -> dict[str, int]:
    """Evaluate turning back away from the borders, bouncing off a border, and moving along a curve."""
    flows = steps[moving]
    if len(flows) < 3:
        return {"turns back": FALSE, "bounces": FALSE, "curves": FALSE}
    # The distance between the object's circle and the nearest border, at the frames where its steps meet.
    extent = np.asarray(timeline.extent)
    centres, radii = timeline.centres[window], timeline.radii[window]
    room = np.minimum(centres, extent - centres).min(axis=1) - radii  # (n,), negative beyond the border
    # A turn is a change of sign along an axis: (distance before, distance after, room at the turn).
    axes = [axis for axis in range(2) if np.abs(steps[:, axis]).sum() > _NEAR]
    turns = [turn for axis in axes for turn in _reversals(steps[:, axis], room)]
    headings = np.unwrap(np.arctan2(flows[:, 1], flows[:, 0]))
    changes = np.abs(np.diff(headings))
    bent, sharpest = float(np.abs(headings[-1] - headings[0])), float(changes.max())
    length = path_length(path)
    smooth = sharpest < np.pi / 3
    straight_back = sharpest > np.pi * 0.9 and float(np.partition(changes, -2)[-2]) < 0.1
    noticeable = [turn for turn in turns if min(turn[0], turn[1]) > _TURN_FAR]
    in_the_open = [turn for turn in noticeable if turn[2] > 0.03]
    # A bouncing object overlaps the border a little; one that turns further out has left and comes back.
    at_border = [turn for turn in noticeable if -0.5 * float(radii.min()) < turn[2] < 0 and not smooth]
    return {
        # A bounce may or may not be called turning back, so it is unclear.
        "turns back": _verdict(len(turns) <= 2 and len(in_the_open) > 0 and straight_back, not turns),
        "bounces": _verdict(len(at_border) > 0, all(turn[2] > 0.06 for turn in turns)),
        "curves": _verdict(smooth and bent > 2.0 and length > 1.5 * _FAR, bent < 0.15 and sharpest < 0.15),
    }


def _reversals(steps: Floats, room: Floats) -> list[tuple[float, float, float]]:
    """Find the turns along one axis.

    Args:
        steps: Signed steps along the axis (n - 1,).
        room: Distance to the nearest border at each of the n positions.

    Returns:
        For each change of sign the distances covered before and after it, up to the neighbouring turns, and the room
        at the turn.
    """
    signs = np.sign(np.where(np.abs(steps) < 1e-4, 0, steps))
    when = np.flatnonzero(signs)
    turns = [int(b) for a, b in pairwise(when) if signs[a] != signs[b]]  # first steps back
    ends = [0, *turns, len(steps)]
    return [
        (
            float(np.abs(steps[ends[i] : turn]).sum()),
            float(np.abs(steps[turn : ends[i + 2]]).sum()),
            float(room[max(0, turn - 1) : turn + 2].min()),
        )
        for i, turn in enumerate(turns)
    ]


def _pace_facts(speeds: Floats, length: float, rigid: bool) -> dict[str, int]:
    """Evaluate speeding up, stopping and starting; a spinning or growing object has not clearly stopped."""
    if length < _NEAR:
        return {"speeds up": FALSE, "stops": FALSE, "starts": FALSE}
    count = len(speeds)
    third = max(1, count // 3)
    early, late = float(speeds[:third].mean()), float(speeds[-third:].mean())
    resting = speeds < 1e-4
    first_move, last_move = int(np.argmin(resting)), count - int(np.argmin(resting[::-1]))  # [first, last)
    steady = rigid and not resting[first_move:last_move].any()
    pause = max(2, count // 4)
    fast = float(speeds[first_move:last_move].mean())
    return {
        "speeds up": _verdict(
            early > 1e-4 and late > 2.2 * early and bool((np.diff(speeds) > -0.1 * early).all()) and length > _FAR,
            late < 1.15 * early,
        ),
        "stops": _verdict(
            steady and first_move == 0 and count - last_move >= pause and length > _FAR, late > 0.5 * fast
        ),
        "starts": _verdict(steady and first_move >= pause and last_move == count and length > _FAR, early > 0.5 * fast),
    }


def _growth_facts(radii: Floats) -> dict[str, int]:
    """Evaluate growing and shrinking, independent of the path."""
    ratio = float(radii[-1] / radii[0])
    swing = float(radii.max() / radii.min())
    same = swing < 1.05
    return {
        "grows": _verdict(ratio > 1.35 and ratio > 0.98 * swing, same or ratio < 0.8),
        "shrinks": _verdict(ratio < 1 / 1.35 and 1 / ratio > 0.98 * swing, same or ratio > 1.25),
    }


def _spins(turns: Floats, shows: bool) -> int:
    """Evaluate spinning from the rotation since the first frame (n,)."""
    total = float(turns[-1])
    rate = total / (len(turns) - 1)
    return _verdict(shows and total > 0.7 and rate > 0.04, total < 0.03)


def _border_facts(timeline: ObjectTimeline) -> dict[str, int]:
    """Evaluate entering and leaving the frame; hidden parts inside the frame count as present."""
    present = timeline.present
    facts = dict.fromkeys(("enters", *ENTRIES, "leaves", "leaves and returns"), UNCLEAR)
    inside = present > 0
    when = np.flatnonzero(inside)
    first, last = int(when[0]), int(when[-1])
    away = bool((~inside[first:last]).any())  # outside in between
    ever_present = float(present.max()) > 0
    well_at_start, well_at_end = present[0] > 0.5, present[-1] > 0.5
    facts["enters"] = _verdict(first >= 1 and not away and ever_present, bool(well_at_start) and not away)
    if first >= 1 and not away:
        arrival = timeline.centres[first]
        beyond = {
            side: float(-arrival[axis] if sign < 0 else arrival[axis] - timeline.extent[axis])
            for side, (axis, sign) in SIDES.items()
        }  # distance of the centre beyond each border
        through = max(beyond, key=lambda side: beyond[side])
        others = max(distance for side, distance in beyond.items() if side != through)
        for side in SIDES:
            clear = others < beyond[through] - 0.1
            facts[f"enters from the {side}"] = _verdict(clear and side == through, beyond[side] < -0.15)
    elif facts["enters"] == FALSE:
        facts |= dict.fromkeys(ENTRIES, FALSE)
    facts["leaves"] = _verdict(
        bool(well_at_start) and last < len(present) - 1 and not away, bool(well_at_end) and not away
    )
    rejoins = away and bool(well_at_start) and bool(well_at_end)
    facts["leaves and returns"] = _verdict(rejoins, not away and (bool(inside[-1]) or bool(facts["leaves"] == TRUE)))
    return facts
