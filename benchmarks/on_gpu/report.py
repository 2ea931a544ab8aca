"""What a run found, as JSON and as Markdown."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from on_gpu.context import ROOT, table
from on_gpu.runner import Outcome

GOAL_MODEL = "base-plus"
FRAMES_PER_SECOND = 120.0
TIMES_PLAIN_SAM2 = 1.1
"""The goal: base-plus at 1024 in bfloat16 with one sentence, at least so fast and at most so many times plain SAM2."""


@dataclass
class Run:
    """A run of the script.

    Attributes:
        command: What was typed.
        commit: Which version of the project.
        device: What it ran on.
        quick: Whether all was small.
        minutes: The budget.
        missing: Packages that are not there.
        begun: When, UTC.
        machine: See ``describe_machine``.
        outcomes: Of the parts so far.
    """

    command: str
    commit: str
    device: str
    quick: bool
    minutes: float
    missing: Sequence[str] = ()
    begun: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    machine: Mapping[str, str] = field(default_factory=lambda: describe_machine())
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """Names of the parts that failed."""
        return [outcome.part.name for outcome in self.outcomes if outcome.status == "failed"]


def write(run: Run, folder: Path) -> str:
    """Write ``gpu.json`` and ``gpu.md``; called again as more parts are done.

    Args:
        run: The run.
        folder: Where to; made when missing.

    Returns:
        The Markdown.
    """
    goal = reached({outcome.part.name: outcome.values for outcome in run.outcomes})
    values = {
        **{name: value for name, value in vars(run).items() if name != "outcomes"},
        "goal": goal,
        "parts": {outcome.part.name: asdict(outcome) for outcome in run.outcomes},
    }
    text = as_markdown(run, goal)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("gpu.json", json.dumps(values, indent=2)), ("gpu.md", text)):
        unfinished = folder / f".{name}"
        unfinished.write_text(f"{content}\n", encoding="utf-8")
        unfinished.replace(folder / name)
    return text


def as_markdown(run: Run, goal: Mapping[str, Any]) -> str:
    """The run as one page."""
    rows = [
        [
            f"{outcome.part.name}: {outcome.part.title}",
            outcome.status,
            f"{outcome.seconds:.0f}",
            outcome.reason or outcome.values.get("short", ""),
        ]
        for outcome in run.outcomes
    ]
    small = " (quick: small models, few frames, nothing compiled: these numbers say nothing)" if run.quick else ""
    blocks = [
        "# refervos on a GPU" if run.device.startswith("cuda") else "# The GPU script, tried on a CPU",
        "\n".join(
            [
                f"- `{run.command}`{small}",
                f"- {run.begun}, commit {run.commit}",
                *(f"- {name}: {value}" for name, value in run.machine.items()),
                *([f"- missing packages: {', '.join(run.missing)}"] if run.missing else []),
            ]
        ),
        goal_lines(goal),
        table(["part", "status", "seconds", "what came out"], rows),
    ]
    for outcome in run.outcomes:
        if outcome.values.get("markdown") or outcome.trace:
            blocks.append(f"## {outcome.part.name}: {outcome.part.title}")
        if outcome.trace:
            blocks.append("\n".join([f"{outcome.reason}:", "", "```", *outcome.trace, "```"]))
        if outcome.values.get("markdown"):
            blocks.append(outcome.values["markdown"])
    return "\n\n".join(blocks)


# The goal.


def reached(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the goal was reached, by any way to follow one sentence.

    Args:
        found: What each part found, by name.

    Returns:
        ``reached`` (None where it was not measured), ``ways`` that were measured, and whether each reaches the goal.
    """
    results = found.get("speed", {}).get("models", {}).get(GOAL_MODEL, {}).get("speed", [])
    ways = []
    for result in results:
        case, ratio = result["case"], result.get("times_plain_sam2")
        if ratio is None or case["sentences"] != 1 or case["dtype"] != "bfloat16":
            continue  # a failure, plain SAM2 itself, or without it
        speed = result["frames_per_second"]
        ways.append(
            {
                "way": f"{case['mode']}, {'compiled' if case['compiled'] else 'eager'}",
                "frames_per_second": speed,
                "times_plain_sam2": ratio,
                "reached": speed >= FRAMES_PER_SECOND and ratio <= TIMES_PLAIN_SAM2,
            }
        )
    return {
        "model": GOAL_MODEL,
        "frames_per_second": FRAMES_PER_SECOND,
        "times_plain_sam2": TIMES_PLAIN_SAM2,
        "ways": ways,
        "reached": any(way["reached"] for way in ways) if ways else None,
    }


def goal_lines(goal: Mapping[str, Any]) -> str:
    """The goal in words."""
    verdict = {None: "not measured", True: "reached", False: "not reached"}[goal["reached"]]
    lines = [
        f"Goal ({goal['model']} at 1024, bfloat16, one sentence: {goal['frames_per_second']:.0f} frames/s and at most "
        f"{goal['times_plain_sam2']:.2f} times plain SAM2 in the same run): **{verdict}**.",
        *(
            f"- {way['way']}: {way['frames_per_second']:.1f} frames/s, {way['times_plain_sam2']:.2f} times plain SAM2: "
            f"{'reached' if way['reached'] else 'not reached'}"
            for way in goal["ways"]
        ),
    ]
    return "\n".join([lines[0], "", *lines[1:]]) if goal["ways"] else lines[0]


# What it ran on. Told without torch: this process must not take any of the GPU's memory.


def describe_machine() -> dict[str, str]:
    """Card, driver, processor cores and versions."""
    versions = [f"Python {platform.python_version()}"]
    for name in ("torch", "transformers", "triton", "numpy"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    cards = _nvidia_smi()
    return {
        "card": "; ".join(cards) if cards else "none that nvidia-smi tells of",
        "cores": str(os.cpu_count()),
        "versions": ", ".join(versions),
    }


def _nvidia_smi() -> list[str]:
    """Name, driver and memory of each card."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return []
    cards = [line.split(", ") for line in told.splitlines() if line]
    return [f"{card[0]}, driver {card[1]}, {card[2]}" for card in cards if len(card) == 3]


def commit_here() -> str:
    """The version of the project in this folder, with ``+ changes`` where files differ from it."""
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=20, check=True
            ).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (subprocess.SubprocessError, OSError):
        return "unknown"
    return head.strip() + (" + changes" if changes.strip() else "")
