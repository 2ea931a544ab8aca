"""Recording of reads of tensor values, which on a GPU wait for all earlier work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READING = {"cpu", "numpy", "tolist", "item", "__float__", "__int__", "__bool__", "__index__", "__array__"}
"""Tensor methods that copy values to the CPU."""

SIZED_BY_VALUES = {"aten::nonzero", "aten::masked_select", "aten::_unique2"}
"""Operations whose output size depends on values."""


class HostReads:
    """Context that counts, on a CPU, the calls that would wait for a GPU.

    All tensors count as being on a GPU except results of ``cpu()`` and tensors computed from them.

    Attributes:
        sizes: Number of elements of each tensor whose values were read.
        moved: Number of elements of each tensor that was moved to a device.
        sized: Operations whose output size depends on values, including indexing by a mask.
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
        self.read: dict[int, Tensor] = {}  # kept alive, so that ids are not reused
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
    """Yield the tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
