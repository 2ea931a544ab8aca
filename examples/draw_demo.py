"""Render the demo's video from a fixed scene of ``refervos.worlds``.

    python examples/draw_demo.py

writes ``examples/data/shapes.mp4``. A red circle passes behind a yellow square, a white ring stays at the bottom left,
a striped green heart sinks on the right, and a blue star enters late.
"""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from refervos.worlds import Motion, Scene, Thing, draw_scene

SIZE = (320, 480)
FRAMES = 125
RATE = 25

SCENE = Scene(
    objects=(
        Thing("circle", "red", 0.17, Motion((0.22, 0.3), (0.0078, 0.0006))),
        Thing("square", "yellow", 0.2, Motion((0.66, 0.36)), angle=0.12),
        Thing("ring", "white", 0.15, Motion((0.28, 0.8))),
        Thing("heart", "green", 0.15, Motion((1.3, 0.2), (0.0, 0.0022)), texture="striped", angle=-0.1),
        Thing("star", "blue", 0.19, Motion((1.5 + 0.19 + 0.36, 0.76), (-0.0095, -0.001), spin=-0.012)),
    ),
    background="gradient",
    background_seed=5,
    background_strength=7.0,
)


def write_clip(path: Path, frames: npt.NDArray[np.uint8]) -> None:
    """Write frames as H.264 in yuv420p, which plays everywhere.

    Args:
        path: The file.
        frames: RGB (T, H, W, 3).
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(RATE))
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "slow"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    """Render the scene and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=Path(__file__).parent / "data" / "shapes.mp4")
    path = parser.parse_args().video
    write_clip(path, draw_scene(SCENE, FRAMES, SIZE).frames)
    print(f"{path}: {FRAMES} frames, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
