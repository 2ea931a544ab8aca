"""Measurement of one case in this process."""

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
from refervos.bench.clock import REST, Operations, StageClock, probe_for
from refervos.bench.measured_models import MeasuredModel, draw_inputs, open_model, repeat_clips
from refervos.bench.memory import peak_device_megabytes, peak_resident_megabytes, resident_megabytes
from refervos.errors import RefervosError
from refervos.ops.linear import has_one_dnn, one_dnn_product

Shape = tuple[int, ...]

PEAK_SIDE = {"cpu": 2048, "gpu": 8192}
"""Side of the matrices whose product measures the machine's peak; small ones do not fill a GPU."""

PEAK_REPEATS = 10
PEAK_MILLISECONDS = 10_000
"""Number of repeated products of each kind, unless they take longer than this."""


def measure(case: Case) -> Measurement | Failure:
    """Measure a case; an error of torch, such as lack of memory, is returned as a failure of this case.

    Raises:
        RefervosError: When the input is wrong, which the other cases share.
    """
    try:
        return _measure(case)
    except RefervosError:
        raise
    except (RuntimeError, MemoryError) as error:
        return Failure(case, " ".join(f"{type(error).__name__}: {error}".split())[:200])


def _measure(case: Case) -> Measurement:
    torch.set_num_threads(case.threads)
    frames, prompts = draw_inputs(case)
    model = open_model(case, prompts)
    loaded = resident_megabytes()
    source = repeat_clips(frames, model.clip_length)
    clock = StageClock(model.model, model.stages) if case.stages else None
    with clock or nullcontext():
        start = time.perf_counter()
        first, _ = _timed(model, next(source))
        for _ in range(math.ceil(case.warm_up / model.clip_length) - 1):
            model.segment(next(source))
        warm_up = time.perf_counter() - start
        if clock is not None:
            clock.reset()
        processor = time.process_time()
        timed = [_timed(model, next(source)) for _ in range(math.ceil(case.frames / model.clip_length))]
        processor = time.process_time() - processor
    peak, device_peak = peak_resident_megabytes(), peak_device_megabytes(case.device)
    calls = tuple(milliseconds for milliseconds, _ in timed)
    stages = clock.totals() if clock is not None else {}
    if stages:
        # On a GPU the stages have GPU time, and the rest is the remaining wall-clock time.
        total = sum(calls) if case.on_gpu else 1000 * processor
        stages[REST] = max(0.0, total - sum(stages.values()))
    return Measurement(
        case=case,
        weights=model.weights,
        image_size=model.image_size,
        answered_at_once=model.clip_length,
        answers=calls,
        processor=1000 * processor,
        first_answer=first,
        warm_up_seconds=warm_up,
        stages=stages,
        switches=sum(switches for _, switches in timed),
        loaded_megabytes=loaded,
        peak_megabytes=peak,
        peak_device_megabytes=device_peak,
        operations=count_operations(model, source) if case.flops else {},
        peak_operations=peak_operations(case) if case.flops else None,
    )


def _timed(model: MeasuredModel, frames: list[np.ndarray]) -> tuple[float, int]:
    """Time a call until its masks are on the CPU; return its milliseconds and its switches."""
    start = time.perf_counter()
    switches = model.segment(frames)
    return 1000 * (time.perf_counter() - start), switches


def count_operations(model: MeasuredModel, source: Iterator[list[np.ndarray]]) -> dict[str, float]:
    """Count the floating-point operations of one call by stage, in units of 10^9 a frame; two for each multiply-add.

    Matrix products, convolutions and attention are counted, element-wise operations are not. Compiled stages run
    eagerly.
    """
    with (
        torch.compiler.set_stance("force_eager"),
        FlopCounterMode(display=False, custom_mapping=flop_formulas()) as counter,
        StageClock(model.model, model.stages, Operations(counter)) as clock,
    ):
        model.segment(next(source))
    stages = clock.totals()
    stages[REST] = counter.get_total_flops() - sum(stages.values())
    return {stage: count / 1e9 / model.clip_length for stage, count in stages.items() if count}


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """Return formulas that torch's counter lacks: attention on CPUs, and oneDNN's linear layers and convolutions."""

    def attention(query: Shape, key: Shape, value: Shape, *_: object, **__: object) -> int:
        return int(sdpa_flop_count(query, key, value))

    def linear(x: Shape, weight: Shape, *_: object, **__: object) -> int:
        return 2 * math.prod(x) * weight[0]

    def convolution(x: Shape, weight: Shape, *_: object, out_shape: Shape, **__: object) -> int:
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    formulas: dict[Any, Callable[..., int]] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    if torch.backends.mkldnn.is_available():
        formulas[torch.ops.mkldnn._linear_pointwise] = linear
        formulas[torch.ops.aten.mkldnn_convolution] = convolution
    return formulas


def peak_operations(case: Case) -> float:
    """Measure the peak speed of a product of large square matrices in the case's type, with the fastest kernel.

    Returns:
        Operations in a second of processor time, or of GPU time on a GPU, in units of 10^9.
    """
    device, dtype = torch.device(case.device), getattr(torch, case.dtype)
    side = PEAK_SIDE["gpu" if case.on_gpu else "cpu"]
    one, other = torch.randn(2, side, side, device=device).to(dtype)
    probe = probe_for(device)
    products = (torch.mm,) if case.on_gpu or not has_one_dnn(dtype) else (torch.mm, one_dnn_product)
    best = math.inf
    with torch.inference_mode():
        for product in products:
            spent = 0.0
            for _ in range(PEAK_REPEATS):
                start = probe.read()
                product(one, other)
                end = probe.read()
                probe.synchronise()
                milliseconds = probe.elapsed(start, end)
                best, spent = min(best, milliseconds), spent + milliseconds
                if spent > PEAK_MILLISECONDS:  # bfloat16 without hardware or library support takes minutes
                    break
    return 2 * side**3 / best / 1e6
