"""How frames go into SAM's square."""

from __future__ import annotations

from refervos.placement import Placement


def place_for_sam(frame_size: tuple[int, int], image_size: int, first_short_side: int | None = None) -> Placement:
    """Long side to the square's side, sizes rounded half up, as SAM does it.

    Args:
        frame_size: Height and width of the frame.
        image_size: Side of the square.
        first_short_side: Bring the frame to this short side before, see ``RefSamConfig``.

    Returns:
        The placement; 854 x 480 becomes 1024 x 576 in a square of 1024.
    """
    first, shown = None, frame_size
    if first_short_side is not None:
        short = min(frame_size)
        shown = first = (frame_size[0] * first_short_side // short, frame_size[1] * first_short_side // short)
    scale = image_size / max(shown)
    height, width = (max(1, int(side * scale + 0.5)) for side in shown)
    return Placement(frame_size, (height, width), image_size, first)
