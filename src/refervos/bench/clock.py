"""Clock that times the stages of one model instance by wrapping its methods, which it restores afterwards.

The time of a stage excludes that of stages nested in it.
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
VISION = "encoders"
LANGUAGE = "language model"
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
    VISION,
    LANGUAGE,
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
"""Stages of all families in the order of their computation; ``REST`` is the time outside of them."""


@dataclass(frozen=True)
class StageMethod:
    """Method of a model that computes a stage.

    Attributes:
        owner: Path of the module within the model, empty for the model itself.
        method: Name of the module's method.
        stage: The stage, or several, indexed by the method's first argument.
    """

    owner: str
    method: str
    stage: str | tuple[str, ...]


PLACEMENT_METHODS = {"place": PLACING, "restore": MASKS}
"""Stages of the methods of placements, which every model returns."""


class Probe(Protocol):
    """Quantity that is read at the start and the end of a stage."""

    def read(self) -> Any:
        """Take a reading, cheaply and if possible without waiting for a device."""
        ...

    def elapsed(self, start: Any, end: Any) -> float:
        """Return the difference of two readings."""
        ...

    def synchronise(self) -> None:
        """Wait until all readings are available."""
        ...


class ProcessorTime:
    """Processor time of this process in milliseconds, over all its threads."""

    def read(self) -> int:
        """Return the processor time in nanoseconds."""
        return time.process_time_ns()

    def elapsed(self, start: int, end: int) -> float:
        """Return the difference in milliseconds."""
        return (end - start) / 1e6

    def synchronise(self) -> None:
        """Do nothing: readings are available at once."""


class DeviceTime:
    """Milliseconds on the current stream of a CUDA GPU, idle gaps included.

    Args:
        device: The GPU, not necessarily the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def read(self) -> torch.cuda.Event:
        """Record an event in the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def elapsed(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Return the difference in milliseconds."""
        return float(start.elapsed_time(end))

    def synchronise(self) -> None:
        """Wait until the GPU has passed every event."""
        torch.cuda.synchronize(self.device)


class ClockTime:
    """Wall-clock milliseconds, for GPUs other than CUDA's: each reading waits until the GPU is done.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def read(self) -> int:
        """Wait for all earlier work and return the time in nanoseconds."""
        synchronise(self.device)
        return time.perf_counter_ns()

    def elapsed(self, start: int, end: int) -> float:
        """Return the difference in milliseconds."""
        return (end - start) / 1e6

    def synchronise(self) -> None:
        """Do nothing: readings have waited already."""


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished all its work."""
    if device.type == "mps":  # a Mac has one GPU, and torch.mps.synchronize takes no device
        torch.mps.synchronize()
    else:
        torch.get_device_module(device).synchronize(device)


def probe_for(device: torch.device) -> Probe:
    """Make the probe of a device's time: processor time on a CPU, otherwise GPU time."""
    if device.type == "cpu":
        return ProcessorTime()
    return DeviceTime(device) if device.type == "cuda" else ClockTime(device)


class Operations:
    """Probe of floating-point operations, two for each multiply-add.

    Args:
        counter: An active counter.
    """

    def __init__(self, counter: FlopCounterMode) -> None:
        self.counter = counter

    def read(self) -> int:
        """Return the operations so far."""
        return int(self.counter.get_total_flops())

    def elapsed(self, start: int, end: int) -> float:
        """Return the operations between two readings."""
        return float(end - start)

    def synchronise(self) -> None:
        """Do nothing: readings are available at once."""


@dataclass
class _Call:
    """Call of a stage's method, with its readings and the call around it."""

    stage: str
    start: Any
    outer: _Call | None
    end: Any = None


class StageClock:
    """Context that times the stages of one model instance.

    It wraps methods of the instance and restores them on exit; the class and other instances are not affected.

    Args:
        model: The model.
        methods: The methods of the stages; those that the model lacks are ignored.
        probe: The quantity to read, by default processor time or, for a model on a GPU, GPU time.
    """

    def __init__(self, model: nn.Module, methods: Sequence[StageMethod], probe: Probe | None = None) -> None:
        self.model = model
        self.probe: Probe = probe or probe_for(next(model.parameters()).device)
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
                self._wrap(owner, entry.method, self._timed(getattr(owner, entry.method), entry.stage))
        if callable(getattr(self.model, "placement", None)):
            self._wrap(self.model, "placement", self._with_timed_result(self.model.placement))  # type: ignore[arg-type]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for owner, name, before in reversed(self._wrapped):
            if before is _MISSING:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, before)
        self._wrapped.clear()

    def reset(self) -> None:
        """Discard all calls so far."""
        self._calls.clear()

    def totals(self) -> dict[str, float]:
        """Return each stage's own total since the last ``reset``, in the probe's unit and the order of ``STAGES``."""
        self.probe.synchronise()
        totals: dict[str, float] = {}
        for call in self._calls:
            spent = self.probe.elapsed(call.start, call.end)
            totals[call.stage] = totals.get(call.stage, 0.0) + spent
            if call.outer is not None:
                totals[call.outer.stage] = totals.get(call.outer.stage, 0.0) - spent
        return {stage: totals[stage] for stage in (*STAGES, *totals) if stage in totals}

    def _wrap(self, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
        # Bypasses the __setattr__ of modules and of frozen dataclasses.
        before = vars(owner).get(name, _MISSING)
        object.__setattr__(owner, name, wrapper)
        self._wrapped.append((owner, name, before))

    def _timed(self, method: Callable[..., Any], stage: str | tuple[str, ...]) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*arguments: Any, **options: Any) -> Any:
            if torch.compiler.is_compiling():  # inside a compiled stage nothing can be timed
                return method(*arguments, **options)
            name = stage if isinstance(stage, str) else stage[arguments[0]]
            call = _Call(name, self.probe.read(), self._open)
            self._open = call
            try:
                return method(*arguments, **options)
            finally:
                call.end = self.probe.read()
                self._open = call.outer
                self._calls.append(call)

        return timed

    def _with_timed_result(self, placement: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(placement)
        def with_timed_result(*arguments: Any, **options: Any) -> Any:
            placed = placement(*arguments, **options)
            for name, stage in PLACEMENT_METHODS.items():
                if name not in vars(placed):  # the model may return the same one again
                    object.__setattr__(placed, name, self._timed(getattr(placed, name), stage))
            return placed

        return with_timed_result


_MISSING = object()
"""Placeholder for an attribute that the instance did not have."""
