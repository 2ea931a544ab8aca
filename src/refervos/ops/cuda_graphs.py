"""CUDA graphs: the kernels of a function are recorded once for each shape of its arguments, and replayed.

Replaying costs one launch instead of hundreds. Recorded are the function's own kernels; results can differ in rounding
where a library chooses another one for arguments that lie closer together in memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SHAPES = 32
"""For so many different arguments a function is recorded at most; what comes after that runs as it is."""


@dataclass
class Recorded:
    """A tensor function that is recorded when the same shapes come a second time, and replayed from then on.

    It must read nothing from the device and write to none of its arguments; what it reads besides them, such as
    weights, must stay where it is. What it returns is copied out of the graph's memory, which the next replay uses.

    Attributes:
        function: The function; its arguments and results are tensors, plain values, and sequences, mappings and
            dataclasses of these.
        pool: Memory that all graphs of a model share, since they run one after another.
        recordings: By outline of the arguments; None for one that was met once.
    """

    function: Callable[..., Any]
    pool: Any
    recordings: dict[Hashable, _Recording | None] = field(default_factory=dict)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function, or replay what it did for arguments of these shapes."""
        given = (arguments, named)
        tensors: list[Tensor] = []
        outline = outline_of(given, tensors)
        if torch.is_grad_enabled() or not on_cuda(tensors):
            return self.function(*arguments, **named)
        if outline not in self.recordings:
            if len(self.recordings) < SHAPES:
                self.recordings[outline] = None
            return self.function(*arguments, **named)
        recording = self.recordings[outline]
        if recording is None:
            recording = self.recordings[outline] = self._record(given, tensors)
        return recording.replay(tensors)

    def _record(self, given: Any, tensors: Sequence[Tensor]) -> _Recording:
        with torch.inference_mode(False), torch.no_grad():  # so that they can be written to in any mode
            inputs = [torch.empty_like(tensor) for tensor in tensors]
        for place, tensor in zip(inputs, tensors, strict=True):
            place.copy_(tensor)
        arguments, named = rebuilt(given, iter(inputs))
        beside, current = torch.cuda.Stream(), torch.cuda.current_stream()
        beside.wait_stream(current)
        with torch.cuda.stream(beside):  # libraries allocate and choose kernels in their first calls
            for _ in range(2):
                self.function(*arguments, **named)
        current.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            results = self.function(*arguments, **named)
        outputs: list[Tensor] = []
        outline_of(results, outputs)
        return _Recording(graph, inputs, results, outputs)


@dataclass(frozen=True)
class _Recording:
    """A graph with the memory that it reads from and writes to."""

    graph: Any
    inputs: list[Tensor]
    results: Any
    outputs: list[Tensor]

    def replay(self, tensors: Sequence[Tensor]) -> Any:
        torch._foreach_copy_(self.inputs, list(tensors))
        self.graph.replay()
        copies = [torch.empty_like(output) for output in self.outputs]
        torch._foreach_copy_(copies, self.outputs)
        return rebuilt(self.results, iter(copies))


def on_cuda(tensors: Sequence[Tensor]) -> bool:
    """Whether there are tensors and all of them are on a CUDA device."""
    return bool(tensors) and all(tensor.is_cuda for tensor in tensors)


def outline_of(value: Any, tensors: list[Tensor]) -> Hashable:
    """Describe a value without what its tensors hold.

    Args:
        value: Tensors, hashable values, and sequences, mappings and dataclasses of these.
        tensors: Its tensors are appended to this list.

    Returns:
        Equal for values that differ in the numbers in their tensors alone.
    """
    if isinstance(value, Tensor):
        tensors.append(value)
        return Tensor, value.shape, value.dtype
    if isinstance(value, list | tuple):
        return type(value), *(outline_of(item, tensors) for item in value)
    if isinstance(value, Mapping):
        return Mapping, *((name, outline_of(item, tensors)) for name, item in value.items())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value), *(outline_of(getattr(value, entry.name), tensors) for entry in dataclasses.fields(value))
    known: Hashable = value
    return known


def rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Make a value of the same outline with other tensors, taken one after another."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, list | tuple):
        return type(value)(rebuilt(item, tensors) for item in value)
    if isinstance(value, Mapping):
        return {name: rebuilt(item, tensors) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {entry.name: rebuilt(getattr(value, entry.name), tensors) for entry in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value
