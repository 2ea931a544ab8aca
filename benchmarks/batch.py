"""Throughput of `refervos batch`: two workers against one, and against a plain loop over `refervos segment`.

All three segment the same drawn videos, in turns, in one run, so that other load on the machine weighs on all of them
alike; the ratios are what counts. Run it on an idle machine with at least two cores:

    python benchmarks/batch.py --videos 24 --rounds 3 --out batch.json

It also plans the job with the speed measured here and compares the planned with the measured makespan.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from refervos.batch.calibration import fit_cost, measured_job
from refervos.batch.job import Options, plan_units
from refervos.batch.manifest import read_manifest
from refervos.batch.planning import plan_job
from refervos.batch.units import Cost
from refervos.worlds import WorldConfig, draw_clip

SENTENCE = "the red circle"


def draw_videos(folder: Path, count: int, frames: int, side: int) -> list[Path]:
    """Write drawn videos of different lengths, ``frames`` on average."""
    lengths = np.random.default_rng(0).lognormal(np.log(frames), 0.5, count).astype(int) + 8
    paths = []
    for index, length in enumerate(lengths):
        clip = draw_clip(index, WorldConfig(frames=8, height=side, width=side))
        path = folder / f"{index:03d}.mp4"
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream("libx264", rate=24, options={"preset": "veryfast"})
            stream.width = stream.height = side
            stream.pix_fmt = "yuv420p"
            for position in range(int(length)):
                step = position % 14  # forwards and backwards through the eight frames
                image = np.asarray(clip.frames[step if step < 8 else 14 - step])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
        paths.append(path)
    return paths


def run(arguments: Sequence[str], folder: Path) -> float:
    """Run a command; return its wall-clock seconds."""
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "refervos", *arguments], check=True, cwd=folder, env=environment)
    return time.perf_counter() - begun


def batch(folder: Path, workers: int, out: str, packing: Sequence[str]) -> float:
    """Time a whole `refervos batch`, start and model loading included."""
    options = ["--workers", str(workers), "--device", "cpu", "--quiet", *packing]
    return run(["batch", "videos.csv", out, *options], folder)


def loop(folder: Path, videos: Sequence[Path], name: str) -> float:
    """Time a shell loop over `refervos segment`, run lengths only."""
    options = ["--save", "rle", "--device", "cpu", "--quiet"]
    return sum(
        run(["segment", str(path), SENTENCE, *options, "--out", f"{name}/{path.stem}"], folder) for path in videos
    )


def work_seconds(folder: Path, out: str) -> float:
    """Return the seconds from the first worker's being ready to the last commit: throughput without the start."""
    ready: list[float] = []
    committed: list[float] = []
    for path in (folder / out / "_log").glob("*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            (ready if line["event"] == "ready" else committed if line["event"] == "commit" else []).append(line["time"])
    return max(committed) - min(ready)


def planned(folder: Path, workers: int, shard_seconds: float) -> tuple[dict[str, float], list[str]]:
    """Plan the job with the speed measured here, in wall-clock time and in processor time of the workers.

    Returns:
        Both times, and the options with which `refervos batch` packs the shards of the plan.
    """
    entries = read_manifest(folder / "videos.csv")
    units = plan_units(entries, {}, Cost())
    with measured_job(entries, units, Options(), ["cpu"] * workers) as job:
        plan = plan_job(units, fit_cost(job), workers, shard_seconds)
        cost = fit_cost(job, "cpu")
    cpu = workers * cost.load + plan.files * cost.commit
    cpu += sum(cost.seconds(unit.frames, len(unit.expressions)) for unit in units)
    return {"planned": plan.schedule.seconds, "planned_cpu": cpu}, plan.options()


def measured(folder: Path, out: str) -> dict[str, float]:
    """Return the makespan of a job, and the processor time of its workers."""
    logs = [list(map(json.loads, path.read_text().splitlines())) for path in (folder / out / "_log").glob("*.jsonl")]
    commits = [line for lines in logs for line in lines if line["event"] == "commit"]
    makespan = max(line["time"] for line in commits) - min(lines[0]["started"] for lines in logs)
    return {"makespan": makespan, "cpu": sum(lines[-1]["cpu"] for lines in logs)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--frames", type=int, default=96, help="median frames of a video")
    parser.add_argument("--side", type=int, default=256, help="side of the videos in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shard-seconds", type=float, default=4.0)
    parser.add_argument("--plan", action="store_true", help="compare a plan with the measured run only")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="refervos-batch-") as name:
        folder = Path(name)
        videos = draw_videos(folder, given.videos, given.frames, given.side)
        rows = "".join(f"{path.name},{SENTENCE}\n" for path in videos)
        (folder / "videos.csv").write_text(f"video,expression\n{rows}")
        rounds: list[dict[str, float]] = []
        for number in range(given.rounds):
            plan, packing = planned(folder, 2, given.shard_seconds)
            two = batch(folder, 2, f"two{number}", packing)
            result = {
                "load": os.getloadavg()[0],
                "two_workers": two,
                "two_workers_work": work_seconds(folder, f"two{number}"),
                **plan,
                **measured(folder, f"two{number}"),
            }
            result["planned_over_measured"] = result["planned"] / result["makespan"]
            result["planned_over_measured_cpu"] = result["planned_cpu"] / result["cpu"]
            if not given.plan:
                result["one_worker"] = batch(folder, 1, f"one{number}", packing)
                result["one_worker_work"] = work_seconds(folder, f"one{number}")
                result["loop"] = loop(folder, videos, f"loop{number}")
                result["two_over_one"] = result["one_worker"] / two
                result["two_over_one_work"] = result["one_worker_work"] / result["two_workers_work"]
                result["two_over_loop"] = result["loop"] / two
            rounds.append(result)
            print(json.dumps({key: round(value, 3) for key, value in result.items()}), flush=True)
        medians = {key: statistics.median(result[key] for result in rounds) for key in rounds[0]}
    report = {"options": {**vars(given), "out": None}, "rounds": rounds, "medians": medians}
    print("medians", json.dumps({key: round(value, 3) for key, value in medians.items()}))
    if given.out is not None:
        given.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
