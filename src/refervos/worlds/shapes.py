"""Appearance of drawn objects: colours, silhouettes as signed distances, and textures.

A signed distance is negative inside the shape, zero on its outline and positive outside, in pixels. It gives a soft
edge (coverage falls from 1 to 0 over one pixel), the exact mask (distance below zero), a darker rim and a shadow. All
functions take points in the object's own coordinates: x to the right and y down from its centre, before rotation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 44, 44),
    "orange": (243, 140, 28),
    "yellow": (246, 217, 60),
    "green": (56, 168, 72),
    "blue": (44, 96, 216),
    "purple": (134, 64, 186),
    "pink": (246, 142, 192),
    "white": (246, 246, 246),
}
"""Colour words and their RGB values; backgrounds are dull and of medium brightness, so that all of these stand out."""

KINDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring",),
    "cross": ("cross", "cross", "plus sign"),
    "heart": ("heart",),
    "crescent": ("crescent", "crescent", "moon"),
}
"""Silhouettes and the nouns for each; a noun listed twice is used twice as often."""

TEXTURES = ("plain", "striped", "dotted")
"""Textures; stripes and dots are a darker tone of the object's own colour."""

ROUND_KINDS = frozenset({"circle", "ring"})
"""Silhouettes that rotation does not change."""

_DARKER = 0.42  # the tone of stripes and dots, as a share of the colour


def _circle(x: Floats, y: Floats, r: float) -> Floats:
    return np.hypot(x, y) - 0.95 * r


def _square(x: Floats, y: Floats, r: float) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - 0.71 * r


def _triangle(x: Floats, y: Floats, r: float) -> Floats:
    # The centre is the centroid, about which the triangle rotates; the centre of the bounding box is above it.
    slant = np.abs(x) * np.float32(np.sqrt(0.75)) - 0.5 * y
    return np.maximum(slant, y) - 0.5 * r


def _star(x: Floats, y: Floats, r: float) -> Floats:
    turn = np.float32(2 * np.pi / 5)
    around = np.arctan2(x, -y)  # 0 at the upper tip
    fold = np.abs(around - turn * np.round(around / turn))  # [0, pi/5]: from a tip to the notch beside it
    length = np.hypot(x, y)
    along, across = length * np.cos(fold), length * np.sin(fold)
    notch = 0.47 * r
    edge_x, edge_y = notch * np.cos(np.pi / 5) - r, notch * np.sin(np.pi / 5)  # tip (r, 0) to notch
    norm = float(np.hypot(edge_x, edge_y))
    return ((along - r) * edge_y - across * edge_x) / np.float32(norm)


def _ring(x: Floats, y: Floats, r: float) -> Floats:
    return np.abs(np.hypot(x, y) - 0.72 * r) - 0.25 * r


def _cross(x: Floats, y: Floats, r: float) -> Floats:
    x, y = np.abs(x), np.abs(y)
    arm, half = 0.95 * r, 0.31 * r
    return np.minimum(np.maximum(x - arm, y - half), np.maximum(x - half, y - arm))


def _heart(x: Floats, y: Floats, r: float) -> Floats:
    # A square standing on its corner, with a disc on each of its upper sides.
    x, y = np.abs(x), y - 0.12 * r
    half = 0.54 * r  # of the square's side
    across = np.float32(np.sqrt(0.5)) * (x + y)
    along = np.float32(np.sqrt(0.5)) * (x - y)
    square = np.maximum(np.abs(across), np.abs(along)) - half
    disc = np.hypot(across, along - half) - half
    return np.minimum(square, disc)


def _crescent(x: Floats, y: Floats, r: float) -> Floats:
    # A disc with a smaller disc cut out of its right side; moved right so that its centre of mass is near 0.
    x = x - 0.05 * r
    return np.maximum(np.hypot(x, y) - 0.95 * r, 0.74 * r - np.hypot(x - 0.5 * r, y))


_SILHOUETTES: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "crescent": _crescent,
}


def signed_distance(kind: str, x: Floats, y: Floats, radius: float) -> Floats:
    """Return the signed distance of points from a silhouette's outline.

    Args:
        kind: One of ``KINDS``.
        x: Offset to the right of the centre, pixels; broadcasts with ``y``.
        y: Offset below the centre, pixels.
        radius: Radius of the circle around the silhouette, pixels.

    Returns:
        Signed distances in pixels, negative inside.
    """
    return _SILHOUETTES[kind](x, y, radius)


def tone(texture: str, x: Floats, y: Floats, radius: float) -> Floats | np.float32:
    """Return the brightness of a texture, as a factor of the object's colour.

    Args:
        texture: One of ``TEXTURES``.
        x: Offset to the right of the centre, pixels; broadcasts with ``y``.
        y: Offset below the centre, pixels.
        radius: Radius of the circle around the object, pixels.

    Returns:
        1 for the pure colour, less on stripes and dots; edges are about a pixel wide.
    """
    if texture == "striped":
        period = 0.5 * radius
        wave = np.abs((x + y) / np.float32(np.sqrt(2)) / np.float32(period) % 1 - np.float32(0.5))  # [0, 0.5]
        inside = np.clip((wave - np.float32(0.25)) * np.float32(period) + np.float32(0.5), 0, 1)
    elif texture == "dotted":
        spacing = 0.5 * radius
        cell_x, cell_y = ((v / np.float32(spacing) + np.float32(0.5)) % 1 - np.float32(0.5) for v in (x, y))
        inside = np.clip(0.32 * radius / 2 - np.hypot(cell_x, cell_y) * np.float32(spacing) + 0.5, 0, 1)
    else:
        return np.float32(1)
    return 1 - np.float32(1 - _DARKER) * inside
