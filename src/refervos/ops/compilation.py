"""Acceleration of a model's most expensive stages: CUDA graphs on a GPU, ``torch.compile`` elsewhere."""

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
    """Method of a module that takes a relevant share of the time.

    Attributes:
        owner: The module.
        method: Name of the method.
        recurs: Returns True for arguments whose shapes recur, default always. Calls with other shapes run eagerly,
            because compiling each of them would take longer than it could save.
        launches_only: Whether the method is dominated by kernel launches, so that recording it pays off and compiling
            does not.
    """

    owner: nn.Module
    method: str
    recurs: Callable[..., bool] | None = None
    launches_only: bool = False


class Compilable(Protocol):
    """Model with stages to compile."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        ...

    def stages_to_compile(self) -> Sequence[Stage]:
        """List the stages."""
        ...


def compile_stages(model: Compilable, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the stages of a model, or on a CUDA device record them as CUDA graphs.

    Compilation happens in the first clips, once for every number of frames and sentences. ``torch.compile`` takes
    seconds to minutes, recording well under a second. Shapes beyond a limit per method (8, or ``cuda_graphs.SHAPES``)
    run eagerly. Weights, their names and saved files do not change, and weights must not be changed afterwards. Calling
    this on a compiled model has no effect.

    Args:
        model: In evaluation mode and on its device.
        backend: Backend of ``torch.compile``; not used on a CUDA device.

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
    """Combine a method and its compiled version, which is used for calls whose shapes recur.

    Args:
        recurs: Returns True for such calls, see ``Stage``.
        eager: The method, which returns images (N, C, H, W).
        compiled: The compiled method.

    Returns:
        A function with the same arguments.
    """

    def either(*arguments: Any) -> Tensor:
        result = compiled(*arguments) if recurs(*arguments) else eager(*arguments)
        # Always in channels-last layout, or the next stage would be compiled for each layout.
        return result.clone(memory_format=torch.channels_last)

    return either
