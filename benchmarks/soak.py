"""Run one session for tens of thousands of frames and watch its memory: what it keeps, and what the process holds.

    python benchmarks/soak.py --frames 20000 --plot docs/images/soak.png

The frames are ten drawn scenes of 200 frames, one after the other, over and over: objects come and go, scene cuts
are met and the sentences are at times true of nothing. They are drawn before the first look, because drawing takes and
returns memory too. The session looks for cuts and repeats, as one on a live stream would.
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
"""How many scenes, and frames of one."""

SENTENCES = ("the red circle", "the blue star", "the shape that moves left")


def scenes() -> np.ndarray:
    """Frames of all scenes, uint8 (T, 128, 128, 3)."""
    config = WorldConfig(frames=SCENE, height=128, width=128)
    return np.concatenate([draw_clip((5, number), config).frames for number in range(SCENES)])


def resident() -> int:
    """Bytes of main memory that this process holds now."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def kept(session: Session) -> int:
    """Bytes that saving the session would write: all that it remembers."""
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
    parser.add_argument("--every", type=int, default=250, help="frames between two looks")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out", type=Path, help="JSON")
    options = parser.parse_args()
    session = load(options.model, device="cpu").open(SENTENCES, on_cut="forget", on_repeat="reuse")
    rows: list[tuple[int, int, int, float]] = []
    frames = scenes()
    start = time.process_time()
    for index in range(options.frames):
        answer = session.step(frames[index % len(frames)])
        if (answer.frame_index + 1) % options.every == 0:
            rows.append((answer.frame_index + 1, resident(), kept(session), time.process_time() - start))
            print(
                f"{rows[-1][0]:>7} frames  {rows[-1][1] / 2**20:8.1f} MiB  {rows[-1][2] / 2**10:8.1f} KiB", flush=True
            )
    table = np.array(rows)
    settled = table[len(table) // 20 :]  # libraries load and buffers grow in the first frames
    for name, column in (("resident memory", 1), ("kept by the session", 2)):
        values = settled[:, column]
        drift = 100 * (values[-len(values) // 4 :].mean() / values[: len(values) // 4].mean() - 1)
        spread = 100 * (values.max() / values.min() - 1)
        print(f"{name}: last quarter against first {drift:+.2f} %, largest against smallest {spread:.2f} %")
    print(f"{session.counts}")
    if options.out:
        options.out.write_text(json.dumps({"rows": rows, "counts": vars(session.counts)}))
    if options.plot:
        plot(table, options.plot)


def plot(table: np.ndarray, path: Path) -> None:
    """Draw memory over frames."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, above = plt.subplots(figsize=(7, 3), layout="constrained")
    above.plot(table[:, 0], table[:, 1] / 2**20, color="tab:blue", label="resident memory of the process")
    above.set_ylim(0, table[:, 1].max() / 2**20 * 1.15)
    above.set_xlabel("frames")
    above.set_ylabel("MiB (process)", color="tab:blue")
    beside = above.twinx()
    beside.plot(table[:, 0], table[:, 2] / 2**10, color="tab:orange", label="kept by the session")
    beside.set_ylim(0, table[:, 2].max() / 2**10 * 1.6)
    beside.set_ylabel("KiB (session)", color="tab:orange")
    above.set_title("One session, three sentences")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
