"""Measure the processor time of a frame in each family: the miniatures alternate on the same frames, with one thread.

Run it as ``OMP_NUM_THREADS=1 python benchmarks/families.py``, or with other models of the same input:
``... families.py weights/miniature-1 miniature``.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from refervos import load
from refervos.loading import BUNDLED
from refervos.worlds import WorldConfig, draw_clip

SENTENCES = ("the red circle", "the blue star", "the largest shape", "the ring on the left")
WARM_UP = 12
"""Number of uncounted first frames, which fill the memories."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(BUNDLED), help="the first is the reference")
    parser.add_argument("--frames", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {name: load(name, device="cpu") for name in options.models}
    frames = draw_clip((3, 1), WorldConfig(frames=options.frames, height=128, width=128)).frames
    for count in (1, 4):
        sessions = {name: model.open(SENTENCES[:count]) for name, model in models.items()}
        taken: dict[str, list[float]] = {name: [] for name in models}
        for frame in frames:
            for name, session in sessions.items():
                start = time.process_time()
                session.step(frame)
                taken[name].append(time.process_time() - start)
        medians = {name: 1000 * statistics.median(times[WARM_UP:]) for name, times in taken.items()}
        first = medians[options.models[0]]
        costs = ", ".join(f"{name} {each:.1f} ms ({each / first:.2f}x)" for name, each in medians.items())
        print(f"{count} sentence{'s' * (count > 1)}: {costs}")


if __name__ == "__main__":
    main()
