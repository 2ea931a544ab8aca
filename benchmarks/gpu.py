"""Run all measurements and tests that need a GPU, and report them in one JSON and one Markdown file.

    python benchmarks/gpu.py --out out/gpu                  # on a machine with a GPU: at most nine minutes
    python benchmarks/gpu.py --device cpu --quick           # the same parts, small, to test the script without a GPU
    python benchmarks/gpu.py --parts speed,memory           # some of them

Each part runs in its own process and within its time limit; a failed part is reported, and the others still run.
The exit code is 1 if a part failed. Besides torch for the GPU and transformers the script needs a few packages, which
it installs from wheels/ into build/ if they are missing (see ``on_gpu/wheels.py``); nothing is downloaded.
This process itself needs only the standard library.
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
from on_gpu.runner import LINES, Part, run_parts, write_results
from on_gpu.wheels import PACKAGES, install_missing

PARTS = {
    Part("twins", "tests that exist for each device", 120): "on_gpu.checks",
    Part("parity", "goldens in float32, bfloat16 against float32", 60): "on_gpu.checks",
    Part("speed", "SAMWISE against plain SAM2, by stage, compiled", 160): "on_gpu.speed",
    Part("memory", "peak over 500 frames", 60): "on_gpu.speed",
    Part("videoglamm", "VideoGLaMM of the published size, random weights: milliseconds", 60): "on_gpu.videoglamm",
    Part("training", "one step of each published recipe", 60): "on_gpu.training",
    Part("resize", "frames resized before or after the upload", 15): "on_gpu.speed",
}
"""Parts by importance, each with the seconds reserved for it and the module of its function."""


def run_one(name: str, context: Context, path: Path) -> int:
    """Run one part in this process; return its exit code.

    Args:
        name: Name of the part.
        context: Options of the part.
        path: File for its results.
    """
    context.save = lambda values: write_results(path, values)
    try:
        module = next(module for part, module in PARTS.items() if part.name == name)
        values = getattr(import_module(module), name)(context)
    except BaseException as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        lines = "".join(traceback.format_exception(error)).splitlines()[-LINES:]
        write_results(path, context.kept, reason, lines)
        return 1
    write_results(path, values)
    return 0


def environment() -> dict[str, str]:
    """Return the environment of the parts: this source tree first, and no access to the hub."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", ""), str(PACKAGES)]
    offline: Mapping[str, str] = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **offline, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def run_all(options: argparse.Namespace) -> int:
    """Run the chosen parts and write the report after each; return the exit code."""
    start = time.monotonic()
    try:
        missing = install_missing()
    except subprocess.CalledProcessError as error:
        missing = [f"wheels that pip could not install (exit code {error.returncode})"]
    command = f"benchmarks/gpu.py {shlex.join(sys.argv[1:])}".strip()
    run = Run(command, options.commit or commit_here(), options.device, options.quick, options.minutes, missing)
    if missing:
        print(f"missing: {', '.join(missing)}; see benchmarks/on_gpu/wheels.py", flush=True)

    def command_of(part: Part, seconds: float, path: Path) -> list[str]:
        words = [sys.executable, __file__, "--part", part.name, "--json", str(path), "--seconds", f"{seconds:.0f}"]
        return [*words, "--device", options.device, *(["--quick"] if options.quick else [])]

    chosen = [part for part in PARTS if part.name in options.parts]
    text = ""
    left = 60 * options.minutes - (time.monotonic() - start)
    for outcome in run_parts(chosen, command_of, left, environment()):
        run.outcomes.append(outcome)
        summary = outcome.reason or outcome.values.get("short", "")
        print(f"{outcome.part.name}: {outcome.status}, {outcome.seconds:.0f} s; {summary}", flush=True)
        text = write(run, options.out)  # after each part, in case the script is stopped
    print(f"\n{text}\n\nwritten: {options.out / 'gpu.json'} and {options.out / 'gpu.md'}")
    return 1 if run.failed else 0


def parse_parts(text: str) -> list[str]:
    """Parse names of parts separated by commas."""
    names, known = text.split(","), [part.name for part in PARTS]
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"there is no part {name!r}; there are {', '.join(known)}")
    return names


def main() -> int:
    """Run all parts, or one of them in its own process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = ",".join(part.name for part in PARTS)
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models and few frames, to test the script")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of all parts in total")
    parser.add_argument("--parts", type=parse_parts, default=parse_parts(every), help=f"default {every}")
    parser.add_argument("--commit", help="version of the project, if the folder has no .git")
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
