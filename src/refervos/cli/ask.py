"""``refervos ask``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from refervos.cli.options import DeviceOption, ModelOption, Precision
from refervos.cli.segment import Output, finish_run, open_sinks, refuse_files, result_folder
from refervos.cli.stopping import StopSignals
from refervos.errors import ConfigError, OutputError, PromptError
from refervos.files.locks import FolderClaim
from refervos.safe_text import one_line, printable

DEFAULT_MODEL = "videoglamm-miniature"


def ask(
    context: typer.Context,
    video: Annotated[str, typer.Argument(help="Video file, image or folder of frames; not a live source.")],
    questions: Annotated[
        list[str] | None,
        typer.Argument(help="A question in quotes, and follow-up questions.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the results; with several questions, one folder each inside it."),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    device: DeviceOption = None,
    dtype: Annotated[Precision, typer.Option(help="Floating-point precision of the model.")] = Precision.float32,
    start: Annotated[
        int, typer.Option(min=0, help="First frame to process, counted from 0; results keep the video's frame numbers.")
    ] = 0,
    frames: Annotated[int | None, typer.Option(min=1, help="Maximum number of frames to process.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of tokens of an answer.")] = 512,
    overwrite: Annotated[bool, typer.Option(help="Replace existing results.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar and no summary.")] = False,
) -> None:
    """Ask questions about a video; the phrases of an answer are segmented in every frame.

    Example: `refervos ask street.mp4 "What is happening here?" "Which car turns left?" --out result`
    """
    from refervos.files.writing import prepare_folder
    from refervos.loading import load
    from refervos.video import open_source

    if not questions:
        raise PromptError("there is no question; ask one in quotes.")
    refuse_files(questions)
    part: dict[str, Any] = {"start": start, "stop": None if frames is None else start + frames}
    with open_source(video, **part) as source:  # before a model is loaded for nothing
        target = out or result_folder(source.info.name)
    folders = [target] if len(questions) == 1 else [target / str(number + 1) for number in range(len(questions))]
    for folder in folders:
        refuse_results(folder, overwrite)
    loaded: Any = load(model, device=device, dtype=dtype.value)
    if not hasattr(loaded, "converse"):
        raise ConfigError(f"{model} answers no questions; give a model that does, such as {DEFAULT_MODEL}.")
    talk = loaded.converse(video, **part)
    with ExitStack() as stack:
        prepare_folder(target)
        stack.callback(FolderClaim(target, "writing results", OutputError).release)
        for question, folder in zip(questions, folders, strict=True):
            answer = talk.ask(question, limit=limit)
            if len(questions) > 1:
                typer.echo(f"> {one_line(question)}")
            print_answer(answer)
            held = context.obj.held if isinstance(context.obj, StopSignals) else nullcontext
            write_results(
                talk, answer, folder, lambda: open_source(video, **part, ahead=4), model, overwrite, quiet, held
            )


def refuse_results(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with results, unless they may be replaced.

    Raises:
        OutputError: When there are any.
    """
    from refervos.files.writing import refuse_existing

    for name in RESULTS:
        refuse_existing(folder / name, overwrite)


RESULTS = ("overlay.mp4", "overlay.png", "masks.jsonl", "answer.json")
"""Files that an answer may leave in its folder."""


def print_answer(pieces: Iterable[Any]) -> None:
    """Print an answer as it is generated, each phrase in the colour of its masks if the terminal has colours."""
    from refervos.video import palette

    coloured, count = has_colours(), 0
    for piece in pieces:
        text = printable(piece.text)
        if piece.phrase is not None:
            count += 1
            if coloured and text:
                text = typer.style(text, fg=palette(count)[count - 1], bold=True)
        typer.echo(text, nl=False, color=coloured)
    typer.echo()


def has_colours() -> bool:
    """Return whether standard output is a terminal with colours that the user wants (see no-color.org)."""
    stream = sys.stdout
    return (
        stream is not None and stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def write_results(
    talk: Any, answer: Any, folder: Path, open_frames: Any, model: str, overwrite: bool, quiet: bool, held: Any
) -> None:
    """Segment the phrases of an answer and write overlay, run lengths and ``answer.json``.

    Raises:
        OutputError: When a file cannot be written.
        typer.Exit: When the user stopped the run; the results so far are complete files.
    """
    from refervos.evaluation.answer_sink import AnswerSink
    from refervos.evaluation.grounded_answers import FILE, GroundedAnswer, write_answer
    from refervos.files.writing import prepare_folder
    from refervos.pipeline import PartlyWrittenError
    from refervos.pipeline import segment as run

    name = Path(model).name or model
    prepare_folder(folder)
    if not answer.phrases:
        for result in RESULTS:  # of an earlier answer
            (folder / result).unlink(missing_ok=True)
        write_answer(
            folder / FILE,
            GroundedAnswer(answer.question, answer.text, talk.frame_size, talk.frame_names, (), name),
        )
        if not quiet:
            typer.echo(f"no phrase has a mask\n  wrote {printable(str(folder / FILE))}", err=True)
        return
    session = talk.model.open()
    answer.follow(session)
    failed: PartlyWrittenError | None = None
    with open_frames() as source:
        sinks = open_sinks([Output.overlay, Output.rle], folder, source, overwrite)
        spans = [(phrase.start, phrase.end) for phrase in answer.phrases]
        sinks.append(AnswerSink(folder / FILE, answer.question, answer.text, spans, model=name, overwrite=overwrite))
        try:
            report = run(
                source, session, sinks, clip_length=1, show_progress=False if quiet else None, hold_interrupts=held
            )
        except PartlyWrittenError as error:
            failed, report = error, error.report
    finish_run(report, failed, quiet=quiet, err=True)
