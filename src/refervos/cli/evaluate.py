"""``refervos eval``, ``score``, ``submit`` and ``compare``; nothing heavy is imported before one of them runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refervos.cli.data import AllowOutsideOption
from refervos.cli.diagnose import parse_mode, parse_settings
from refervos.errors import ConfigError
from refervos.safe_text import printable

if TYPE_CHECKING:
    from refervos.evaluation.report import Evaluation

DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="mevis, ref-youtube-vos, ref-davis17, refcoco ... or worlds.")
]
PathArgument = Annotated[
    Path | None, typer.Argument(metavar="PATH", help="Folder of the data set; worlds needs none.", show_default=False)
]
SplitOption = Annotated[str | None, typer.Option(help="Split of the data set; default the usual one.")]
VideosOption = Annotated[int | None, typer.Option("--count", min=1, help="Only the first so many videos.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def evaluate(
    model: Annotated[str, typer.Argument(help="Model folder, hub id, 'miniature' or 'refsam-miniature'.")],
    dataset: DatasetArgument,
    path: PathArgument = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks and results; goes on where it stopped.")],
    split: SplitOption = None,
    count: VideosOption = None,
    clip: Annotated[int | None, typer.Option(min=1, help="Frames looked at together; default the model's.")] = None,
    online: Annotated[bool, typer.Option("--online", help="Answer each frame before the next is known.")] = False,
    protocol: Annotated[
        str | None, typer.Option(help="'published' reproduces the released SAMWISE code to the letter.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the model's configuration, such as cme=false; repeat.", show_default=False),
    ] = None,
    together: Annotated[int, typer.Option(min=1, help="Expressions asked at once; more need more memory.")] = 8,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes that share the videos; each loads the model, on all GPUs in turn.")
    ] = 1,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; default a GPU when there is one.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    allow_outside: AllowOutsideOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a model over a benchmark: masks, scores of every expression, tables and a report.

    Example: `refervos eval samwise-mevis mevis data/mevis --split valid_u --out results/mevis`
    """
    overrides = parse_settings(settings or [])
    if protocol is not None and overrides.setdefault("protocol", protocol) != protocol:
        raise ConfigError("--protocol and --set protocol=... contradict each other; give one of them.")
    mode = parse_mode(online, clip)

    from refervos.evaluation.datasets import Part
    from refervos.evaluation.evaluate import Request
    from refervos.evaluation.evaluate import evaluate as run
    from refervos.evaluation.report import require_packages

    require_packages()
    request = Request(
        model, Part(dataset, path, split, count, allow_outside), out, mode, together, device, dtype, overrides
    )
    with _stoppable("the same command continues from here"):
        evaluation = run(request, processes=processes, show_progress=False if quiet else None)
        _tell(evaluation, out)


def score(
    predictions: Annotated[
        Path, typer.Argument(help="Folder of <video>/<expression>/<frame>.png, or of anno_0/<video>/<frame>.png.")
    ],
    dataset: DatasetArgument,
    path: PathArgument = None,
    *,
    split: SplitOption = None,
    count: VideosOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the tables and the report.")] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes that share the videos.")] = 1,
    allow_outside: AllowOutsideOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score the masks of any system as eval scores its own; missing ones count 0.

    Example: `refervos score theirs mevis data/mevis --split valid_u`
    """
    from refervos.evaluation.datasets import Part
    from refervos.evaluation.report import require_packages
    from refervos.evaluation.scoring import score as run

    if out is not None:
        require_packages()
    with _stoppable("nothing was written"):
        part = Part(dataset, path, split, count, allow_outside)
        _tell(run(predictions, part, processes=processes, show_progress=False if quiet else None), out)


def submit(
    benchmark: Annotated[str, typer.Argument(help="mevis or ref-youtube-vos.")],
    predictions: Annotated[Path, typer.Argument(help="Folder of <video>/<expression>/<frame>.png, or of eval.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.zip", help="File to write.")],
    data: Annotated[Path, typer.Option(help="Folder of the data set, which tells what must be there.")],
    split: Annotated[str, typer.Option(help="Split that is submitted.")] = "valid",
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check masks and pack them for the evaluation server.

    Example: `refervos submit mevis results/mevis mevis.zip --data data/mevis`
    """
    from refervos.evaluation.datasets import Part
    from refervos.evaluation.predictions import Predictions
    from refervos.evaluation.submission import submit as run
    from refervos.evaluation.submission import top_folder

    top_folder(benchmark)
    with _stoppable("nothing was written"):
        part = Part(benchmark, data, split).open()
        masks = Predictions.open(predictions)
        left_out = run(masks, part, out, overwrite=overwrite, show_progress=False if quiet else None)
    if left_out:
        few = printable(", ".join(left_out[:5]))
        typer.echo(f"left out {len(left_out)} folders that {split} does not have: {few}{', ...' * (len(left_out) > 5)}")
    typer.echo(f"wrote {out}: {len(list(part.samples()))} expressions about {len(part.videos)} videos")


