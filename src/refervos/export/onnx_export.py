"""Export of a model's streaming step to a folder of graphs."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import refervos
from refervos.checkpoints.weights import CONFIG, model_folder
from refervos.errors import ConfigError, require_installed
from refervos.export.graphs import Graph, streaming_step
from refervos.export.onnx_model import digest
from refervos.samwise.model import Samwise

MODEL_TYPE = "samwise-onnx"
"""``model_type`` in the ``config.json`` of an exported folder."""

OPSET = 18
"""Version of the ONNX operators, supported by ONNX Runtime 1.14 and newer."""

LARGEST_SIZE = 2**16
"""Upper bound of dynamic sizes."""

EMPTY_AT_FIRST = ("window", "pointers")
"""Dynamic sizes that may be zero."""


def export_onnx(
    model: Samwise,
    folder: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda name: None,
) -> None:
    """Export a model to a folder for ``load`` and ONNX Runtime: graphs, ``config.json`` and tokenizer files.

    Args:
        model: SAMWISE with ``time="online"``, in evaluation mode, in float32 on the CPU.
        folder: Created if absent; written completely or not at all.
        overwrite: Allow a folder that has files.
        progress: Called with each graph's name before it is written.

    Raises:
        ConfigError: When the model attends over clips, or has another mode, type or device.
        CheckpointError: When the folder is not empty or cannot be written.
        MissingDependencyError: When the packages of the extra ``onnx`` are missing.
    """
    _check_exportable(model)
    with model_folder(Path(folder), overwrite=overwrite) as staged:
        for graph in streaming_step(model):
            progress(graph.name)
            _write_graph(graph, staged / f"{graph.name}.onnx")
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(staged)
        digests = {path.stem: digest(path) for path in sorted(staged.glob("*.onnx"))}
        (staged / CONFIG).write_text(json.dumps(_header(model) | {"graphs": digests}, indent=2) + "\n")


def _check_exportable(model: Any) -> None:
    require_installed("export", "onnx", "onnx", "onnxscript")
    if not isinstance(model, Samwise):
        raise ConfigError("the model is no SAMWISE model; only the streaming step of SAMWISE can be exported.")
    if model.config.time != "online":
        raise ConfigError(
            "the model attends over clips, and only the online step can be exported; "
            "load it with time='online' (--time online)."
        )
    if model.training:
        raise ConfigError("the model is in training mode; call model.eval() before exporting it.")
    if model.device.type != "cpu" or {p.dtype for p in model.parameters()} != {torch.float32}:
        raise ConfigError("the model is not in float32 on the CPU; load it with device='cpu', without a dtype.")


def _header(model: Samwise) -> dict[str, Any]:
    return {
        "model_type": MODEL_TYPE,
        "refervos_version": refervos.__version__,
        "config": asdict(model.config),
        "source": model.fingerprint(),
        "description": model.describe(),
    }


class _Traced(nn.Module):
    """Module of a function and its weights for the exporter."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.weights = graph.weights
        self.function = graph.function

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*inputs)


def _write_graph(graph: Graph, path: Path) -> None:
    """Trace one graph and write it."""
    from onnxscript import optimizer

    sizes = {
        size: torch.export.Dim(size, min=int(size not in EMPTY_AT_FIRST), max=LARGEST_SIZE)
        for shape in graph.inputs.values()
        for size in shape
        if isinstance(size, str)
    }
    dynamic_axes = tuple(
        {axis: sizes[size] for axis, size in enumerate(shape) if isinstance(size, str)}
        for shape in graph.inputs.values()
    )
    with _quiet(), torch.no_grad():
        traced = torch.export.export(
            _Traced(graph),
            graph.examples(),
            dynamic_shapes=(dynamic_axes,),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        program = torch.onnx.export(
            traced,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            optimize=False,
            verbose=False,
        )
        assert program is not None
        optimizer.optimize(program.model, num_iterations=1)  # a second iteration gains little and takes as long
        _name_sizes(program.model, graph)
        program.save(path)


def _name_sizes(model: Any, graph: Graph) -> None:
    """Name the dynamic sizes, and remove the source locations of operations."""
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    names: dict[str, str] = {}
    for value, shape in zip(model.graph.inputs, graph.inputs.values(), strict=True):
        names |= {str(size): name for size, name in zip(value.shape, shape, strict=True) if isinstance(name, str)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = onnx_ir.Shape([names.get(str(size), size) for size in value.shape])
    ClearMetadataAndDocStringPass()(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's warnings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
