"""Render the demo's video of everyday things from a fixed scene of ``refervos.worlds``.

    python -m refervos.worlds.drawings out/drawings
    python examples/draw_outing.py out/drawings

writes ``examples/data/outing.mp4``. A red car drives to the right and passes behind a tree, a dog sits at the bottom
left, a helicopter flies to the left, and a white rabbit enters late. Car, dog and helicopter are Fluent Emoji by
Microsoft (MIT), tree and rabbit are Noto Emoji by Google (Apache-2.0).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from draw_demo import FRAMES, SIZE, write_clip

from refervos.worlds import Motion, Scene, Sprites, Thing, draw_scene


def outing(drawings: Path) -> Scene:
    """Compose the scene from a folder of drawings."""
    fluent, noto = (Sprites.open(drawings, [design]).by_subject for design in ("fluent", "noto"))
    cast = (
        (fluent["car"][0], 0.2, Motion((0.12, 0.6), (0.0088, 0.0)), True),
        (noto["tree"][0], 0.27, Motion((0.74, 0.5)), False),
        (fluent["helicopter"][0], 0.16, Motion((1.42, 0.17), (-0.0055, 0.0006)), False),
        (fluent["dog"][0], 0.16, Motion((0.22, 0.84)), False),
        (noto["rabbit"][0], 0.16, Motion((1.96, 0.84), (-0.0088, 0.0)), False),
    )
    return Scene(
        objects=tuple(
            Thing(sprite.subject, sprite.colour, radius, motion, texture="", sprite=sprite, mirrored=mirrored)
            for sprite, radius, motion, mirrored in cast
        ),
        background="gradient",
        background_seed=5,
        background_strength=7.0,
    )


def main() -> None:
    """Render the scene and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawings", type=Path, help="folder made by python -m refervos.worlds.drawings")
    parser.add_argument("--video", type=Path, default=Path(__file__).parent / "data" / "outing.mp4")
    options = parser.parse_args()
    write_clip(options.video, draw_scene(outing(options.drawings), FRAMES, SIZE).frames)
    print(f"{options.video}: {FRAMES} frames, {options.video.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