def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of masks, such as one of eval.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another one, about the same data set.")],
    dataset: Annotated[
        str | None, typer.Argument(metavar="DATASET", help="Default what eval noted in both.", show_default=False)
    ] = None,
    path: PathArgument = None,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="A .png for a sheet, an .mp4 for a video.")],
    split: SplitOption = None,
    expression: Annotated[
        list[str] | None,
        typer.Option(help="VIDEO/EXPRESSION to show; repeat; default where A and B differ most.", show_default=False),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many expressions; default 6, or 1 in a video.")] = None,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames a second of the video.")] = 10,
    overwrite: OverwriteOption = False,
    allow_outside: AllowOutsideOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show two systems' masks side by side, with the truth where it is known.

    Example: `refervos compare results/ours results/theirs --out differences.png`
    """
    from refervos.evaluation import comparison
    from refervos.evaluation.datasets import Part

    show = False if quiet else None
    one, other = comparison.open_sides(a, b)
    part = Part(dataset, path, split) if dataset else comparison.shared_part(one, other)
    opened = replace(part, allow_outside=allow_outside).open() if part else comparison.part_from_masks(one.predictions)
    if out.suffix.lower() not in (".png", ".mp4"):
        raise ConfigError(f"{out} is neither a .png nor an .mp4; give one of them.")
    moving = out.suffix.lower() == ".mp4"
    most = count or (1 if moving else comparison.SHEET_EXPRESSIONS)
    with _stoppable("nothing was written"):
        samples = comparison.choose_expressions(opened, one, other, most, expression or (), show_progress=show)
        if not moving:
            comparison.write_sheet(samples, one, other, out, overwrite=overwrite)
        elif len(samples) > 1:
            raise ConfigError(f"a video shows one expression and {len(samples)} are asked for; give a .png, or one.")
        else:
            comparison.write_video(samples[0], one, other, out, fps=fps, overwrite=overwrite, show_progress=show)
    for sample in samples:
        typer.echo(printable(f"{sample.video.id}/{sample.expression_id}: {sample.expression}"))
    typer.echo(f"wrote {out}")


def _tell(evaluation: Evaluation, out: Path | None) -> None:
    """Show the tables, and write them where they are wanted."""
    typer.echo(printable(evaluation.summary.markdown()))
    speed = evaluation.summary.masks_per_second
    if speed is not None:
        typer.echo(f"\n{speed:.1f} masks a second, reading, writing and scoring not counted")
    if out is not None:
        written = evaluation.write(out)
        typer.echo("")
        for file in written:
            typer.echo(f"wrote {file}")


@contextmanager
def _stoppable(advice: str) -> Iterator[None]:
    """Ctrl-C ends the command with one sentence and exit code 130."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        typer.echo(f"refervos: stopped; {advice}", err=True)
        raise typer.Exit(130) from stopped
