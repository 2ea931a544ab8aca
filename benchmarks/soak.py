"""Run one session for tens of thousands of frames and monitor the memory of the session and of the process.

    python benchmarks/soak.py --frames 20000 --plot docs/images/soak.png

The frames are ten drawn scenes of 200 frames, repeated in order: objects appear and disappear, there are scene cuts,
and some sentences have no target at times. They are drawn in advance, because drawing allocates memory, too. The
session detects cuts and repeated frames, like one on a live stream.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from refervos import load
from refervos.session.session import Session
from refervos.worlds import WorldConfig, draw_clip

SCENES, SCENE = 10, 200
"""Number of scenes, and of frames in a scene."""

SENTENCES = ("the red circle", "the blue star", "the shape that moves left")


def scenes() -> np.ndarray:
    """Draw the frames of all scenes, uint8 (T, 128, 128, 3)."""
    config = WorldConfig(frames=SCENE, height=128, width=128)
    return np.concatenate([draw_clip((5, number), config).frames for number in range(SCENES)])


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def state_size(session: Session) -> int:
    """Return the size of the saved session in bytes, which is its whole state."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session"
        session.save(path)
        return path.stat().st_size


def main() -> None:
    """Run, report and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="miniature")
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=250, help="frames between two measurements")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    session = load(options.model, device="cpu").open(SENTENCES, on_cut="forget", on_repeat="reuse")
    rows: list[tuple[int, int, int, float]] = []
    frames = scenes()
    start = time.process_time()
    for index in range(options.frames):
        count = session.step(frames[index % len(frames)]).frame_index + 1
        if count % options.every == 0:
            rows.append((count, resident(), state_size(session), time.process_time() - start))
            print(
                f"{rows[-1][0]:>7} frames  {rows[-1][1] / 2**20:8.1f} MiB  {rows[-1][2] / 2**10:8.1f} KiB", flush=True
            )
    table = np.array(rows)
    steady = table[len(table) // 20 :]  # libraries load and buffers grow in the first frames
    for name, column in (("resident memory", 1), ("state of the session", 2)):
        values = steady[:, column]
        drift = 100 * (values[-len(values) // 4 :].mean() / values[: len(values) // 4].mean() - 1)
        spread = 100 * (values.max() / values.min() - 1)
        print(f"{name}: last quarter against first {drift:+.2f} %, largest against smallest {spread:.2f} %")
    print(f"{session.counts}")
    if options.out:
        options.out.write_text(json.dumps({"rows": rows, "counts": vars(session.counts)}))
    if options.plot:
        plot(table, options.plot)


def plot(table: np.ndarray, path: Path) -> None:
    """Plot memory over frames."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, above = plt.subplots(figsize=(7, 3), layout="constrained")
    above.plot(table[:, 0], table[:, 1] / 2**20, color="tab:blue", label="resident memory of the process")
    above.set_ylim(0, table[:, 1].max() / 2**20 * 1.15)
    above.set_xlabel("frames")
    above.set_ylabel("MiB (process)", color="tab:blue")
    beside = above.twinx()
    beside.plot(table[:, 0], table[:, 2] / 2**10, color="tab:orange", label="state of the session")
    beside.set_ylim(0, table[:, 2].max() / 2**10 * 1.6)
    beside.set_ylabel("KiB (session)", color="tab:orange")
    above.set_title("One session, three sentences")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
