"""Tells where a model's time goes: a clock that sits on the methods of one model instance and leaves no trace.

A stage's time is its own: what a stage within it takes is not counted twice.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

PLACING = "placing the frame"
PATCHES = "patch embedding"
EARLY_STAGES = "image stages 1-2"
LATE_STAGES = "image stages 3-4"
IMAGE = "image encoder"
ADAPTERS = "adapters"
TEXT = "text"
PYRAMID = "pyramid"
DENSE = "dense attention"
CONDITION = "memory attention"
DECODER = "decoder"
TRACKING = "tracking token"
CME = "CME"
REMEMBER = "memory encoder"
MASKS = "masks to full size"
REST = "rest"

STAGES = (
    PLACING,
    PATCHES,
    EARLY_STAGES,
    LATE_STAGES,
    IMAGE,
    ADAPTERS,
    TEXT,
    PYRAMID,
    DENSE,
    CONDITION,
    DECODER,
    TRACKING,
    CME,
    REMEMBER,
    MASKS,
)
"""Those of all families, in the order in which a frame goes through them; ``REST`` is what no stage claims."""


@dataclass(frozen=True)
class StageMethod:
    """A method and the stage that it belongs to.

    Attributes:
        owner: Path of the module within the model, empty for the model itself.
        method: Its method.
        stage: The stage, or several of which the method's first argument chooses by its number.
    """

    owner: str
    method: str
    stage: str | tuple[str, ...]


PLACEMENT_METHODS = {"place": PLACING, "restore": MASKS}
"""Which method is which stage of the placements that every model hands out."""


class Probe(Protocol):
    """What is read when a stage begins and when it ends."""

    def mark(self) -> Any:
        """A reading; cheap and, where it can be, without waiting for a device."""
        ...

    def between(self, start: Any, end: Any) -> float:
        """What was spent between two readings."""
        ...

    def settle(self) -> None:
        """Wait until all readings are there."""
        ...


class ProcessorTime:
    """Processor time of this process in milliseconds, over all its threads."""

    def mark(self) -> int:
        """Nanoseconds."""
        return time.process_time_ns()

    def between(self, start: int, end: int) -> float:
        """Milliseconds."""
        return (end - start) / 1e6

    def settle(self) -> None:
        """Nothing to wait for."""


class DeviceTime:
    """Milliseconds on the current stream of a CUDA GPU, gaps in which it waits for work included.

    Args:
        device: Which GPU, not necessarily the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> torch.cuda.Event:
        """An event in the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Milliseconds."""
        return float(start.elapsed_time(end))

    def settle(self) -> None:
        """Until the GPU has passed every event."""
        torch.cuda.synchronize(self.device)


class ClockTime:
    """Milliseconds by the clock, on GPUs other than CUDA's: each reading waits until the GPU is done.

    Args:
        device: Which GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def mark(self) -> int:
        """Nanoseconds, when all work before is done."""
        synchronise(self.device)
        return time.perf_counter_ns()

    def between(self, start: int, end: int) -> float:
        """Milliseconds."""
        return (end - start) / 1e6

    def settle(self) -> None:
        """Nothing to wait for."""


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done all its work."""
    if device.type == "mps":  # there is one, and its module takes none
        torch.mps.synchronize()
    else:
        torch.get_device_module(device).synchronize(device)


def time_on(device: torch.device) -> Probe:
    """What time is on a device: the processor's on CPUs, elsewhere the GPU's."""
    if device.type == "cpu":
        return ProcessorTime()
    return DeviceTime(device) if device.type == "cuda" else ClockTime(device)


class Operations:
    """Floating-point operations, two for each multiply-and-add.

    Args:
        counter: An active counter.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter

    def mark(self) -> int:
        """Operations so far."""
        return int(self.counter.get_total_flops())

    def between(self, start: int, end: int) -> float:
        """Operations."""
        return float(end - start)

    def settle(self) -> None:
        """Nothing to wait for."""


@dataclass
class _Call:
    """One call of a stage's method: its readings, and the call that it happened in."""

    stage: str
    start: Any
    outer: _Call | None
    end: Any = None


class StageClock:
    """Times the stages of one model instance while the context is open.

    It puts wrappers on the instance and takes them off at the end; the class and other instances never see them.

    Args:
        model: The model.
        methods: Which method is which stage; a model that lacks one of them is timed without it.
        probe: What is read, by default processor time or, where the model is on a GPU, its time.
    """

    def __init__(self, model: nn.Module, methods: Sequence[StageMethod], probe: Probe | None = None) -> None:
        self.model = model
        self.probe: Probe = probe or time_on(next(model.parameters()).device)
        self.methods = methods
        self._calls: list[_Call] = []
        self._open: _Call | None = None
        self._wrapped: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Self:
        for entry in self.methods:
            try:
                owner = self.model.get_submodule(entry.owner)
            except AttributeError:
                continue
            if callable(getattr(owner, entry.method, None)):
                self._put(owner, entry.method, self._timed(getattr(owner, entry.method), entry.stage))
        if callable(getattr(self.model, "placement", None)):
            self._put(self.model, "placement", self._handing_out_timed(self.model.placement))  # type: ignore[arg-type]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, name, before in reversed(self._wrapped):
            if before is _NOTHING:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, before)
        self._wrapped.clear()

    def restart(self) -> None:
        """Forget what was timed so far."""
        self._calls.clear()

    def totals(self) -> dict[str, float]:
        """What each stage took by itself since the last ``restart``, in the probe's unit and ``STAGES``' order."""
        self.probe.settle()
        totals: dict[str, float] = {}
        for call in self._calls:
            spent = self.probe.between(call.start, call.end)
            totals[call.stage] = totals.get(call.stage, 0.0) + spent
            if call.outer is not None:
                totals[call.outer.stage] = totals.get(call.outer.stage, 0.0) - spent
        return {stage: totals[stage] for stage in (*STAGES, *totals) if stage in totals}

    def _put(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        # Past __setattr__, which modules and frozen dataclasses have their own of.
        before = vars(owner).get(name, _NOTHING)
        object.__setattr__(owner, name, wrapper)
        self._wrapped.append((owner, name, before))

    def _timed(self, method: Callable[..., Any], stage: str | tuple[str, ...]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*arguments: Any, **options: Any) -> Any:
            if torch.compiler.is_compiling():  # within a compiled stage nothing can be timed
                return method(*arguments, **options)
            name = stage if isinstance(stage, str) else stage[arguments[0]]
            call = _Call(name, self.probe.mark(), self._open)
            self._open = call
            try:
                return method(*arguments, **options)
            finally:
                call.end = self.probe.mark()
                self._open = call.outer
                self._calls.append(call)

        return timed

    def _handing_out_timed(self, placement: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(placement)
        def handing_out(*arguments: Any, **options: Any) -> Any:
            placed = placement(*arguments, **options)
            for name, stage in PLACEMENT_METHODS.items():
                if name not in vars(placed):  # the model may hand out the same one again
                    object.__setattr__(placed, name, self._timed(getattr(placed, name), stage))
            return placed

        return handing_out


_NOTHING = object()
"""Stands for an attribute that the instance did not have."""
