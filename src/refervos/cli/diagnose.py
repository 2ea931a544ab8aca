"""``refervos diagnose``: heavy modules are imported only when the command runs, so that ``refervos --help`` is fast."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refervos.cli.options import (
    ClipOption,
    DeviceOption,
    DtypeOption,
    HindsightOption,
    OnlineOption,
    OverwriteOption,
    QuietOption,
    SettingsOption,
)
from refervos.errors import ConfigError
from refervos.safe_text import printable

if TYPE_CHECKING:
    from refervos.diagnosis.diagnose import ScoredCase
    from refervos.evaluation.inference import Mode

DEFAULT_MODEL = "miniature"

LOAD_ARGUMENTS = ("model", "device", "dtype")
"""Arguments of ``refervos.load`` that are not fields of a configuration."""


def diagnose(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Model folder, Hugging Face id, 'miniature' (default) or 'refsam-miniature'; with --compare, result "
            "files of --out.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="Split of the benchmark, such as 'look-alikes'; repeat for several; default all.", show_default=False
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="Number of clips per split, from the first; default all.")
    ] = None,
    online: OnlineOption = False,
    clip: ClipOption = None,
    hindsight: HindsightOption = False,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Also score two controls: wrong sentences, and single objects chosen without language.",
        ),
    ] = False,
    drawings: Annotated[
        Path | None,
        typer.Option(
            help="Folder made by python -m refervos.worlds.drawings; adds the splits of everyday nouns.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the results of all clips.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="Folder for contact sheets of the worst and best clips of each split.")
    ] = None,
    sheet_count: Annotated[
        int, typer.Option(min=1, help="Number of worst and of best clips per split for --sheet.")
    ] = 3,
    settings: SettingsOption = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Compare result files instead; the first is the reference, the others follow."),
    ] = False,
    overwrite: OverwriteOption = False,
    batch: Annotated[int, typer.Option(min=1, help="Clips segmented at once; does not change results.")] = 8,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    quiet: QuietOption = False,
) -> None:
    """Measure a model's abilities on synthetic clips: appearance, motion, occlusion, look-alikes, no target and more.

    Example: `refervos diagnose miniature --split motion --split occlusion --controls --out miniature.json`
    """
    if compare:
        typer.echo(printable(_comparison(models or [])))
        return
    if models and len(models) > 1:
        raise ConfigError(f"there are {len(models)} models; give one, or --compare with result files of --out.")
    if out is not None and out.exists() and not overwrite:
        raise ConfigError(f"{out} exists already; give another file or --overwrite.")
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
    benchmark_drawings = None if drawings is None else BenchmarkDrawings.open(drawings)
    draw = partial(diagnostic_cases, drawings=benchmark_drawings)
    model = (models or [DEFAULT_MODEL])[0]
    loaded: Any = load(model, device=device, dtype=dtype, **overrides)
    extremes = Extremes(sheet_count) if sheet else None
    with Bar("frames", show=False if quiet else None) as bar:

        def report(case: ScoredCase) -> None:
            bar.advance(case.result.frames, case.result.split)
            if extremes is not None:
                extremes.add(case)

        diagnosis = run(
            loaded,
            splits,
            count,
            mode=mode,
            hindsight=hindsight,
            batch=batch,
            name=" ".join([Path(model).name, *(settings or []), *(["in hindsight"] if hindsight else [])]),
            progress=report,
            draw=draw,
        )
        if controls:
            results = run_controls(
                loaded,
                splits,
                count,
                mode=mode,
                hindsight=hindsight,
                batch=batch,
                progress=lambda case: bar.advance(case.result.frames, f"{case.result.split}, wrong sentence"),
                draw=draw,
            )
            diagnosis = dataclasses.replace(diagnosis, controls=results)
    typer.echo(printable(diagnosis_table(diagnosis)))
    if out is not None:
        diagnosis.save(out)
        typer.echo(f"wrote {out}")
    if extremes is not None and sheet is not None:
        typer.echo(f"wrote {len(extremes.write(sheet))} contact sheets to {sheet}")


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Parse ``name=value`` pairs; values are JSON if possible, else text.

    Args:
        settings: Pairs such as ``cme=false``, ``cme_window=8`` or ``protocol=published``.

    Returns:
        Keyword arguments for ``refervos.load``.

    Raises:
        ConfigError: When a setting has another form, or has an option of its own.
    """
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"--set {setting!r} is not a setting; give name=value, such as cme=false.")
        if name in LOAD_ARGUMENTS:
            raise ConfigError(f"--set {setting!r} is not a field of the configuration; use MODEL, --device or --dtype.")
        try:
            values[name] = json.loads(text)
        except (ValueError, RecursionError):
            values[name] = text
    return values


def parse_mode(online: bool, clip: int | None) -> Mode:
    """Return the mode for ``--online`` and ``--clip``; ConfigError when both are given."""
    if online and clip is not None:
        raise ConfigError("--online segments frame by frame and --clip in clips; give only one of them.")
    return "online" if online else "clips" if clip is None else clip


def _comparison(files: Sequence[str]) -> str:
    """Return the ablation table of result files, the first being the reference."""
    from refervos.diagnosis.ablation import ablation_table

    if len(files) < 2:
        raise ConfigError("--compare needs at least two result files of --out; the first is the reference.")
    if len(set(files)) < len(files):
        raise ConfigError("--compare got the same file twice; give each file once.")
    stems = [Path(file).stem for file in files]
    names = stems if len(set(stems)) == len(stems) else list(files)  # full paths if the names are not unique
    return ablation_table(dict(zip(names, files, strict=True)), names[0])
