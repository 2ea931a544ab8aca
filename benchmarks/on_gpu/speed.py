"""Speed and memory on this device, and the best place to resize frames."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from on_gpu.context import Context, Values, clear_memory, table

# Speed.

LEAST_SECONDS = {False: 8.0, True: 15.0}
"""Least remaining seconds to start a further case, eager or compiled."""


def speed(context: Context) -> Values:
    """Time SAMWISE and transformers' SAM2 in one process: one and several sentences, online and in clips, compiled."""
    from refervos.bench.machine import this_machine
    from refervos.bench.report import Report, as_json, floor_table, speed_table, stage_table

    machine = this_machine()
    results: dict[tuple[str, str], list[Any]] = {}
    skipped: list[str] = []

    def keep() -> Values:
        values: Values = {"models": {}, "not run": skipped}
        blocks = []
        for (model, kind), found in results.items():
            report = Report(f"benchmarks/gpu.py: {model}, {kind}", machine, found)
            values["models"].setdefault(model, {})[kind] = json.loads(as_json(report))["results"]
            if report.measured:
                tables = [speed_table(report)] if kind == "speed" else [stage_table(report), floor_table(report)]
                blocks += [f"{model}, {TABLES[kind]}:", *tables]
            blocks += [f"- {model}, {each.case.label}: {each.reason}" for each in failures(found)]
        blocks += [f"- {label}: not run, no time left" for label in skipped]
        every = [each for found in results.values() for each in found]
        broken = failures(every)
        values["short"] = f"{len(every) - len(broken)} cases measured, {len(broken)} failed, {len(skipped)} not run"
        values["failures"] = [f"{each.case.model}, {each.case.label}: {each.reason}" for each in broken]
        values["markdown"] = "\n\n".join(blocks)
        return context.keep(values)

    values = keep()
    for kind, case in speed_cases(context):
        if context.left() < LEAST_SECONDS[case.compiled]:
            skipped.append(f"{case.model}, {case.label}")
        else:
            results.setdefault((case.model, kind), []).append(measured(case, context))
        values = keep()
    if values["failures"]:
        raise RuntimeError(f"{len(values['failures'])} cases failed, the first: {values['failures'][0]}")
    return values


TABLES = {"speed": "without the stage clock", "stages": "time by stage, eager, and relative to its floor"}


def failures(results: Sequence[Any]) -> list[Any]:
    """List the cases that could not be measured."""
    from refervos.bench.cases import Failure

    return [result for result in results if isinstance(result, Failure)]


def speed_cases(context: Context) -> Iterator[tuple[str, Any]]:
    """List the cases to time, the most important first.

    Yields:
        The table of a case, and the case.
    """
    from refervos.bench.cases import PLAIN_SAM2, Case

    models = ("miniature",) if context.quick else ("base-plus", "tiny")
    combinations = [(mode, count) for count in (1, 2 if context.quick else 8) for mode in ("online", "clip")]
    few_combinations = combinations[:1] if context.quick else combinations

    def case(model: str, mode: str, sentences: int = 1, **changes: Any) -> Case:
        counts = {"frames": 2, "warm_up": 1} if context.quick else {"frames": 96, "warm_up": 32}
        settings: Values = {"dtype": "bfloat16", "device": context.device, "stages": False, **counts, **changes}
        return Case(model=model, mode=mode, sentences=sentences, threads=torch.get_num_threads(), **settings)

    for model in models:
        yield "speed", case(model, PLAIN_SAM2)
        for mode, count in combinations:
            yield "speed", case(model, mode, count)
        for mode, count in few_combinations:
            yield "speed", case(model, mode, count, compiled=True)
    for model in models:
        for mode, count in few_combinations:
            # Quick in float32: many processors lack bfloat16, and the product of large matrices would take long.
            changes: Values = {"dtype": "float32"} if context.quick else {"frames": 24, "warm_up": 16}
            yield "stages", case(model, mode, count, stages=True, flops=True, **changes)


