"""``refervos models``: list, fetch and remove the models known by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

from refervos.cli.options import QuietOption

models_app = typer.Typer(name="models", help="List, fetch and remove published models.")


@models_app.callback(invoke_without_command=True)
def models(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List the models known by name, each with its published results and whether it is on disk.

    `--model NAME` and `refervos.load("NAME")` fetch a model on first use.

    Example: `refervos models`
    """
    if context.invoked_subcommand is not None:
        return
    from refervos.models.registry import MODELS
    from refervos.models.store import find_on_disk

    rows = []
    for model in MODELS:
        folder = find_on_disk(model)
        where = None if folder is None else str(folder)
        rows.append({**dataclasses.asdict(model), "size": model.size, "origin": str(model.origin), "on_disk": where})
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    header = ("NAME", "TASK", "SIZE", "LICENCE", "ON DISK", "FROM", "RESULTS (J&F) AND THEIR SOURCE")
    cells = [
        (
            *(
                row["name"],
                row["task"],
                row["size"],
                row["licence"],
                "yes" if row["on_disk"] else "no",
                row["origin"],
            ),
            f"{row['results']} ({row['source']})",
        )
        for row in rows
    ]
    widths = [max(len(str(line[column])) for line in (header, *cells)) for column in range(len(header))]
    for line in (header, *cells):
        typer.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


@models_app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name of the model, as `refervos models` lists it.")],
    file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Checkpoint that you downloaded by hand.", show_default=False),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Folder or Hugging Face id of RoBERTa's tokenizer; default FacebookAI/roberta-base."),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Fetch a model, convert it and keep it; an interrupted download continues.

    Example: `refervos models fetch samwise-mevis`
    """
    from refervos.models.fetching import fetch_model
    from refervos.models.registry import named_model

    named_model(name)
    typer.echo(fetch_model(name, file=file, quiet=quiet, **({} if tokenizer is None else {"tokenizer": tokenizer})))


@models_app.command()
def remove(
    name: Annotated[str, typer.Argument(help="Name of the model.")],
    forget: Annotated[
        bool, typer.Option("--forget", help="Also forget the checksum of its file, so that another one is accepted.")
    ] = False,
) -> None:
    """Remove a fetched model from the cache.

    Example: `refervos models remove samwise-mevis`
    """
    from refervos.models.store import remove_model

    removed = remove_model(name, forget=forget)
    typer.echo(f"removed {name}" if removed else f"{name} was not on disk")
