"""``refervos train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file: the stages to train, in order.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for the results; default runs/ and the recipe's name.")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Train only this stage.  Repeat for several; default all.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="At most so many steps of each stage, to try a recipe out.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="About so many minutes for each stage; a longer one gets fewer steps."),
    ] = None,
    restart: Annotated[bool, typer.Option(help="Delete what the stages named with --stage have come to.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Train a model by a recipe; the same command again goes on where it stopped.

    Example: `refervos train recipes/miniature.yaml`, or on several GPUs
    `accelerate launch -m refervos train recipes/miniature.yaml`
    """
    from refervos.training.distributed import destroy_process_group
    from refervos.training.recipe import read_recipe
    from refervos.training.trainer import train as run

    read = read_recipe(recipe)
    # A trial has a folder of its own, so that it is never taken for the real run.
    folder = out or Path("runs") / (read.name if steps is None else f"{read.name}-{steps}-steps")
    try:
        show = False if quiet else None
        run(read, folder, stages=stage, restart=restart, steps=steps, minutes=minutes, show_progress=show)
    except KeyboardInterrupt as stopped:
        typer.echo(f"refervos: {stopped}" if str(stopped) else "refervos: stopped", err=True)
        destroy_process_group()
        raise typer.Exit(130) from stopped
    destroy_process_group()
