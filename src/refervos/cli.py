"""The command line: each command is a few lines over the library."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import refervos
from refervos.bench.command import bench
from refervos.data.command import data_app
from refervos.errors import PromptError, RefervosError
from refervos.evaluation.benchmark_command import compare, evaluate, score, submit
from refervos.evaluation.command import diagnose
from refervos.export.command import export

app = typer.Typer(
    name="refervos",
    help="Referring video object segmentation: a video and a sentence in, that object's mask in every frame out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Model folder, SAM2 checkpoint, hub id, 'miniature' or 'refsam-miniature'.")
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; default a GPU when there is one.")]


class Output(StrEnum):
    """What can be written."""

    overlay = "overlay"
    masks = "masks"
    binary = "binary"
    rle = "rle"
    cutout = "cutout"


class Precision(StrEnum):
    """What can be computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class OnCut(StrEnum):
    """What to do at a scene cut."""

    forget = "forget"
    ignore = "ignore"


class OnRepeat(StrEnum):
    """What to do with a repeated frame."""

    answer = "answer"
    reuse = "reuse"


class Borders(StrEnum):
    """How masks are brought to the frame's size."""

    bilinear = "bilinear"
    frame = "frame"


class Late(StrEnum):
    """What can happen to frames that come faster than they can be processed."""

    drop = "drop"
    queue = "queue"
    wait = "wait"


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"refervos {refervos.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Referring video object segmentation: a video and a sentence in, that object's mask in every frame out."""


