"""Make the stages of a model faster in which time goes: CUDA graphs on a GPU, ``torch.compile`` elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from refervos.errors import ConfigError
from refervos.ops.cuda_graphs import Recorded


@dataclass(frozen=True)
class Stage:
    """A method in which time goes.

    Attributes:
        owner: The module that has it.
        method: Its name.
        recurs: Tells from the method's arguments whether calls with these shapes come again and again, default always.
            Others run as they are: compiling each of them would take longer than it could save.
        launches_only: Whether it takes many launches and little arithmetic, so that recording it pays and compiling
            does not.
    """

    owner: nn.Module
    method: str
    recurs: Callable[..., bool] | None = None
    launches_only: bool = False


class Compilable(Protocol):
    """A model that tells its stages."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def stages_to_compile(self) -> Sequence[Stage]:
        """Where its time goes."""
        ...


def compile_stages(model: Compilable, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the stages of this model, or on a CUDA device have them recorded as CUDA graphs.

    Nothing is compiled yet: the first clips do that, once for every number of frames and sentences. ``torch.compile``
    takes seconds to minutes, recording well under a second. Shapes
    that turn up after a limit (8 or ``cuda_graphs.SHAPES`` for each method) run as they are. Weights, their names and
    what is saved stay as they are, and must not be changed any more; a model that is compiled already stays so.

    Args:
        model: In evaluation mode and on its device.
        backend: What ``torch.compile`` makes of the traced stages; not used on a CUDA device.

    Raises:
        ConfigError: When the model has no stages to compile.
    """
    stages = model.stages_to_compile()
    if not stages:
        raise ConfigError(f"{type(model).__name__} has no stages to compile; load it without compiling.")
    pool = torch.cuda.graph_pool_handle() if model.device.type == "cuda" else None
    for stage in stages:
        if stage.method in vars(stage.owner):
            continue
        eager = getattr(stage.owner, stage.method)
        if pool is not None:
            setattr(stage.owner, stage.method, Recorded(eager, pool))
            continue
        if stage.launches_only:
            continue
        compiled = torch.compile(eager, dynamic=False, backend=backend)
        guarded = compiled if stage.recurs is None else where_shapes_recur(stage.recurs, eager, compiled)
        setattr(stage.owner, stage.method, guarded)


def where_shapes_recur(
    recurs: Callable[..., bool], eager: Callable[..., Tensor], compiled: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """A method that is compiled for calls whose shapes come again and again.

    Args:
        recurs: Tells such calls, see ``Stage``.
        eager: The method, which returns images (N, C, H, W).
        compiled: The same, compiled.

    Returns:
        A function with the same arguments.
    """

    def either(*arguments: Any) -> Tensor:
        answer = compiled(*arguments) if recurs(*arguments) else eager(*arguments)
        # In the layout of image features always, or what comes next would be compiled for each.
        return answer.clone(memory_format=torch.channels_last)

    return either
