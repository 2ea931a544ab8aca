"""Cache of tables and folded weights that are derived from a model's weights."""

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
    """Cached value with references to the weights it was computed from and their state."""

    weights: tuple[Any, ...]
    states: tuple[Any, ...]
    value: Any

    def is_valid(self, weights: Sequence[Tensor]) -> bool:
        if len(self.weights) != len(weights):
            return False
        for kept, state, weight in zip(self.weights, self.states, weights, strict=True):  # a loop, for speed
            if kept() is not weight or state != _state(weight):
                return False
        return True


@dataclass
class Derived:
    """Cache of values derived from weights; a value is recomputed when one of its weights has changed.

    A weight has changed when it was written to in place, moved, converted or replaced. Nothing is cached while one of
    the weights needs gradients, nor while a graph is traced.

    Attributes:
        entries: Cached values by name.
    """

    entries: dict[Hashable, _Entry] = field(default_factory=dict)

    def get(self, name: Hashable, weights: Sequence[Tensor], compute: Callable[[], Value]) -> Value:
        """Return a cached value, or compute and cache it.

        Args:
            name: Key of the value.
            weights: The tensors that it is computed from.
            compute: Computes the value.

        Returns:
            The value, which must not be modified.
        """
        if torch.compiler.is_compiling() or (
            torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
        ):
            return compute()
        entry = self.entries.get(name)
        if entry is None or not entry.is_valid(weights):
            # The cached value must be exact, and usable where gradients are computed.
            exact = without_autocast(weights[0]) if weights else nullcontext()
            with torch.inference_mode(False), torch.no_grad(), exact:
                value = compute()
            entry = _Entry(tuple(map(ref, weights)), tuple(map(_state, weights)), value)
            self.entries[name] = entry
        cached: Value = entry.value
        return cached

    def __deepcopy__(self, memo: dict[int, Any]) -> Derived:
        """Start with an empty cache in a copied model."""
        return Derived()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the cache out, because weak references cannot be pickled and values can be recomputed."""
        return {"entries": {}}


def _state(weight: Tensor) -> tuple[Any, ...]:
    """Return a key that changes when a tensor is written to, moved or converted; inference tensors have no version."""
    return (0 if weight.is_inference() else weight._version), weight.device, weight.dtype
