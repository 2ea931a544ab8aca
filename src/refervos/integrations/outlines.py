"""Masks as polygons that cover exactly their pixels.

A mask is cut into pieces without holes and branches: runs of pixels in consecutive rows, each of which touches one run
of the next row. The outline of such a piece goes down along its left ends and up along its right ends, in steps along
rows and columns only, so that any drawing program fills the same pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from refervos.integrations.run_lengths import Mask

Point = tuple[int, int]


@dataclass
class _Piece:
    """Runs in consecutive rows, each over one run of the next row.

    Attributes:
        top: Row of the first run.
        runs: First and last column of each run.
    """

    top: int
    runs: list[tuple[int, int]] = field(default_factory=list)

    def outline(self, width: int) -> list[Point]:
        """Return the corners of the outline.

        Args:
            width: Width of a pixel: 1 for an outline around the pixels, 0 for one through the outermost pixels.

        Returns:
            The corners x, y in pixels.
        """
        left: list[Point] = []
        right: list[Point] = []
        for row, (first, last) in enumerate(self.runs, self.top):
            _step(left, first, row, row + width, outwards=-1)
            _step(right, last + width, row, row + width, outwards=1)
        return _without_straight_corners(left + right[::-1])


def _step(side: list[Point], x: int, top: int, bottom: int, *, outwards: int) -> None:
    """Continue one side of an outline to the column of the next row, along pixels of both rows."""
    if side and (x - side[-1][0]) * outwards < 0:
        side.append((x, side[-1][1]))  # inwards in the row before
    elif side:
        side.append((side[-1][0], top))  # down, then outwards in this row
    side += [(x, top), (x, bottom)]


def _without_straight_corners(points: list[Point]) -> list[Point]:
    """Remove repeated points, and those on a straight line between their neighbours; at least three are kept."""
    kept: list[Point] = []
    for point in points:
        if kept and kept[-1] == point:
            continue
        if len(kept) > 1:
            (ax, ay), (bx, by), (cx, cy) = kept[-2], kept[-1], point
            if (ax == bx == cx and min(ay, cy) <= by <= max(ay, cy)) or (
                ay == by == cy and min(ax, cx) <= bx <= max(ax, cx)
            ):
                kept.pop()
        kept.append(point)
    return kept + kept[-1:] * (3 - len(kept))


def outlines_around_pixels(mask: Mask) -> list[list[Point]]:
    """Return polygons around the pixels of a mask, in coordinates in which pixel (0, 0) reaches from 0 to 1.

    Args:
        mask: bool (H, W).

    Returns:
        The corners x, y of each polygon, as COCO and CVAT draw it.
    """
    return [piece.outline(1) for piece in _pieces(mask)]


def outlines_through_pixels(mask: Mask) -> list[list[Point]]:
    """Return polygons through the outermost pixels of a mask, in coordinates in which pixel (0, 0) is at (0, 0).

    Args:
        mask: bool (H, W).

    Returns:
        The corners x, y of each polygon, at least three, as Pillow and OpenCV draw and fill it.
    """
    return [piece.outline(0) for piece in _pieces(mask)]


def _pieces(mask: Mask) -> Iterator[_Piece]:
    """Cut a mask into pieces; each is yielded once it is complete."""
    growing: list[_Piece] = []
    for row in range(mask.shape[0]):
        runs = _runs(mask[row])
        pairs = list(_touching([piece.runs[-1] for piece in growing], runs))
        below_of, above_of = Counter(above for above, _ in pairs), Counter(below for _, below in pairs)
        alone = {below: above for above, below in pairs if below_of[above] == above_of[below] == 1}
        continued = set(alone.values())
        yield from (piece for k, piece in enumerate(growing) if k not in continued)
        growing = [growing[alone[k]] if k in alone else _Piece(row) for k in range(len(runs))]
        for piece, run in zip(growing, runs, strict=True):
            piece.runs.append(run)
    yield from growing


def _runs(row: Mask) -> list[tuple[int, int]]:
    """Return the first and last column of each run of a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8)))
    return [(int(begin), int(end) - 1) for begin, end in edges.reshape(-1, 2)]


def _touching(above: list[tuple[int, int]], below: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the positions of all pairs of runs of two rows that have a column in common."""
    k = 0
    for position, (first, last) in enumerate(above):
        while k and below[k - 1][1] >= first:
            k -= 1
        while k < len(below) and below[k][1] < first:
            k += 1
        while k < len(below) and below[k][0] <= last:
            yield position, k
            k += 1
