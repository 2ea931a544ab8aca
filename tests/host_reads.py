"""Tells what a piece of code reads back from tensors, which on a GPU waits until all work before it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        self._modes = (_Methods(self.sizes, self.moved), _Operations(self.sized))
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Methods(TorchFunctionMode):
    def __init__(self, sizes: list[int], moved: list[int]) -> None:
        super().__init__()
        self.sizes, self.moved = sizes, moved

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        arguments: Sequence[Any] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(function, "__name__", "")
        if arguments and isinstance(arguments[0], Tensor):
            if name in READING:
                self.sizes.append(arguments[0].numel())
            elif name == "to" and any(isinstance(part, torch.device) for part in arguments[1:]):
                self.moved.append(arguments[0].numel())
        return function(*arguments, **(options or {}))


class _Operations(TorchDispatchMode):
    def __init__(self, sized: list[str]) -> None:
        super().__init__()
        self.sized = sized

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
        if name in SIZED_BY_VALUES or by_mask:
            self.sized.append(name)
        return operation(*arguments, **(options or {}))
