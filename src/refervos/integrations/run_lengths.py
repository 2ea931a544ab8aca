"""Masks as run lengths: those of COCO, and those along the rows that CVAT and Label Studio use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CocoMask:
    """Mask of an object in a frame, as COCO describes it.

    Attributes:
        segmentation: Compressed run lengths, ``{"size": [h, w], "counts": "..."}``.
        area: Number of pixels.
        bbox: x, y, width and height of the box around it, in pixels.
    """

    segmentation: dict[str, Any]
    area: int
    bbox: list[int]


def coco_mask(mask: Mask) -> CocoMask | None:
    """Encode a mask for COCO.

    Args:
        mask: bool (H, W).

    Returns:
        Its description; None if it is empty.
    """
    from pycocotools import mask as coco

    if not mask.any():
        return None
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    segmentation = {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
    return CocoMask(segmentation, int(np.count_nonzero(mask)), [int(side) for side in coco.toBbox(rle)])


@dataclass(frozen=True)
class Box:
    """Smallest box around a mask, in pixels.

    Attributes:
        left: First column.
        top: First row.
        right: Column after the last one.
        bottom: Row after the last one.
    """

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def around(cls, mask: Mask) -> Box:
        """Find the box of a mask bool (H, W) that is not empty."""
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        return cls(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)

    def crop(self, mask: Mask) -> Mask:
        """Cut the box out of a mask bool (H, W)."""
        return mask[self.top : self.bottom, self.left : self.right]


def row_runs(mask: Mask) -> list[int]:
    """Encode a mask as alternating run lengths along its rows, the first of background.

    Args:
        mask: bool (H, W).

    Returns:
        Run lengths in pixels; the first is 0 if the first pixel belongs to the mask.
    """
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs
