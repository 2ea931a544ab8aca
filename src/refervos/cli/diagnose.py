"""``refervos diagnose``: nothing heavy is imported before the command runs, so that ``refervos --help`` is quick."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refervos.errors import ConfigError
from refervos.safe_text import printable

if TYPE_CHECKING:
    from refervos.diagnosis.diagnose import ScoredCase
    from refervos.evaluation.inference import Mode

DEFAULT_MODEL = "miniature"

OWN_OPTIONS = ("model", "device", "dtype")
"""Names of ``refervos.load``'s arguments that are no fields of a configuration."""


def diagnose(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Model folder, hub id, 'miniature' or 'refsam-miniature'; with --compare, files written by --out.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(help="Only this split, such as 'look-alikes'; repeat for several.", show_default=False),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Only the first so many clips of each split.")] = None,
    online: Annotated[bool, typer.Option("--online", help="Answer each frame before the next is known.")] = False,
    clip: Annotated[int | None, typer.Option(min=1, help="Frames looked at together; default the model's.")] = None,
    controls: Annotated[
        bool, typer.Option("--controls", help="Also ask the wrong sentence, and follow single objects without reading.")
    ] = False,
    drawings: Annotated[
        Path | None,
        typer.Option(
            help="Folder made by python -m refervos.worlds.drawings: asks the splits of everyday nouns as well.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the results of every clip.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Folder for pictures of the worst and best clips of each split.")
    ] = None,
    sheet_count: Annotated[int, typer.Option(min=1, help="How many worst and how many best for --sheet.")] = 3,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the model's configuration, such as cme=false; repeat.", show_default=False),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Compare results: refervos diagnose --compare reference.json other.json")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of results that exists.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Clips answered at once; does not change results.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; default a GPU when there is one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Tell what a model can do and what it cannot: appearance, motion, occlusion, look-alikes, nothing there ...

    Example: `refervos diagnose miniature --split motion --split occlusion --controls --out miniature.json`
    """
    if compare:
        typer.echo(printable(_comparison(models or [])))
        return
    if models and len(models) > 1:
        raise ConfigError(f"there are {len(models)} models; give one, or --compare and files written by --out.")
    if out is not None and out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; give another file or --overwrite.")
    mode = parse_mode(online, clip)
    overrides = parse_settings(settings or [])

    from refervos.diagnosis.contact_sheets import Extremes
    from refervos.diagnosis.controls import run_controls
    from refervos.diagnosis.diagnose import check_splits
    from refervos.diagnosis.diagnose import diagnose as run
    from refervos.diagnosis.tables import diagnosis_table
    from refervos.loading import load
    from refervos.progress import Bar
    from refervos.worlds.benchmark import ALL_SPLITS, SPLITS, BenchmarkDrawings, diagnostic_cases

    splits = check_splits(split or (SPLITS if drawings is None else ALL_SPLITS))
    opened = None if drawings is None else BenchmarkDrawings.open(drawings)
    draw = partial(diagnostic_cases, drawings=opened)
    model = (models or [DEFAULT_MODEL])[0]
    loaded: Any = load(model, device=device, dtype=dtype, **overrides)
    extremes = Extremes(sheet_count) if sheet else None
    with Bar("frames", show=False if quiet else None) as bar:

        def answered(case: ScoredCase) -> None:
            bar.advance(case.result.frames, case.result.split)
            if extremes is not None:
                extremes.add(case)

        diagnosis = run(
            loaded,
            splits,
            count,
            mode=mode,
            batch=batch,
            name=" ".join([Path(model).name, *(settings or [])]),
            progress=answered,
            draw=draw,
        )
        if controls:
            found = run_controls(
                loaded,
                splits,
                count,
                mode=mode,
                batch=batch,
                progress=lambda case: bar.advance(case.result.frames, f"{case.result.split}, wrong sentence"),
                draw=draw,
            )
            diagnosis = dataclasses.replace(diagnosis, controls=found)
    typer.echo(printable(diagnosis_table(diagnosis)))
    if out is not None:
        diagnosis.save(out)
        typer.echo(f"wrote {out}")
    if extremes is not None and sheet is not None:
        typer.echo(f"wrote {len(extremes.write(sheet))} pictures into {sheet}")


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; values are JSON where they can be, else text.

    Args:
        settings: Such as ``cme=false``, ``cme_window=8`` or ``protocol=published``.

    Returns:
        Names and values, for ``refervos.load``.

    Raises:
        ConfigError: When one is no pair, or sets what has an option of its own.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--set {setting!r} is no setting; give name=value, such as cme=false.")
        if name in OWN_OPTIONS:
            raise ConfigError(f"--set {setting!r} is not about the configuration; give the model, --device or --dtype.")
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError):
            values[name] = text
    return values


def parse_mode(online: bool, clip: int | None) -> Mode:
    """How frames come, by ``--online`` and ``--clip``; ConfigError when both are given."""
    if online and clip is not None:
        raise ConfigError("--online answers frame by frame and --clip in clips; give one of them.")
    return "online" if online else "clips" if clip is None else clip


def _comparison(files: Sequence[str]) -> str:
    """The ablation table of some files, the first being the reference."""
    from refervos.diagnosis.ablation import ablation_table

    if len(files) < 2:
        raise ConfigError("--compare needs at least two files written by --out; the first is the reference.")
    if len(set(files)) < len(files):
        raise ConfigError("--compare has a file twice; give each once.")
    stems = [Path(file).stem for file in files]
    names = stems if len(set(stems)) == len(stems) else list(files)  # the whole path where the name is not enough
    return ablation_table(dict(zip(names, files, strict=True)), names[0])
