"""The drawn clips of the gallery, rendered by ``examples/draw_gallery.py``."""

from __future__ import annotations

from pathlib import Path

from refervos.serving.samples import Sample, Samples

PAGE = Path(__file__).parent / "page"
"""Folder of the page: HTML, CSS and ES modules."""

CLIPS = Path(__file__).parent / "clips"
"""Folder of the clips; their pictures are in the page's folder ``samples``."""

_CLIPS = {
    "shapes": ("Hide and seek", ("the red circle", "the blue star")),
    "crossing": ("Crossing paths", ("the green triangle", "the dotted heart")),
    "twins": ("Twins", ("the lower blue square", "the yellow star")),
    "parade": ("Parade", ("the red star", "the white circle")),
}


def samples() -> Samples:
    """Return the clips by identifier, in the order of the gallery."""
    return {
        name: Sample(title, expressions, f"samples/{name}.jpg", CLIPS / f"{name}.mp4")
        for name, (title, expressions) in _CLIPS.items()
    }
