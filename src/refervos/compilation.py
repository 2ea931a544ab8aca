"""Compile the stages of a model in which time goes: ``torch.compile`` with static shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from refervos.sam2.memory import MemoryReading
    from refervos.sam2.segmenter import Sam2Segmenter
    from refervos.sam2.tracker import Sam2Tracker
    from refervos.samwise.model import Samwise

COMPILED = ("encode_stage", "condition", "decode", "remember")
"""Methods of the tracker that are compiled."""


def compile_stages(model: Samwise | Sam2Segmenter) -> None:
    """Compile image stages, memory attention, decoder and memory encoder of this model.

    Nothing is compiled yet: the first clips do that, once for every number of frames and sentences, which takes seconds
    to minutes. Shapes that turn up after torch's limit (8 for each method) run as if not compiled. Weights, their names
    and what is saved stay as they are; a model that is compiled already stays so.

    Args:
        model: In evaluation mode and on its device.
    """
    tracker = model.tracker
    if "encode_stage" in vars(tracker):
        return
    compiled = {name: torch.compile(getattr(tracker, name), **settings(model.device)) for name in COMPILED}
    compiled["condition"] = when_memory_is_full(tracker, compiled["condition"])
    for name, method in compiled.items():
        setattr(tracker, name, method)


def settings(device: torch.device) -> dict[str, Any]:
    """What ``torch.compile`` is told on a device.

    CUDA graphs are left out: they hand out the same memory with every call, and memory maps must outlive that.
    """
    if device.type == "cuda":
        return {"dynamic": False, "mode": "max-autotune-no-cudagraphs"}
    return {"dynamic": False}


def when_memory_is_full(
    tracker: Sam2Tracker, compiled: Callable[[Tensor, MemoryReading], Tensor]
) -> Callable[[Tensor, MemoryReading], Tensor]:
    """Memory attention that is compiled for a full memory only.

    While a memory fills, every frame has a shape of its own, and compiling each would take longer than it could save.

    Args:
        tracker: Says how much a full memory holds.
        compiled: Its ``condition``, compiled.

    Returns:
        A function with the same arguments.
    """
    eager = tracker.condition
    maps, pointers = tracker.config.memory_slots - 1, tracker.config.pointer_limit - 1

    def condition(top: Tensor, memory: MemoryReading) -> Tensor:
        full = len(memory.maps) >= maps and len(memory.pointers) >= pointers
        conditioned = compiled(top, memory) if full else eager(top, memory)
        return conditioned.contiguous()  # in one layout always, or the decoder would be compiled for each

    return condition
