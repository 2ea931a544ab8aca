"""``refervos data``: heavy modules are imported only when a command runs, so that ``refervos --help`` is fast."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refervos.cli.options import AllowOutsideOption, QuietOption
from refervos.safe_text import printable

if TYPE_CHECKING:
    from refervos.data.check import DatasetCheck, SplitCheck

data_app = typer.Typer(name="data", help="Check data sets on disk.", no_args_is_help=True)

MOST_SHOWN = 20
"""Maximum number of problems printed without --json."""


@data_app.callback()
def data() -> None:
    """Check data sets on disk: published benchmarks in their original layouts, and your own data."""


@data_app.command()
def check(
    name: Annotated[
        str, typer.Argument(metavar="DATASET", help="Name of the data set, such as mevis; an unknown name lists all.")
    ],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder of the data set, in its published layout.")],
    split: Annotated[str | None, typer.Option(help="Split to check; default all splits that are found.")] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Check that files exist, without decoding frames and masks.")
    ] = False,
    allow_outside: AllowOutsideOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with every problem.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Check a data set: list its contents and its missing or damaged files.

    The exit code is 0 without problems, 1 with problems, and 2 if nothing could be read.

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
    """Format the outcome of a check for the terminal.

    Args:
        found: Outcome of the check.

    Yields:
        Lines of text.
    """
    yield f"{found.name} in {found.folder}"
    width = max(map(len, (*(split.split for split in found.splits), *found.absent)))
    for split in found.splits:
        yield f"  {split.split:<{width}}  {_counts(split) if split.expressions else 'could not be read'}"
    for absent in found.absent:
        yield f"  {absent:<{width}}  not found"
    invisible = [f"{split.split}/{'/'.join(key)}" for split in found.splits for key in split.invisible]
    yield from _some(invisible, "expression has", "expressions have", "a target that no mask shows")
    yield from _some(found.unlisted, "image or folder is", "images and folders are", "not listed in the annotations")
    yield from (f"note: {note}" for note in dict.fromkeys(note for split in found.splits for note in split.notes))
    extent = "every frame and mask was decoded" if found.decoded else "frames and masks were not decoded"
    if not found.problems:
        yield f"no problems; {extent}"
        return
    yield f"{len(found.problems)} {'problem' if len(found.problems) == 1 else 'problems'}; {extent}:"
    yield from (f"- {problem}" for problem in found.problems[:MOST_SHOWN])
    if len(found.problems) > MOST_SHOWN:
        yield f"and {len(found.problems) - MOST_SHOWN:,} more; --json prints all"


def _counts(split: SplitCheck) -> str:
    parts = {"videos": split.videos, "frames": split.frames, "expressions": split.expressions, "objects": split.objects}
    targets = {"with a target": split.with_target, "without": split.without_target, "not public": split.secret}
    contents = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)
    return f"{contents} ({', '.join(f'{count:,} {name}' for name, count in targets.items() if count)})"


def _some(names: Sequence[str], one: str, several: str, problem: str) -> Iterator[str]:
    """Yield a line with the number of items and the name of the first, or none without items."""
    if len(names) == 1:
        yield f"1 {one} {problem}: {names[0]}"
    elif names:
        yield f"{len(names):,} {several} {problem}, such as {names[0]}"
