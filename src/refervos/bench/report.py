"""Report of a run: its results as tables and as JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from refervos.bench.cases import PLAIN_SAM2, Failure, Measurement
from refervos.bench.clock import REST, STAGES
from refervos.bench.machine import Machine
from refervos.markdown import NONE, markdown_table

PERCENTS = (50, 90, 99, 100)


@dataclass(frozen=True)
class Report:
    """Results of a run.

    Attributes:
        command: The command line.
        machine: The machine.
        results: Results of the cases, in the order of the run.
    """

    command: str
    machine: Machine
    results: Sequence[Measurement | Failure]

    @property
    def measured(self) -> dict[int, Measurement]:
        """Successful measurements, by the number of their case, from 1."""
        return {n: result for n, result in enumerate(self.results, 1) if isinstance(result, Measurement)}

    def baseline_of(self, measurement: Measurement) -> Measurement | None:
        """Return the measurement of plain SAM2 in the same type and run; None without one."""
        for other in self.measured.values():
            if other.case.mode == PLAIN_SAM2 and other.case.dtype == measurement.case.dtype:
                return other
        return None

    def against_baseline(self, measurement: Measurement) -> float | None:
        """Return the cost of a frame relative to plain SAM2; None without a baseline, and for the baseline itself."""
        baseline = self.baseline_of(measurement)
        return None if baseline in (None, measurement) else measurement.frame_cost / baseline.frame_cost


def as_json(report: Report) -> bytes:
    """Format a report as JSON, derived numbers included."""
    values = {
        "command": report.command,
        "machine": dataclasses.asdict(report.machine),
        "results": [_values(report, result) for result in report.results],
    }
    return (json.dumps(values, indent=2) + "\n").encode()


def _values(report: Report, result: Measurement | Failure) -> dict[str, Any]:
    values = dataclasses.asdict(result)
    if isinstance(result, Failure):
        return values
    values |= {
        "frames": result.frames,
        "frames_per_second": result.frames_per_second,
        "frame_milliseconds": result.frame_milliseconds,
        "frame_processor_milliseconds": result.frame_processor,
        "latency_milliseconds": {_percent(percent): result.latency(percent) for percent in PERCENTS},
        "stage_milliseconds_a_frame": {name: spent / result.frames for name, spent in result.stages.items()},
        "times_plain_sam2": report.against_baseline(result),
        "floor_milliseconds": result.floor_milliseconds,
    }
    return values


def as_markdown(report: Report) -> str:
    """Format a report as Markdown that also reads well in a terminal, without a trailing line break."""
    blocks = [f"`{report.command}`", machine_lines(report.machine)]
    if report.measured:
        blocks.append(speed_table(report))
        if any(result.stages for result in report.measured.values()):
            blocks.append(stage_table(report))
        if any(result.operations for result in report.measured.values()):
            blocks.append(floor_table(report))
    failures = [(n, result) for n, result in enumerate(report.results, 1) if isinstance(result, Failure)]
    if failures:
        blocks.append("\n".join(f"- {n}, {result.case.label}: {result.reason}" for n, result in failures))
    return "\n\n".join([*blocks, notes(report)] if report.measured else blocks)


def machine_lines(machine: Machine) -> str:
    """Describe the machine in two lines."""
    flags = ", ".join(machine.flags) or "no flags known"
    memory = "" if machine.memory_gigabytes is None else f", {machine.memory_gigabytes:.0f} GB"
    about = [] if machine.gpu_gigabytes is None else [f"{machine.gpu_gigabytes:.0f} GB"]
    about += [] if machine.cuda is None else [f"CUDA {machine.cuda}"]
    gpu = (machine.gpu or "no GPU") + (f" ({', '.join(about)})" if about else "")
    transformers = "" if machine.transformers is None else f"transformers {machine.transformers}, "
    versions = f"torch {machine.torch}, {transformers}refervos {machine.refervos}"
    return (
        f"- {machine.processor}, {machine.cores} cores ({flags}){memory}; {gpu}\n- Python {machine.python}, {versions}"
    )


def speed_table(report: Report) -> str:
    """Make the table of speed, latency and memory, with a row for each case."""
    on_gpu = any(result.peak_device_megabytes is not None for result in report.measured.values())
    compared = any(report.against_baseline(result) is not None for result in report.measured.values())
    header = ["case", "frames/s", "ms/frame", "CPU ms", "p50", "p90", "p99", "worst", "first", "warm-up s", "RAM MB"]
    header += (["GPU MB"] if on_gpu else []) + (["x SAM2"] if compared else []) + ["switches"]
    rows = []
    for number, result in report.measured.items():
        latencies = [result.latency(percent) for percent in PERCENTS]
        times = [result.frame_milliseconds, result.frame_processor, *latencies, result.first_answer]
        row = [f"{number}: {result.case.label}", short(result.frames_per_second), *map(short, times)]
        row += [short(result.warm_up_seconds), _megabytes(result.peak_megabytes)]
        if on_gpu:
            row.append(_megabytes(result.peak_device_megabytes))
        if compared:
            times_baseline = report.against_baseline(result)
            row.append(NONE if times_baseline is None else f"{times_baseline:.2f}")
        rows.append([*row, str(result.switches)])
    return markdown_table(header, rows)


def stage_table(report: Report) -> str:
    """Make the table of milliseconds a frame, with a row for each stage and a column for each case."""
    cases = {number: result for number, result in report.measured.items() if result.stages}
    rows = []
    for stage in _present(result.stages for result in cases.values()):
        rows.append([stage, *(short(_of(result.stages, stage, result.frames)) for result in cases.values())])
    total = ["all", *(short(sum(result.stages.values()) / result.frames) for result in cases.values())]
    return markdown_table([_unit(cases), *map(str, cases)], [*rows, total])


def floor_table(report: Report) -> str:
    """Make the table of operations a frame and their cost relative to the floor, by stage and case."""
    cases = {number: result for number, result in report.measured.items() if result.operations}
    rows = []
    for stage in _present(result.operations for result in cases.values()):
        cells = []
        for result in cases.values():
            operations, spent = result.operations.get(stage, 0.0), _of(result.stages, stage, result.frames)
            cells.append(_with_floor(operations, spent, result.peak_operations))
        rows.append([stage, *cells])
    total = [_with_floor(r.frame_operations or 0.0, r.frame_cost, r.peak_operations) for r in cases.values()]
    peak = [short(result.peak_operations or 0.0) for result in cases.values()]
    floor = [short(result.floor_milliseconds or 0.0) for result in cases.values()]
    rows += [["all", *total], ["peak, GFLOP/s", *peak], ["floor, ms/frame", *floor]]
    return markdown_table(["GFLOP/frame (x floor)", *map(str, cases)], rows)


def notes(report: Report) -> str:
    """Explain the numbers of the tables."""
    referring = [result for result in report.measured.values() if result.case.mode != PLAIN_SAM2]
    results = referring or list(report.measured.values())
    case = results[0].case
    height, width = case.frame_size
    counts = sorted({len(result.answers) for result in results})
    calls = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    threads = "1 thread" if case.threads == 1 else f"{case.threads} threads"
    lines = [
        f"- {case.model} with {results[0].weights} weights, image size {results[0].image_size}, frames of {width} x "
        f"{height}, {threads}, {case.device}.",
        f"- p50 to worst: milliseconds of a call (a frame online, a clip in clip mode) over {calls} calls; first: the "
        "very first call. Switches: number of memory rewrites.",
    ]
    if len(referring) < len(report.measured):
        cost = "wall-clock time" if case.on_gpu else "processor time"
        lines.append(f"- x SAM2: {cost} of a frame against plain SAM2 (random weights, one object) in the same type.")
    in_bfloat16 = any(result.case.dtype == "bfloat16" and not result.case.on_gpu for result in results)
    if in_bfloat16 and report.machine.bfloat16_note is not None:
        lines.append(f"- {report.machine.bfloat16_note}")
    return "\n".join(lines)


def short(value: float) -> str:
    """Format a number with about three significant digits."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3
    return f"{value:.{decimals}f}"


def _megabytes(value: float | None) -> str:
    return NONE if value is None else f"{value:.0f}"


def _percent(percent: int) -> str:
    return "worst" if percent == 100 else f"p{percent}"


def _present(stages: Iterable[dict[str, float]]) -> list[str]:
    """List the stages that occur, in the order of their computation."""
    occurring = {name for named in stages for name in named}
    return [stage for stage in (*STAGES, REST) if stage in occurring]


def _of(stages: dict[str, float], stage: str, frames: int) -> float:
    return stages.get(stage, 0.0) / frames


def _unit(cases: dict[int, Measurement]) -> str:
    return "GPU ms/frame" if any(result.case.on_gpu for result in cases.values()) else "CPU ms/frame"


def _with_floor(operations: float, milliseconds: float, peak: float | None) -> str:
    if not operations or not peak or not milliseconds:
        return short(operations)
    return f"{short(operations)} ({short(milliseconds / (1000 * operations / peak))}x)"
