"""Trajectories of objects and of the camera, from a few parameters.

Lengths are in short sides of the frame, times in frames; x points right and y down. ``extent`` is the frame's width and
height in short sides, so one of its numbers is always 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

CAMERA_REACH = 0.6
"""Distance, in short sides, after which a panning camera swings back, so that long clips need a bounded background."""

_WALL = 0.8  # objects bounce when this share of their radius touches the border: their outlines rarely fill the circle
_SMALLEST, _LARGEST = 0.5, 2.0  # growing and shrinking end at these factors


@dataclass(frozen=True)
class Motion:
    """Movement of one object.

    Attributes:
        start: Centre x, y at frame 0; may lie outside the frame.
        velocity: Short sides per frame, relative to the background.
        pace: ``(frame, factor)`` pairs: from that frame on, the velocity is multiplied by the factor. ``((9, 0.0),)``
            stops at frame 9, ``((9, -1.0),)`` turns back, ``((9, 3.0),)`` speeds up.
        turn: Change of the heading in radians per frame, for curves.
        walls: Whether the object bounces off the frame's borders once it is inside.
        growth: Factor of the radius per frame.
        spin: Rotation in radians per frame, clockwise.
    """

    start: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    pace: tuple[tuple[int, float], ...] = ()
    turn: float = 0.0
    walls: bool = True
    growth: float = 1.0
    spin: float = 0.0


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Position, size and rotation of an object in each of T frames.

    Attributes:
        centres: x, y in the frame, short sides (T, 2).
        radii: Short sides (T,).
        turns: Rotation since frame 0, radians (T,).
    """

    centres: Floats
    radii: Floats
    turns: Floats


def camera_path(pan: tuple[float, float], frames: int) -> Floats:
    """Compute the camera's offset over the background: a straight path that swings back at ``CAMERA_REACH``.

    Args:
        pan: Velocity, short sides per frame.
        frames: T.

    Returns:
        Offsets x, y in short sides (T, 2), zero at frame 0.
    """
    distance = np.abs(np.asarray(pan)) * np.arange(frames)[:, None]
    swing = CAMERA_REACH - np.abs(distance % (2 * CAMERA_REACH) - CAMERA_REACH)  # a triangle wave from 0
    return np.sign(pan) * swing


def simulate(motion: Motion, radius: float, frames: int, extent: tuple[float, float], camera: Floats) -> Trajectory:
    """Simulate a movement frame by frame.

    Args:
        motion: The movement.
        radius: Radius at frame 0, short sides.
        frames: T.
        extent: Width and height of the frame in short sides.
        camera: The camera's offsets (T, 2).

    Returns:
        The trajectory, in coordinates of the frame.
    """
    times = np.arange(frames)
    radii = radius * np.clip(motion.growth**times, _SMALLEST, _LARGEST)
    centres = np.empty((frames, 2))
    drift = np.diff(camera, axis=0, append=camera[-1:])  # the last step is never taken
    paces = dict(motion.pace)
    factor, sign = 1.0, [1.0, 1.0]
    moves = motion.velocity != (0.0, 0.0)
    inside = [False, False]
    position = list(motion.start)
    for time in range(frames):
        centres[time] = position
        factor = paces.get(time, factor)
        heading = motion.turn * time
        vx, vy = motion.velocity
        velocity = (vx * np.cos(heading) - vy * np.sin(heading), vx * np.sin(heading) + vy * np.cos(heading))
        for axis in range(2):
            step = factor * sign[axis] * velocity[axis]
            position[axis] += step - drift[time, axis]
            low, high = _WALL * radii[time], extent[axis] - _WALL * radii[time]
            inside[axis] = inside[axis] or low <= position[axis] <= high
            outside = (position[axis] < low and step < 0) or (position[axis] > high and step > 0)
            if motion.walls and moves and inside[axis] and outside:
                position[axis] = 2 * (low if step < 0 else high) - position[axis]
                sign[axis] = -sign[axis]
    return Trajectory(centres, radii, motion.spin * times)
