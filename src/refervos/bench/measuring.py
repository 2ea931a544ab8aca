"""Measures one case in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from refervos.bench.cases import Case, Failure, Measurement
from refervos.bench.clock import REST, Operations, StageClock, time_on
from refervos.bench.measured_models import Subject, draw_material, open_subject, portions
from refervos.bench.memory import peak_device_megabytes, peak_resident_megabytes, resident_megabytes
from refervos.errors import RefervosError
from refervos.ops.linear import has_one_dnn, one_dnn_product

Shape = tuple[int, ...]

PEAK_SIDE = {"cpu": 2048, "gpu": 8192}
"""Side of the matrices whose product is the machine's peak; small ones do not fill a GPU."""

PEAK_REPEATS = 10
PEAK_MILLISECONDS = 10_000
"""Products of one way are repeated so often, unless they take longer than this."""


def measure(case: Case) -> Measurement | Failure:
    """Measure a case; what goes wrong within torch, such as memory that runs out, is a failure of this case alone.

    Raises:
        RefervosError: When the input is at fault, which the other cases share.
    """
    try:
        return _measure(case)
    except RefervosError:
        raise
    except (RuntimeError, MemoryError) as error:
        return Failure(case, " ".join(f"{type(error).__name__}: {error}".split())[:200])


def _measure(case: Case) -> Measurement:
    torch.set_num_threads(case.threads)
    frames, prompts = draw_material(case)
    subject = open_subject(case, prompts)
    loaded = resident_megabytes()
    source = portions(frames, subject.portion)
    clock = StageClock(subject.model, subject.stages) if case.stages else None
    with clock or nullcontext():
        begun = time.perf_counter()
        first, _ = _timed(subject, next(source))
        for _ in range(math.ceil(case.warm_up / subject.portion) - 1):
            subject.answer(next(source))
        warm_up = time.perf_counter() - begun
        if clock is not None:
            clock.restart()
        processor = time.process_time()
        timed = [_timed(subject, next(source)) for _ in range(math.ceil(case.frames / subject.portion))]
        processor = time.process_time() - processor
    peak, device_peak = peak_resident_megabytes(), peak_device_megabytes(case.device)
    answers = tuple(milliseconds for milliseconds, _ in timed)
    stages = clock.totals() if clock is not None else {}
    if stages:
        # On a GPU the stages' times are the GPU's, and what the clock shows beyond them is nobody's.
        whole = sum(answers) if case.on_gpu else 1000 * processor
        stages[REST] = max(0.0, whole - sum(stages.values()))
    return Measurement(
        case=case,
        weights=subject.weights,
        image_size=subject.image_size,
        answered_at_once=subject.portion,
        answers=answers,
        processor=1000 * processor,
        first_answer=first,
        warm_up_seconds=warm_up,
        stages=stages,
        switches=sum(switches for _, switches in timed),
        loaded_megabytes=loaded,
        peak_megabytes=peak,
        peak_device_megabytes=device_peak,
        operations=count_operations(subject, source) if case.flops else {},
        peak_operations=peak_operations(case) if case.flops else None,
    )


def _timed(subject: Subject, frames: list[np.ndarray]) -> tuple[float, int]:
    """Milliseconds of an answer, whose masks have come back from the device, and its switches."""
    begin = time.perf_counter()
    switches = subject.answer(frames)
    return 1000 * (time.perf_counter() - begin), switches


def count_operations(subject: Subject, source: Iterator[list[np.ndarray]]) -> dict[str, float]:
    """Floating-point operations of one answer by stage, in units of 10^9 a frame; two for each multiply-and-add.

    Matrix products, convolutions and attention are counted, not what is done element by element. What is compiled runs
    as if it were not.
    """
    with (
        torch.compiler.set_stance("force_eager"),
        FlopCounterMode(display=False, custom_mapping=also_counted()) as counter,
        StageClock(subject.model, subject.stages, Operations(counter)) as clock,
    ):
        subject.answer(next(source))
    stages = clock.totals()
    stages[REST] = counter.get_total_flops() - sum(stages.values())
    return {stage: count / 1e9 / subject.portion for stage, count in stages.items() if count}


def also_counted() -> dict[Any, Callable[..., int]]:
    """How to count what torch's counter knows nothing of: attention on CPUs, linear layers, convolutions by oneDNN."""

    def attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    def linear(x: Shape, weight: Shape, *_: object, **__: object) -> int:
        return 2 * math.prod(x) * weight[0]

    def convolution(x: Shape, weight: Shape, *_: object, out_shape: Shape, **__: object) -> int:
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    known: dict[Any, Callable[..., int]] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    if torch.backends.mkldnn.is_available():
        known[torch.ops.mkldnn._linear_pointwise] = linear
        known[torch.ops.aten.mkldnn_convolution] = convolution
    return known


def peak_operations(case: Case) -> float:
    """How fast two large square matrices are multiplied in the case's type: the best of the ways that there are.

    Returns:
        Units of 10^9 operations in a second of processor time, or of a GPU's time where the case runs on one.
    """
    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    side = PEAK_SIDE["gpu" if case.on_gpu else "cpu"]
    one, other = torch.randn(2, side, side, device=device).to(dtype)
    probe = time_on(device)
    ways = (torch.mm,) if case.on_gpu or not has_one_dnn(dtype) else (torch.mm, one_dnn_product)
    best = math.inf
    with torch.inference_mode():
        for way in ways:
            spent = 0.0
            for _ in range(PEAK_REPEATS):
                begin = probe.mark()
                way(one, other)
                end = probe.mark()
                probe.settle()
                milliseconds = probe.between(begin, end)
                best, spent = min(best, milliseconds), spent + milliseconds
                if spent > PEAK_MILLISECONDS:  # bfloat16 that no instruction and no library helps takes minutes
                    break
    return 2 * side**3 / best / 1e6
