"""Render the drawn clips of the studio's gallery, and a picture of each, from fixed scenes of ``refervos.worlds``.

    python examples/draw_gallery.py

writes ``src/refervos/studio/clips/*.mp4`` and ``src/refervos/studio/page/samples/*.jpg``.
"""

from __future__ import annotations

from pathlib import Path

from draw_demo import FRAMES, RATE, SCENE, SIZE, write_clip
from PIL import Image

from refervos.worlds import Motion, Scene, Thing, draw_scene

STUDIO = Path(__file__).parent.parent / "src" / "refervos" / "studio"
POSTER = (360, 240)

CROSSING = Scene(
    objects=(
        Thing("triangle", "green", 0.2, Motion((1.25, 0.3), (-0.0075, 0.001))),
        Thing("heart", "orange", 0.19, Motion((0.25, 0.62), (0.0078, -0.0012)), texture="dotted"),
        Thing("ring", "blue", 0.16, Motion((0.75, 0.8), spin=0.0)),
    ),
    background="clouds",
    background_seed=3,
)
TWINS = Scene(
    objects=(
        Thing("square", "blue", 0.18, Motion((0.3, 0.3))),
        Thing("square", "blue", 0.18, Motion((0.35, 0.74), (0.0085, 0.0), spin=0.01)),
        Thing("star", "yellow", 0.2, Motion((1.2, 0.28), (-0.001, 0.0012), spin=0.01)),
    ),
    background="blobs",
    background_seed=8,
)
PARADE = Scene(
    objects=(
        Thing("cross", "purple", 0.16, Motion((0.25, 0.3), (0.006, 0.0), spin=0.02)),
        Thing("crescent", "pink", 0.18, Motion((0.8, 0.28), (0.003, 0.001))),
        Thing("star", "red", 0.18, Motion((-0.25, 0.72), (0.0095, 0.0), spin=0.015)),
        Thing("circle", "white", 0.14, Motion((1.1, 0.72), (-0.004, 0.0))),
    ),
    background="noise",
    background_seed=12,
    pan=(0.0015, 0.0),
)
CLIPS = {"shapes": (SCENE, 20), "crossing": (CROSSING, 25), "twins": (TWINS, 60), "parade": (PARADE, 70)}
"""Scenes, and the frames of their pictures."""


def main() -> None:
    """Render every clip and its picture."""
    for name, (scene, shown) in CLIPS.items():
        frames = draw_scene(scene, FRAMES, SIZE).frames
        path = STUDIO / "clips" / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_clip(path, frames)
        poster = STUDIO / "page" / "samples" / f"{name}.jpg"
        poster.parent.mkdir(exist_ok=True)
        Image.fromarray(frames[shown]).resize(POSTER, Image.Resampling.LANCZOS).save(poster, quality=82)
        print(f"{path}: {len(frames)} frames at {RATE} per second, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
