"""Measure everything that wants a GPU in one go, and report it in one JSON and one Markdown file.

    python benchmarks/gpu.py --out out/gpu                  # on a machine with a GPU: at most eight minutes
    python benchmarks/gpu.py --device cpu --quick           # the same parts, small, to try the script without one
    python benchmarks/gpu.py --parts speed,memory           # some of them

Each part runs in a process of its own and within its limit of time; one that fails is reported, and the rest goes on.
The exit code is 1 when a part failed. Besides torch for the GPU and transformers it needs a few packages, which it
installs from wheels/ into build/ where they are missing (see ``on_gpu/wheels.py``); nothing is downloaded.
This process itself needs the standard library alone.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from on_gpu.context import ROOT, Context
from on_gpu.report import Run, commit_here, write
from on_gpu.runner import LINES, Part, run_parts, write_found
from on_gpu.wheels import PACKAGES, install_missing

PARTS = {
    Part("twins", "tests that exist for each device", 120): "on_gpu.checks",
    Part("parity", "goldens in float32, bfloat16 against float32", 60): "on_gpu.checks",
    Part("speed", "SAMWISE against plain SAM2, by stage, compiled", 160): "on_gpu.speed",
    Part("memory", "peak over 500 frames", 60): "on_gpu.speed",
    Part("training", "one step of each published recipe", 60): "on_gpu.training",
    Part("resize", "frames resized before or after the upload", 15): "on_gpu.speed",
}
"""The parts, the most important first, each with the seconds kept for it and the module that has its function."""


def run_one(name: str, context: Context, path: Path) -> int:
    """Run one part in this process; returns its exit code.

    Args:
        name: The part's.
        context: What it is told.
        path: Where what it found is written.
    """
    context.save = lambda values: write_found(path, values)
    try:
        module = next(module for part, module in PARTS.items() if part.name == name)
        values = getattr(import_module(module), name)(context)
    except BaseException as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        lines = "".join(traceback.format_exception(error)).splitlines()[-LINES:]
        write_found(path, context.kept, reason, lines)
        return 1
    write_found(path, values)
    return 0


def environment() -> dict[str, str]:
    """Environment of the parts: this source tree first, and no thought of the hub."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", ""), str(PACKAGES)]
    offline: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def run_all(options: argparse.Namespace) -> int:
    """Run the chosen parts and report after each; returns the exit code."""
    begun = time.monotonic()
    try:
        missing = install_missing()
    except subprocess.CalledProcessError as error:
        missing = [f"what pip could not install from wheels/ (exit code {error.returncode})"]
    command = f"benchmarks/gpu.py {shlex.join(sys.argv[1:])}".strip()
    run = Run(command, options.commit or commit_here(), options.device, options.quick, options.minutes, missing)
    if missing:
        print(f"missing: {', '.join(missing)}; see benchmarks/on_gpu/wheels.py", flush=True)

    def command_of(part: Part, seconds: float, path: Path) -> list[str]:
        words = [sys.executable, __file__, "--part", part.name, "--json", str(path), "--seconds", f"{seconds:.0f}"]
        return [*words, "--device", options.device, *(["--quick"] if options.quick else [])]

    chosen = [part for part in PARTS if part.name in options.parts]
    text = ""
    left = 60 * options.minutes - (time.monotonic() - begun)
    for outcome in run_parts(chosen, command_of, left, environment()):
        run.outcomes.append(outcome)
        told = outcome.reason or outcome.values.get("short", "")
        print(f"{outcome.part.name}: {outcome.status}, {outcome.seconds:.0f} s; {told}", flush=True)
        text = write(run, options.out)  # after each part: whoever is stopped has what there is
    print(f"\n{text}\n\nwritten: {options.out / 'gpu.json'} and {options.out / 'gpu.md'}")
    return 1 if run.failed else 0


def names_of_parts(text: str) -> list[str]:
    """Read names separated by commas."""
    names, known = text.split(","), [part.name for part in PARTS]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"there is no part {name!r}; there are {', '.join(known)}")
    return names


def main() -> int:
    """Run all parts, or within a process of its own one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ",".join(part.name for part in PARTS)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models and few frames, to try the script")
    parser.add_argument("--minutes", type=float, default=8.0, help="budget of all parts together")
    parser.add_argument("--parts", type=names_of_parts, default=names_of_parts(every), help=f"default {every}")
    parser.add_argument("--commit", help="the project's version, where the folder has no .git")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        return run_one(options.part, Context(options.device, options.quick, options.seconds), options.json)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the running part ends too
    return run_all(options)


if __name__ == "__main__":
    sys.exit(main())
