"""Compile the stages of a model in which time goes: ``torch.compile`` with static shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from refervos.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    """A method in which time goes.

    Attributes:
        owner: The module that has it.
        method: Its name.
        recurs: Tells from the method's arguments whether calls with these shapes come again and again, default always.
            Others run as they are: compiling each of them would take longer than it could save.
    """

    owner: nn.Module
    method: str
    recurs: Callable[..., bool] | None = None


class Compilable(Protocol):
    """A model that tells its stages."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def stages_to_compile(self) -> Sequence[Stage]:
        """Where its time goes."""
        ...


def compile_stages(model: Compilable) -> None:
    """Compile the stages of this model.

    Nothing is compiled yet: the first clips do that, once for every number of frames and sentences, which takes seconds
    to minutes. Shapes that turn up after torch's limit (8 for each method) run as if not compiled. Weights, their names
    and what is saved stay as they are; a model that is compiled already stays so.

    Args:
        model: In evaluation mode and on its device.

    Raises:
        ConfigError: When the model has no stages to compile.
    """
    stages = model.stages_to_compile()
    if not stages:
        raise ConfigError(f"{type(model).__name__} has no stages to compile; load it without compiling.")
    for stage in stages:
        if stage.method in vars(stage.owner):
            continue
        eager = getattr(stage.owner, stage.method)
        compiled = torch.compile(eager, **settings(model.device))
        guarded = compiled if stage.recurs is None else where_shapes_recur(stage.recurs, eager, compiled)
        setattr(stage.owner, stage.method, guarded)


def settings(device: torch.device) -> dict[str, Any]:
    """What ``torch.compile`` is told on a device.

    CUDA graphs are left out: they hand out the same memory with every call, and memory maps must outlive that.
    """
    if device.type == "cuda":
        return {"dynamic": False, "mode": "max-autotune-no-cudagraphs"}
    return {"dynamic": False}


def where_shapes_recur(
    recurs: Callable[..., bool], eager: Callable[..., Tensor], compiled: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """A method that is compiled for calls whose shapes come again and again.

    Args:
        recurs: Tells such calls, see ``Stage``.
        eager: The method.
        compiled: The same, compiled.

    Returns:
        A function with the same arguments.
    """

    def either(*arguments: Any) -> Tensor:
        answer = compiled(*arguments) if recurs(*arguments) else eager(*arguments)
        return answer.contiguous()  # in one layout always, or what comes next would be compiled for each

    return either
