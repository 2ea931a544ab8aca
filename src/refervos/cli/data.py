"""``refervos data``: nothing heavy is imported before a command runs, so that ``refervos --help`` is quick."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refervos.safe_text import printable

if TYPE_CHECKING:
    from refervos.data.check import DatasetCheck, SplitCheck

data_app = typer.Typer(name="data", help="Data sets on disk.", no_args_is_help=True)

AllowOutsideOption = Annotated[
    bool, typer.Option("--allow-outside", help="Read files outside PATH that the annotations name, as by '..'.")
]

MOST_SHOWN = 20
"""How many problems fit on a screen."""


@data_app.callback()
def data() -> None:
    """Data sets on disk: the field's benchmarks in their published layouts, and your own."""


@data_app.command()
def check(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="Such as mevis; an unknown name lists all.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Its folder, as published.")],
    split: Annotated[str | None, typer.Option(help="Only this split; default all that are there.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Look for files, but decode no frame and no mask.")] = False,
    allow_outside: AllowOutsideOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every problem.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Tell what of a data set is there, what is missing or damaged, and how much it holds.

    Exit code 0 when nothing is wrong, 1 when something is, 2 when nothing could be read.

    Example: `refervos data check mevis data/mevis --split valid_u`
    """
    from refervos.data.check import check_dataset

    found = check_dataset(
        name, path, split, decode=not fast, allow_outside=allow_outside, show_progress=False if quiet else None
    )
    if as_json:
        typer.echo(json.dumps({**dataclasses.asdict(found), "problems": found.problems}, indent=2))
    else:
        typer.echo(printable("\n".join(report(found))))
    if found.problems:
        raise typer.Exit(1 if found.expressions else 2)


def report(found: DatasetCheck) -> Iterator[str]:
    """Tell on one screen what was found.

    Args:
        found: What was found.

    Yields:
        Lines.
    """
    yield f"{found.name} in {found.folder}"
    width = max(map(len, (*(split.split for split in found.splits), *found.absent)))
    for split in found.splits:
        yield f"  {split.split:<{width}}  {_counts(split) if split.expressions else 'could not be read'}"
    for absent in found.absent:
        yield f"  {absent:<{width}}  is not there"
    invisible = [f"{split.split}/{'/'.join(key)}" for split in found.splits for key in split.invisible]
    yield from _some(invisible, "expression has", "expressions have", "a target that no mask shows")
    yield from _some(found.unlisted, "image or folder is", "images and folders are", "listed nowhere")
    yield from (f"note: {note}" for note in dict.fromkeys(note for split in found.splits for note in split.notes))
    looked = "every frame and mask was decoded" if found.decoded else "no frame and no mask was decoded"
    if not found.problems:
        yield f"nothing is wrong; {looked}"
        return
    yield f"{len(found.problems)} {'problem' if len(found.problems) == 1 else 'problems'}; {looked}:"
    yield from (f"- {problem}" for problem in found.problems[:MOST_SHOWN])
    if len(found.problems) > MOST_SHOWN:
        yield f"and {len(found.problems) - MOST_SHOWN:,} more; --json prints all"


def _counts(split: SplitCheck) -> str:
    parts = {"videos": split.videos, "frames": split.frames, "expressions": split.expressions, "objects": split.objects}
    targets = {"with a target": split.with_target, "without": split.without_target, "secret": split.secret}
    told = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)
    return f"{told} ({', '.join(f'{count:,} {name}' for name, count in targets.items() if count)})"


def _some(names: Sequence[str], one: str, several: str, what: str) -> Iterator[str]:
    """A line about things, with the name of the first; none where there are none."""
    if len(names) == 1:
        yield f"1 {one} {what}: {names[0]}"
    elif names:
        yield f"{len(names):,} {several} {what}, such as {names[0]}"
