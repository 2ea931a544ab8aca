"""``refervos train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file with the stages to train, in order.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the results; default runs/ followed by the recipe's name."),
    ] = None,
    stage: Annotated[list[str] | None, typer.Option(help="Stage to train; repeat for several; default all.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of steps per stage, to try out a recipe.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, help="Approximate minutes per stage; longer stages get fewer steps."),
    ] = None,
    restart: Annotated[bool, typer.Option(help="Delete earlier results of the stages named with --stage.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar and no table.")] = False,
) -> None:
    """Train a model with a recipe; the same command continues an interrupted run.

    Example: `refervos train recipes/miniature.yaml`, or on several GPUs
    `accelerate launch -m refervos train recipes/miniature.yaml`
    """
    from refervos.training.distributed import destroy_process_group
    from refervos.training.recipe import read_recipe
    from refervos.training.trainer import train as run

    read = read_recipe(recipe)
    # A trial run has its own folder, so that it is never mistaken for the full run.
    folder = out or Path("runs") / (read.name if steps is None else f"{read.name}-{steps}-steps")
    try:
        show = False if quiet else None
        run(read, folder, stages=stage, restart=restart, steps=steps, minutes=minutes, show_progress=show)
    except KeyboardInterrupt as stopped:
        typer.echo(f"refervos: {stopped}" if str(stopped) else "refervos: interrupted", err=True)
        destroy_process_group()
        raise typer.Exit(130) from stopped
    destroy_process_group()