def measured(case: Any, context: Context) -> Any:
    """Measure a case in this process, with GPU memory and compiler reset as in a new process."""
    from refervos.bench.cases import Failure
    from refervos.bench.measuring import measure

    torch.compiler.reset()  # its limit of shapes for a function is shared by all models
    clear_memory(context)
    stance = torch.compiler.set_stance("force_eager") if context.quick and case.compiled else nullcontext()
    try:
        with stance:
            return measure(case)
    except Exception as error:
        return Failure(case, " ".join(f"{type(error).__name__}: {error}".split())[:200])


# Memory over many frames.

GROWTH = 1.01
"""Largest ratio of the last frames' peak to the first ones'."""


def memory(context: Context) -> Values:
    """Run one session for 500 frames and measure the peak memory of each hundred."""
    from refervos.bench.cases import Case
    from refervos.bench.measured_models import draw_inputs, open_model, repeat_clips
    from refervos.bench.memory import resident_megabytes

    model, hundred = ("miniature", 4) if context.quick else ("base-plus", 100)
    case = Case(model=model, mode="online", dtype="bfloat16", device=context.device, threads=torch.get_num_threads())
    frames, prompts = draw_inputs(case)
    measured_model = open_model(case, prompts)
    source = repeat_clips(frames, measured_model.clip_length)
    peaks: list[float] = []
    for _ in range(5):
        clear_memory(context)
        highest = 0.0
        for _ in range(hundred):
            measured_model.segment(next(source))
            highest = max(highest, resident_megabytes() or 0.0)
        peaks.append(torch.cuda.max_memory_allocated() / 1e6 if context.on_gpu else highest)
    cells = [f"{peak:.1f}" for peak in peaks]
    title = f"{model}, {'GPU' if context.on_gpu else 'resident'} MB, peak of each {hundred} frames"
    values = {
        "model": model,
        "megabytes": peaks,
        "short": f"{title}: {cells[0]} first, {cells[-1]} last",
        "markdown": table([title, "1st", "2nd", "3rd", "4th", "5th"], [["", *cells]]),
    }
    context.keep(values)
    # Resident memory over so few frames says little; benchmarks/soak.py monitors it for long enough.
    if context.on_gpu and not constant(peaks):
        raise AssertionError(f"memory grows: {values['short']}")
    return values


def constant(peaks: Sequence[float]) -> bool:
    """Return True if the last peak is about as high as the first."""
    return peaks[-1] <= GROWTH * peaks[0]


# Resizing.


def resize(context: Context) -> Values:
    """Time the resizing of a frame to the model's size before and after the upload."""
    import numpy as np

    from refervos.placement import as_rgb, letterbox
    from refervos.samwise.config import SAMWISE_PRESETS

    config = SAMWISE_PRESETS["base-plus"]
    rng = np.random.default_rng(0)
    values: Values = {"frames": {}}
    rows = []
    for height, width in ((480, 854), (1080, 1920)):
        placement = letterbox((height, width), config.sam2.image_size, config.short_side)
        frame = as_rgb(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "before": lambda p=placement, f=frame: p.place(f).to(context.device),  # type: ignore[misc]
            "after": lambda p=placement, f=frame: p.place(f.to(context.device)),  # type: ignore[misc]
        }
        taken = {name: milliseconds(way, context) for name, way in ways.items()}
        off = float((ways["before"]() - ways["after"]()).abs().max())
        faster = min(taken, key=lambda name: taken[name])
        values["frames"][f"{width}x{height}"] = {**taken, "faster": faster, "largest difference": off}
        rows.append([f"{width} x {height}", f"{taken['before']:.2f}", f"{taken['after']:.2f}", faster, f"{off:.1e}"])
    columns = ["frame", "ms, resized before the upload", "ms, after it", "faster", "largest difference"]
    values["short"] = "; ".join(f"{size}: {found['faster']} the upload" for size, found in values["frames"].items())
    values["markdown"] = table(columns, rows)
    return context.keep(values)


def milliseconds(call: Callable[[], torch.Tensor], context: Context) -> float:
    """Measure the median time of a call, including the device's work."""
    times = []
    for _ in range(3 if context.quick else 55):
        start = time.perf_counter()
        call()
        if context.on_gpu:
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times[1 if context.quick else 5 :])  # without the warm-up
