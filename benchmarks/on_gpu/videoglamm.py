"""VideoGLaMM of the published size with random weights: time of each step and memory, in each precision."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from on_gpu.context import Context, Values, clear_memory, table

FRAME = (720, 1280)
PHRASES = (1, 4)

LEAST_SECONDS = 15.0
"""Least remaining seconds to start a further precision."""


def videoglamm(context: Context) -> Values:
    """Time a description of a video and the tracking of its phrases, in bfloat16, 8 and 4 bits."""
    from refervos.errors import MissingDependencyError

    found: dict[str, dict[str, float]] = {}
    skipped: dict[str, str] = {}

    def keep() -> Values:
        rows = [[name, *(f"{found[label].get(name, float('nan')):.1f}" for label in found)] for name in names_of(found)]
        lines = [table(["", *found], rows)] if found else []
        lines += [f"- {label}: not measured, {reason}" for label, reason in skipped.items()]
        short = "; ".join(f"{label}: {values['a token']:.1f} ms a token" for label, values in found.items())
        return context.keep({"precisions": found, "skipped": skipped, "short": short, "markdown": "\n\n".join(lines)})

    values = keep()
    for label, bits in (("bfloat16", None), ("8 bits", 8), ("4 bits", 4)):
        if found and context.left() < LEAST_SECONDS:
            skipped[label] = "no time left"
        else:
            try:
                found[label] = measure(context, bits)
            except MissingDependencyError as error:  # bitsandbytes need not be there
                skipped[label] = str(error)
        values = keep()
    return values


def names_of(found: dict[str, dict[str, float]]) -> list[str]:
    """List the measured quantities in order."""
    return list(dict.fromkeys(name for values in found.values() for name in values))


def measure(context: Context, bits: Any) -> dict[str, float]:
    """Measure one precision.

    Args:
        context: Options of the part.
        bits: 8 or 4 for the language model's weights; None for bfloat16.

    Returns:
        Milliseconds of each step, and with a GPU the peak memory in GB.
    """
    from refervos.videoglamm.config import VIDEOGLAMM_PRESETS
    from refervos.videoglamm.language import IMAGE
    from refervos.videoglamm.model import VideoGlamm

    clear_memory(context)
    config = replace(VIDEOGLAMM_PRESETS["miniature" if context.quick else "published"], lora=None)
    if context.quick:  # 4 bits need blocks of 64 weights
        config = replace(config, phi=replace(config.phi, width=128))
    torch.manual_seed(0)
    with torch.device(context.device):  # drawing all weights takes long on a CPU
        model = VideoGlamm(config)
    model.to(torch.bfloat16)
    if bits is not None:
        model.cpu()
        model.quantise(bits)
    model.to(context.device).eval()
    clear_memory(context)

    tokens, frames = (4, 3) if context.quick else (32, 24)
    video = [torch.randint(0, 256, (*FRAME, 3), dtype=torch.uint8) for _ in range(config.frames)]
    prompt = [3] * 30 + [IMAGE] * config.frames + [3] * 30
    words = torch.full((config.phi.vocabulary,), -torch.inf, device=context.device)
    words[3] = 0  # never the end

    def clock(work: Callable[[], Any], repeats: int = 2) -> tuple[Any, float]:
        """Run twice, the first time to warm up; return the last result and its milliseconds."""
        for _ in range(repeats):
            synchronise(context)
            start = time.perf_counter()
            result = work()
            synchronise(context)
            milliseconds = 1000 * (time.perf_counter() - start)
        return result, milliseconds

    def answer(limit: int) -> Any:
        conversation = model.start(prompt, visual)
        return list(model.generate(conversation, limit=limit, rule=lambda *_: words))

    measured: dict[str, float] = {}
    with torch.inference_mode():
        visual, measured["encoding a video"] = clock(lambda: model.encode_video(video))
        _, measured["the prompt and the first token"] = clock(lambda: answer(1))
        _, whole = clock(lambda: answer(1 + tokens))
        measured["a token"] = (whole - measured["the prompt and the first token"]) / tokens
        placement = model.placement(FRAME)
        images = [placement.place(video[0].permute(2, 0, 1), torch.device(context.device))] * (frames + 8)
        for count in PHRASES:
            prompts = torch.randn(count, config.sam2.hidden, device=context.device, dtype=torch.bfloat16)
            predictions = model.segment(images, prompts)
            for _ in range(8):  # fill the memory
                next(predictions)
            _, milliseconds = clock(lambda predictions=predictions: [p.mask_logits for p in predictions], repeats=1)
            measured[f"a frame with {count} phrase{'s' * (count > 1)}"] = milliseconds / frames
    if context.on_gpu:
        measured["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
    return measured


def synchronise(context: Context) -> None:
    """Wait for the device."""
    if context.on_gpu:
        torch.cuda.synchronize()
