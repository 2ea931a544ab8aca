"""Compare the processor time of a frame, a start and a training step between this version and another one.

Processes of both versions alternate on the same work with one thread each, so that other load on the machine affects
both. Run it from a clone with the ``dev`` extra: ``python benchmarks/against.py 4286a80``.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "examples" / "data" / "shapes.mp4"
SENTENCES = ("the red circle", "the blue star", "the largest shape", "the ring on the left")
WARM_UP = 16
"""Number of frames that fill the memory before the measured ones."""

FRAMES = f"""
import sys, time
import torch
torch.set_num_threads(1)
import refervos
from refervos.worlds import WorldConfig, draw_clip
frames = list(draw_clip(3, WorldConfig(height=320, width=480, frames=16)).frames)
model = refervos.load(device="cpu")
sessions = {{count: model.open({SENTENCES!r}[:count]) for count in (1, 4)}}
for session in sessions.values():
    session.borders = "bilinear"  # the same masks in every version
for frame in frames:
    for session in sessions.values():
        session.step(frame)
print("ready", flush=True)
for line in sys.stdin:
    count, number = map(int, line.split())
    begun = time.process_time()
    sessions[count].step(frames[number % 16])
    print(time.process_time() - begun, flush=True)
"""
"""Program that segments a frame of 480 x 320 with one or four sentences for each line of its input."""

STEPS = """
import sys, tempfile, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import yaml
from refervos.loading import MINIATURE_FOLDER
from refervos.training.recipe import recipe_from_mapping
from refervos.training.trainer import train
recipe = yaml.safe_load(Path(sys.argv[1]).read_text())
(stage,) = (stage for stage in recipe["stages"] if stage["name"] == sys.argv[2])
stage.pop("init", None)
if stage["stage"] != "track":
    stage["init"] = {"frozen": str(MINIATURE_FOLDER)}
stage.update(validate_every=10**6, checkpoint_every=10**6)
stage["optimiser"]["warmup"] = 0
def seconds(steps):
    stage["steps"] = steps
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        train(recipe_from_mapping({"name": "timed", "seed": 1, "stages": [stage]}), Path(folder), show_progress=False)
        return time.process_time() - begun
seconds(1)  # imports
few = seconds(2)
print((seconds(8) - few) / 6)
"""
"""Program that makes optimiser steps of one stage of a recipe and prints the seconds of one."""


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Check out another version in a temporary worktree."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "other"
        subprocess.run(["git", "-C", str(ROOT), "worktree", "add", "-q", "--detach", str(tree), revision], check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=True)


def environment(version: Path) -> dict[str, str]:
    """Return the environment of a version's processes."""
    return {**os.environ, "PYTHONPATH": str(version / "src"), "OMP_NUM_THREADS": "1"}


def frames(versions: dict[str, Path], repeats: int) -> None:
    """Compare frames of the default model."""
    running = {}
    for name, version in versions.items():
        running[name] = subprocess.Popen(
            [sys.executable, "-c", FRAMES],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(version),
        )
        assert running[name].stdout.readline() == "ready\n"
    times_of: dict[tuple[int, str], list[float]] = {(count, name): [] for count in (1, 4) for name in versions}
    for number in range(repeats):
        for count, name in times_of:
            process = running[name]
            process.stdin.write(f"{count} {number}\n")
            process.stdin.flush()
            times_of[count, name].append(float(process.stdout.readline()))
    for process in running.values():
        process.stdin.close()
        process.wait()
    medians = {key: 1000 * statistics.median(times) for key, times in times_of.items()}
    for count in (1, 4):
        compare(
            f"a frame of 480 x 320, {count} sentence{'s' * (count > 1)}",
            medians[count, "this"],
            medians[count, "other"],
        )
    print(f"four sentences relative to one: {medians[4, 'this'] / medians[1, 'this']:.2f}")


def start(versions: dict[str, Path], repeats: int) -> None:
    """Compare the time of ``segment`` until its first mask, also relative to importing torch."""
    with tempfile.TemporaryDirectory() as folder:
        segment = [sys.executable, "-m", "refervos", "segment", str(CLIP), SENTENCES[0], "--frames", "1", "-q"]
        segment += ["--overwrite", "--save", "rle", "--device", "cpu", "--out", folder]
        commands = {
            "import torch": ([sys.executable, "-c", "import torch"], versions["this"]),
            **{name: (segment, version) for name, version in versions.items()},
        }
        times_of: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(repeats):
            for name, (command, version) in commands.items():
                times_of[name].append(processor_seconds(command, version))
    medians = {name: statistics.median(times[1:]) for name, times in times_of.items()}
    compare("segment to its first mask", 1000 * medians["this"], 1000 * medians["other"])
    print(f"segment relative to import torch: {medians['this'] / medians['import torch']:.2f}")


def processor_seconds(command: Sequence[str], version: Path) -> float:
    """Measure the user and system time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, env=environment(version), capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def steps(versions: dict[str, Path], repeats: int) -> None:
    """Compare optimiser steps of the default model's recipe."""
    for stage in ("track-images", "images", "online"):
        command = [sys.executable, "-c", STEPS, str(ROOT / "recipes" / "miniature.yaml"), stage]
        times_of: dict[str, list[float]] = {name: [] for name in versions}
        for _ in range(repeats):
            for name, version in versions.items():
                done = subprocess.run(command, check=True, env=environment(version), capture_output=True, text=True)
                times_of[name].append(float(done.stdout))
        medians = {name: 1000 * statistics.median(times) for name, times in times_of.items()}
        compare(f"an optimiser step of stage {stage}", medians["this"], medians["other"])


def compare(name: str, this: float, other: float) -> None:
    """Print two times in milliseconds and their ratio."""
    print(f"{name}: {this:.1f} ms, before {other:.1f} ms, {this / other:.2f}x", flush=True)


PARTS = {"frames": (frames, 40), "start": (start, 6), "steps": (steps, 2)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="git revision to compare with")
    parser.add_argument("--parts", default=",".join(PARTS), help="default all: %(default)s")
    options = parser.parse_args()
    with checked_out(options.revision) as other:
        versions = {"this": ROOT, "other": other}
        for name in options.parts.split(","):
            part, repeats = PARTS[name]
            part(versions, repeats)


if __name__ == "__main__":
    main()
