"""Report of a run as JSON and as Markdown."""

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
"""Goal for base-plus at 1024 in bfloat16 with one sentence: least frames/s, and largest cost relative to plain SAM2."""


@dataclass
class Run:
    """Run of the script.

    Attributes:
        command: The command line.
        commit: Version of the project.
        device: ``cuda`` or ``cpu``.
        quick: True with small models and few frames.
        minutes: Time limit.
        missing: Missing packages.
        begun: Start of the run, UTC.
        machine: See ``describe_machine``.
        outcomes: Outcomes of the parts so far.
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
    """Write ``gpu.json`` and ``gpu.md``; called again after each part.

    Args:
        run: The run.
        folder: Folder of the files, created if missing.

    Returns:
        The Markdown.
    """
    goal = evaluate_goal({outcome.part.name: outcome.values for outcome in run.outcomes})
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
    """Format the run as one page."""
    rows = [
        [
            f"{outcome.part.name}: {outcome.part.title}",
            outcome.status,
            f"{outcome.seconds:.0f}",
            outcome.reason or outcome.values.get("short", ""),
        ]
        for outcome in run.outcomes
    ]
    small = " (quick: small models, few frames, nothing compiled: the numbers mean nothing)" if run.quick else ""
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
        table(["part", "status", "seconds", "result"], rows),
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


def evaluate_goal(parts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the goal with all measured modes of one sentence.

    Args:
        parts: Results of each part, by name.

    Returns:
        ``reached`` (None if it was not measured), and the measured ``ways``, each with its own ``reached``.
    """
    results = parts.get("speed", {}).get("models", {}).get(GOAL_MODEL, {}).get("speed", [])
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
    """Format the goal as text."""
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


# The machine, described without torch: this process must not use any of the GPU's memory.


def describe_machine() -> dict[str, str]:
    """Describe card, driver, processor cores and versions."""
    versions = [f"Python {platform.python_version()}"]
    for name in ("torch", "transformers", "triton", "numpy"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    cards = _nvidia_smi()
    return {
        "card": "; ".join(cards) if cards else "none found by nvidia-smi",
        "cores": str(os.cpu_count()),
        "versions": ", ".join(versions),
    }


def _nvidia_smi() -> list[str]:
    """Query name, driver and memory of each card."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (subprocess.SubprocessError, OSError):
        return []
    cards = [line.split(", ") for line in output.splitlines() if line]
    return [f"{card[0]}, driver {card[1]}, {card[2]}" for card in cards if len(card) == 3]


def commit_here() -> str:
    """Return the commit of this folder, with ``+ changes`` if files differ from it."""
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
