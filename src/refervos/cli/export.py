"""``refervos export``: nothing heavy is imported before the command runs, so that ``refervos --help`` is quick."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Format(StrEnum):
    """What can be written."""

    onnx = "onnx"


class Time(StrEnum):
    """How a model can look over time."""

    clip = "clip"
    online = "online"


def export(
    model: Annotated[str, typer.Argument(help="Model folder, hub id, or 'miniature'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    to: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.onnx,
    time: Annotated[
        Time | None, typer.Option(help="How the model looks over time, default as it is; exported is online.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Write a model's streaming step as graphs that run without PyTorch's modules.

    Example: `refervos export miniature --time online --out miniature-onnx`
    """
    from refervos.export.onnx_export import export_onnx
    from refervos.loading import load

    overrides: dict[str, Any] = {} if time is None else {"time": time.value}
    loaded: Any = load(model, device="cpu", **overrides)
    export_onnx(
        loaded,
        out,
        overwrite=overwrite,
        progress=(lambda name: None) if quiet else (lambda name: typer.echo(f"{name} ...", err=True)),
    )
    if not quiet:
        typer.echo(f"wrote {out}")
