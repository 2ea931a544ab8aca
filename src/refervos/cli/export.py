"""``refervos export``: heavy modules are imported only when the command runs, so that ``refervos --help`` is fast."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from refervos.cli.options import OverwriteOption


class Format(StrEnum):
    """Format of the exported model."""

    onnx = "onnx"


class Time(StrEnum):
    """Grouping of frames in a model."""

    clip = "clip"
    online = "online"


def export(
    model: Annotated[str, typer.Argument(help="Model folder, Hugging Face id, or 'miniature'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the exported model.")],
    to: Annotated[Format, typer.Option("--format", help="Format of the exported model.")] = Format.onnx,
    time: Annotated[
        Time | None, typer.Option(help="Set the model's grouping of frames; only online models can be exported.")
    ] = None,
    overwrite: OverwriteOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Export the streaming step of a model as ONNX graphs.

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