@app.command()
def segment(
    video: Annotated[
        str, typer.Argument(help="Video file, image, folder of frames, camera:0, or an rtsp:// or http:// address.")
    ],
    expressions: Annotated[
        list[str] | None, typer.Argument(help="One or more sentences, each in quotes.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.")] = None,
    save: Annotated[
        list[Output] | None,
        typer.Option(
            "--save",
            "-s",
            help="overlay (mp4), masks (indexed PNG), binary (0/255 PNG), rle (JSON lines), cutout (PNG).  "
            "Repeat for several; default overlay and rle.",
        ),
    ] = None,
    model: ModelOption = "miniature",
    device: DeviceOption = None,
    dtype: Annotated[Precision, typer.Option(help="What to compute in.")] = Precision.float32,
    clip: Annotated[
        int | None,
        typer.Option(min=1, help="Frames looked at together; default the model's, 1 for cameras and streams."),
    ] = None,
    verb: Annotated[
        list[str] | None, typer.Option(help="A word of the sentence that tells motion (models with a motion prompt).")
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="Click 'x,y' on the first frame, 'x,y,0' for not the object.")
    ] = None,
    box: Annotated[str | None, typer.Option(help="Box 'x0,y0,x1,y1' on the first frame.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="'published' reproduces the released SAMWISE code to the letter.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Stop after this many frames.")] = None,
    live: Annotated[
        bool | None,
        typer.Option("--live/--recorded", help="Whether frames come unasked, as a camera's; default: by the source."),
    ] = None,
    late: Annotated[
        Late | None,
        typer.Option(
            help="Frames that come too fast: keep the newest, queue 30, or let them wait; default drop if live."
        ),
    ] = None,
    reconnect: Annotated[
        bool, typer.Option("--reconnect/--no-reconnect", help="Whether to ask again for a live source that went away.")
    ] = True,
    on_cut: Annotated[
        OnCut | None, typer.Option(help="At a scene cut: forget what was seen, or ignore it; default forget if live.")
    ] = None,
    on_repeat: Annotated[
        OnRepeat, typer.Option(help="A frame that repeats the one before: answer it, or reuse the answer.")
    ] = OnRepeat.answer,
    session_file: Annotated[
        Path | None,
        typer.Option("--session", help="Go on with the session in this file if there is one, and save it there."),
    ] = None,
    borders: Annotated[
        Borders | None,
        typer.Option(
            help="frame: borders of masks follow the frame's edges; bilinear: as published; default the model's."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace results that exist.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no summary.")] = False,
) -> None:
    """Segment what sentences refer to.

    Example: `refervos segment dog.mp4 "the dog that jumps over the fence" --out result`
    """
    from refervos import load
    from refervos.pipeline import segment as run
    from refervos.prompts import Prompt, parse_box, parse_click
    from refervos.video import Reconnect, open_source

    prompts = [Prompt(expression, verbs=spoken) for expression, spoken in verbs_of(expressions or [], verb)]
    if point or box:
        if len(prompts) > 1:
            raise PromptError(f"--point and --box go with one sentence or none, and there are {len(prompts)}.")
        clicks = [parse_click(text, "--point") for text in point or ()]
        asked = prompts[0] if prompts else None
        prompts = [
            Prompt(
                asked.expression if asked else None,
                asked.verbs if asked else None,
                points=[click[:2] for click in clicks] or None,
                labels=[click[2] for click in clicks] or None,
                box=parse_box(box, "--box") if box else None,
            )
        ]
    going_on = session_file is not None and session_file.exists()
    if not prompts and not going_on:
        raise PromptError("there is nothing to look for; give a sentence in quotes, or --point or --box.")
    policies: dict[str, Any] = {"live": live, "late": late and late.value}
    # Reading a few frames ahead hides the decoding of a recording behind the model.
    with open_source(video, **policies, reconnect=Reconnect() if reconnect else None, ahead=4) as source:
        target = out or Path(f"{result_name(source.info.name)}_refervos")
        overrides: dict[str, Any] = {} if protocol is None else {"protocol": protocol}
        loaded = load(model, device=device, dtype=dtype.value, **overrides)
        if session_file is not None and going_on:
            session = loaded.restore(session_file)
            session.add_missing(prompts)
        else:
            forget = on_cut is OnCut.forget if on_cut else source.info.live
            session = loaded.open(
                prompts,
                on_cut="forget" if forget else "ignore",
                on_repeat=on_repeat.value,
                borders=borders and borders.value,
                border_cells=3 if source.info.live else 7,  # a stream has no time to look further
            )
        sinks = open_sinks(save or [Output.overlay, Output.rle], target, source, overwrite)
        report = run(source, session, sinks, clip_length=clip, limit=frames, show_progress=False if quiet else None)
    if session_file is not None:
        session.save(session_file)
    for warning in report.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if not quiet:
        dropped = f", {report.dropped} dropped because they came too fast" if report.dropped else ""
        typer.echo(f"{report.frames} frames{dropped}{', stopped early' if report.interrupted else ''}")
        for expression, visible in report.visible.items():
            typer.echo(f"  {expression}: seen in {visible} of {report.frames}")
        for path in report.written:
            typer.echo(f"  wrote {path}")
    if report.interrupted:
        raise typer.Exit(130)


def verbs_of(expressions: list[str], verbs: list[str] | None) -> list[tuple[str, list[str] | None]]:
    """Give each expression those of the verbs that are in it.

    Args:
        expressions: The sentences.
        verbs: Words that tell motion, or None when they are to be found.

    Returns:
        Each expression with its verbs.

    Raises:
        PromptError: When a verb is in no expression.
    """
    if not verbs:
        return [(expression, None) for expression in expressions]
    words = [expression.lower().split() for expression in expressions]
    for verb in verbs:
        if not any(verb.lower() in sentence for sentence in words):
            raise PromptError(
                f"the verb {verb!r} is a word of no expression; give words as they stand in the sentence."
            )
    return [(e, [v for v in verbs if v.lower() in sentence]) for e, sentence in zip(expressions, words, strict=True)]


def result_name(name: str) -> str:
    """A file name made of a source's name: no folders, no extension, no odd characters."""
    stem = Path(name.rstrip("/")).stem or "result"
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)


def open_sinks(outputs: list[Output], folder: Path, source: Any, overwrite: bool) -> list[Any]:
    """Open one sink for each wanted output.

    Args:
        outputs: What to write.
        folder: Where.
        source: The source, whose rate, size and sound the overlay keeps.
        overwrite: Whether results that exist may be replaced.

    Returns:
        The sinks.
    """
    from refervos.video import BinarySink, CutoutSink, OverlaySink, PaletteSink, RleSink

    makers = {
        Output.overlay: lambda: OverlaySink(folder / "overlay.mp4", source.info, overwrite=overwrite),
        Output.masks: lambda: PaletteSink(folder / "masks", overwrite=overwrite),
        Output.binary: lambda: BinarySink(folder / "binary", overwrite=overwrite),
        Output.rle: lambda: RleSink(folder / "masks.jsonl", overwrite=overwrite),
        Output.cutout: lambda: CutoutSink(folder / "cutout", overwrite=overwrite),
    }
    sinks: list[Any] = []
    try:
        for output in dict.fromkeys(outputs):
            sinks.append(makers[output]())
    except BaseException:
        for sink in sinks:
            sink.abort()
        raise
    return sinks


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Official SAMWISE .pth.")],
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    tokenizer: Annotated[
        str, typer.Option(help="Folder or hub id of a RoBERTa tokenizer, or 'none'.")
    ] = "FacebookAI/roberta-base",
    overwrite: Annotated[bool, typer.Option(help="Replace files that exist.")] = False,
) -> None:
    """Turn an official SAMWISE checkpoint into a folder that loads safely.

    Example: `refervos convert final_model_mevis.pth samwise-mevis`
    """
    from refervos.conversion import convert as run

    model = run(checkpoint, folder, tokenizer=None if tokenizer == "none" else tokenizer, overwrite=overwrite)
    print_description(model.describe())
    typer.echo(f"wrote {folder}")


@app.command()
def info(
    model: Annotated[
        str, typer.Argument(help="Model folder, SAM2 checkpoint, official .pth, or hub id.")
    ] = "miniature",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a checkpoint is: parts, parameters, trained parameters.

    Example: `refervos info samwise-mevis`
    """
    from refervos.loading import load
    from refervos.samwise.checkpoints import load_official

    path = Path(model)
    loaded = load_official(path) if path.suffix == ".pth" and path.is_file() else load(model, device="cpu")
    description = loaded.describe()
    if as_json:
        typer.echo(json.dumps(description, indent=2))
    else:
        print_description(description)


def print_description(description: dict[str, Any]) -> None:
    """Print a model's parts as a table and its settings as a list."""
    typer.echo(description["family"])
    width = max(len(name) for name in description["parts"])
    for name, count in description["parts"].items():
        typer.echo(f"  {name:<{width}} {count:>13,}")
    typer.echo(f"  {'total':<{width}} {description['total']:>13,}")
    typer.echo(f"  {'trained':<{width}} {description['trained']:>13,}")
    for name, value in description.get("settings", {}).items():
        typer.echo(f"  {name}: {value}")


@app.command()
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
    restart: Annotated[bool, typer.Option(help="Delete what the stages named with --stage have come to.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")] = False,
) -> None:
    """Train a model by a recipe; the same command again goes on where it stopped.

    Example: `refervos train recipes/miniature.yaml`, or on several GPUs
    `accelerate launch -m refervos train recipes/miniature.yaml`
    """
    from refervos.training.distributed import leave_processes
    from refervos.training.recipe import read_recipe
    from refervos.training.trainer import train as run

    read = read_recipe(recipe)
    # A trial has a folder of its own, so that it is never taken for the real run.
    folder = out or Path("runs") / (read.name if steps is None else f"{read.name}-{steps}-steps")
    try:
        run(read, folder, stages=stage, restart=restart, steps=steps, show_progress=False if quiet else None)
    except KeyboardInterrupt as stopped:
        typer.echo(f"refervos: {stopped}" if str(stopped) else "refervos: stopped", err=True)
        leave_processes()
        raise typer.Exit(130) from stopped
    leave_processes()


app.command()(diagnose)
app.command("eval")(evaluate)
app.command()(score)
app.command()(submit)
app.command()(compare)
app.command()(bench)
app.command()(export)
app.add_typer(data_app)


def main() -> None:
    """Run the command line; what is the input's fault becomes one sentence and exit code 2."""
    # transformers reports on standard error what no user asked for, such as a missing torchvision.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        app()
    except RefervosError as error:
        typer.echo(f"refervos: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
