"""``refervos convert`` and ``refervos info``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="Official checkpoint: SAMWISE (.pth), or VideoGLaMM (folder or file).")
    ],
    folder: Annotated[Path, typer.Argument(help="Folder for the converted model.")],
    tokenizer: Annotated[
        str,
        typer.Option(
            help="Folder or Hugging Face id of the tokenizer, or 'none'; 'auto' is RoBERTa's for SAMWISE and the "
            "checkpoint's own for VideoGLaMM."
        ),
    ] = "auto",
    clip: Annotated[
        str | None, typer.Option(help="VideoGLaMM: folder or Hugging Face id of the image encoder; default OpenAI's.")
    ] = None,
    internvideo: Annotated[
        Path | None, typer.Option(help="VideoGLaMM: InternVideo2 checkpoint (.pt), if not in the checkpoint.")
    ] = None,
    sam2: Annotated[
        str | None, typer.Option(help="VideoGLaMM: SAM2 folder, .pt or Hugging Face id, if not in the checkpoint.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace existing files.")] = False,
) -> None:
    """Convert an official SAMWISE or VideoGLaMM checkpoint to a model folder, which loads without running code from it.

    Example: `refervos convert final_model_mevis.pth samwise-mevis`
    """
    from refervos.conversion import convert as run

    model = run(
        checkpoint,
        folder,
        tokenizer=None if tokenizer == "none" else tokenizer,
        clip=clip,
        internvideo=internvideo,
        sam2=sam2,
        overwrite=overwrite,
    )
    print_description(model.describe())
    typer.echo(f"wrote {folder}")


def info(
    model: Annotated[
        str, typer.Argument(help="Model folder, SAM2 checkpoint, official .pth, or Hugging Face id.")
    ] = "miniature",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a model: its parts, parameters, trained parameters and settings.

    Example: `refervos info samwise-mevis`
    """
    from refervos.loading import load_to_describe

    described = load_to_describe(model)
    description = described.describe()
    commit = getattr(described, "hub_commit", None)
    if commit is not None:
        description = {**description, "hub": str(commit)}
    if as_json:
        typer.echo(json.dumps(description, indent=2))
    else:
        print_description(description)


def print_description(description: dict[str, Any]) -> None:
    """Print a model's parts as a table and its settings as a list."""
    typer.echo(description["family"] + (f", {description['hub']}" if "hub" in description else ""))
    width = max(len(name) for name in description["parts"])
    for name, count in description["parts"].items():
        typer.echo(f"  {name:<{width}} {count:>13,}")
    typer.echo(f"  {'total':<{width}} {description['total']:>13,}")
    typer.echo(f"  {'trained':<{width}} {description['trained']:>13,}")
    for name, value in description.get("settings", {}).items():
        typer.echo(f"  {name}: {value}")
