"""Tables and folded weights: computed once from a model's weights instead of anew for every frame."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor

from refervos.ops.precision import without_autocast

Value = TypeVar("Value")


@dataclass(frozen=True)
class _Entry:
    """A value, and the weights that it was computed from as they were then."""

    weights: tuple[Any, ...]
    states: tuple[Any, ...]
    value: Any

    def holds(self, weights: Sequence[Tensor]) -> bool:
        if len(self.weights) != len(weights):
            return False
        for kept, state, weight in zip(self.weights, self.states, weights, strict=True):  # a loop: it runs every frame
            if kept() is not weight or state != _state(weight):
                return False
        return True


@dataclass
class Derived:
    """Values that follow from weights; each is computed again once one of its weights has changed.

    A weight has changed when it was written to in place, moved, converted or replaced. Nothing is kept while gradients
    with respect to one of the weights are wanted, nor inside a graph that is being traced.

    Attributes:
        entries: The values kept, by name.
    """

    entries: dict[Hashable, _Entry] = field(default_factory=dict)

    def get(self, name: Hashable, weights: Sequence[Tensor], compute: Callable[[], Value]) -> Value:
        """Look a value up, or compute and keep it.

        Args:
            name: What it is; the same name stands for one value at a time.
            weights: The tensors that it is computed from, or one of them to tell device and type.
            compute: Computes it.

        Returns:
            The value, which must not be written to.
        """
        if torch.compiler.is_compiling() or (
            torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
        ):
            return compute()
        entry = self.entries.get(name)
        if entry is None or not entry.holds(weights):
            # What is kept must be exact, and must be of use where gradients are wanted.
            exact = without_autocast(weights[0]) if weights else nullcontext()
            with torch.inference_mode(False), torch.no_grad(), exact:
                value = compute()
            entry = _Entry(tuple(map(ref, weights)), tuple(map(_state, weights)), value)
            self.entries[name] = entry
        found: Value = entry.value
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Derived:
        """A copy of a model computes its own."""
        return Derived()

    def __getstate__(self) -> dict[str, Any]:
        """Weak references cannot be pickled, and what is kept can be computed again."""
        return {"entries": {}}


def _state(weight: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is written to, moved or converted; inference tensors do not count their writes."""
    return (0 if weight.is_inference() else weight._version), weight.device, weight.dtype
