"""Tells what a piece of code reads back from tensors, which on a GPU waits until all work before it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READING = {"cpu", "numpy", "tolist", "item", "__float__", "__int__", "__bool__", "__index__", "__array__"}
"""Methods of tensors that bring values to the processor."""

SIZED_BY_VALUES = {"aten::nonzero", "aten::masked_select", "aten::_unique2"}
"""Operations whose result is as large as values tell."""


class HostReads:
    """While entered, counts what would wait for a GPU; on a CPU the same calls are made, and nothing waits.

    All tensors count as being on a GPU but for those that ``cpu()`` gave, and what was computed of them.

    Attributes:
        sizes: Of each tensor whose values were read, how many it had.
        moved: Of each tensor that was brought to a device, likewise.
        sized: Operations whose result is as large as values tell, indexing by a mask among them.
    """

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.moved: list[int] = []
        self.sized: list[str] = []

    def __enter__(self) -> HostReads:
        self._modes = (_Methods(self), _Operations(self))
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Methods(TorchFunctionMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads
        self.read: dict[int, Tensor] = {}  # kept, so that no other tensor gets their numbers
        self.on_host = False

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(function, "__name__", "")
        host = any(id(tensor) in self.read for tensor in tensors_in(arguments))
        if not host and arguments and isinstance(arguments[0], Tensor):
            if name in READING:
                self.reads.sizes.append(arguments[0].numel())
            elif name == "to" and any(isinstance(part, torch.device) for part in arguments[1:]):
                self.reads.moved.append(arguments[0].numel())
        before, self.on_host = self.on_host, host
        try:
            result = function(*arguments, **(options or {}))
        finally:
            self.on_host = before
        if name == "__iter__":
            result = list(result)
        if host or name == "cpu":
            self.read.update({id(tensor): tensor for tensor in tensors_in(result)})
        return iter(result) if name == "__iter__" else result


class _Operations(TorchDispatchMode):
    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(
        self,
        operation: Any,
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        name = operation.name().partition(".")[0]
        by_mask = name in ("aten::index", "aten::index_put_") and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        )
        methods = self.reads._modes[0]
        if (name in SIZED_BY_VALUES or by_mask) and not methods.on_host:
            self.reads.sized.append(name)
        return operation(*arguments, **(options or {}))


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
