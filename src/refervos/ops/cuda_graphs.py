"""CUDA graphs: record the kernels of a function once for each shape of its arguments, and replay them.

Replaying costs one launch instead of hundreds. The recorded kernels are the function's own; results can differ in
rounding where a library chooses another kernel for another memory alignment of the arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

SHAPES = 32
"""Largest number of recordings per function; calls with further shapes run eagerly."""


@dataclass
class Recorded:
    """Tensor function that is recorded at the second call with the same shapes, and replayed from then on.

    It must not copy data from the device or write to its arguments; other tensors that it reads, such as weights, must
    keep their memory. Results are copied out of the graph's memory, which the next replay overwrites.

    Attributes:
        function: The function; its arguments and results are tensors, plain values, and sequences, mappings and
            dataclasses of these.
        pool: Memory pool shared by all graphs of a model, which run one after another.
        recordings: Recordings by outline of the arguments; None after the first call.
    """

    function: Callable[..., Any]
    pool: Any
    recordings: dict[Hashable, _Recording | None] = field(default_factory=dict)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the function, or replay its recording for arguments of these shapes."""
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
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):  # warm-up: libraries allocate and choose kernels in their first calls
            for _ in range(2):
                self.function(*arguments, **named)
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            results = self.function(*arguments, **named)
        outputs: list[Tensor] = []
        outline_of(results, outputs)
        return _Recording(graph, inputs, results, outputs)


@dataclass(frozen=True)
class _Recording:
    """CUDA graph with its input and output memory."""

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
    """Return True if there are tensors and all of them are on a CUDA device."""
    return bool(tensors) and all(tensor.is_cuda for tensor in tensors)


def outline_of(value: Any, tensors: list[Tensor]) -> Hashable:
    """Describe the structure of a value, without the contents of its tensors.

    Args:
        value: Tensors, hashable values, and sequences, mappings and dataclasses of these.
        tensors: The value's tensors are appended to this list.

    Returns:
        A key that is equal for values that differ only in the contents of their tensors.
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
    """Rebuild a value with other tensors, taken in order."""
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
