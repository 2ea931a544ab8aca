"""``refervos segment``."""

from __future__ import annotations

import functools
import os
import re
import sys
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from refervos.cli.failures import complain
from refervos.cli.options import DeviceOption, ModelOption, Precision
from refervos.cli.stopping import INTERRUPTED, Stopping
from refervos.errors import EndOfVideoError, OutputError, PromptError, RefervosError, VideoError
from refervos.files.locks import FolderClaim
from refervos.files.plain_text import read_entries
from refervos.safe_text import printable


class Output(StrEnum):
    """What can be written."""

    overlay = "overlay"
    masks = "masks"
    binary = "binary"
    rle = "rle"
    cutout = "cutout"


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


def segment(
    context: typer.Context,
    video: Annotated[
        str,
        typer.Argument(
            help="Video file, image, folder of frames or of videos, camera:0, or an rtsp:// or http:// address."
        ),
    ],
    expressions: Annotated[
        list[str] | None, typer.Argument(help="One or more sentences, each in quotes.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the results; '-' writes run lengths to standard output."),
    ] = None,
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
    sentences: Annotated[
        Path | None,
        typer.Option(help="Text file, one sentence a line, besides those given.", show_default=False),
    ] = None,
    point: Annotated[
        list[str] | None, typer.Option(help="Click 'x,y' on the first frame, 'x,y,0' for not the object.")
    ] = None,
    box: Annotated[str | None, typer.Option(help="Box 'x0,y0,x1,y1' on the first frame.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="'published' reproduces the released SAMWISE code to the letter.")
    ] = None,
    start: Annotated[int, typer.Option(min=0, help="First frame to read, from 0; numbers stay the video's.")] = 0,
    deinterlace: Annotated[
        bool | None,
        typer.Option(
            "--deinterlace/--no-deinterlace", help="Join the half pictures of each frame; default where it says so."
        ),
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
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on where an earlier run into the same folder was stopped.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace results that exist.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, no summary.")] = False,
) -> None:
    """Segment what sentences refer to.

    Example: `refervos segment dog.mp4 "the dog that jumps over the fence" --out result`
    """
    from refervos.files.writing import prepare_folder
    from refervos.loading import load
    from refervos.pipeline import PartlyWrittenError
    from refervos.pipeline import segment as run
    from refervos.prompts import Prompt, parse_box, parse_click
    from refervos.video import ReconnectPolicy, RleSink, open_source

    spoken_of = [*(expressions or []), *(read_entries(sentences, "sentence", PromptError) if sentences else [])]
    refuse_files(expressions or [])
    prompts = [Prompt(expression, verbs=spoken) for expression, spoken in verbs_of(spoken_of, verb)]
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
    to_stdout = out == Path("-")
    if to_stdout and (save not in (None, [], [Output.rle]) or resume):
        raise VideoError(
            "--out - writes run lengths to standard output and nothing else; leave --save and --resume out."
        )
    going_on = session_file is not None and session_file.exists()
    if not prompts and not going_on and not resume:
        raise PromptError("there is nothing to look for; give a sentence in quotes, or --point or --box.")
    policies: dict[str, Any] = {"live": live, "late": late and late.value, "deinterlace": deinterlace}
    overrides: dict[str, Any] = {} if protocol is None else {"protocol": protocol}
    the_model = functools.cache(lambda: load(model, device=device, dtype=dtype.value, **overrides))

    def one(video: str, out: Path | None, session_file: Path | None, resume: bool) -> None:
        stopped = Stopped.read(out or result_folder(video)) if resume else None
        first = stopped.frame if stopped else start
        if stopped:
            session_file = session_file or stopped.session
        with ExitStack() as stack:
            # Reading a few frames ahead hides the decoding of a recording behind the model.
            try:
                source = stack.enter_context(
                    open_source(
                        video, start=first, **policies, reconnect=ReconnectPolicy() if reconnect else None, ahead=4
                    )
                )
            except EndOfVideoError:
                if stopped is None:
                    raise
                return stopped.finish(quiet=quiet)
            target = out or result_folder(source.info.name)
            loaded = the_model()
            earlier = stopped.session if stopped else session_file
            if earlier is not None and (going_on or stopped):
                session = loaded.restore(earlier)
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
            # Before the first frame all that will be written is known to be writable, and nobody else writes there.
            if session_file is not None:
                prepare_folder(session_file.parent)
            if to_stdout:
                sinks = [RleSink(sys.stdout.buffer)]
            else:
                prepare_folder(target)
                stack.callback(FolderClaim(target, "writing results", OutputError).release)
                if not (resume or overwrite) and Stopped.notes_in(target):
                    raise OutputError(
                        f"'{target}' holds a run that was stopped; go on with it by --resume, or begin anew by "
                        "--overwrite."
                    )
                sinks = open_sinks(save or [Output.overlay, Output.rle], target, source, overwrite, resume)
            failed: PartlyWrittenError | None = None
            held = context.obj.held if isinstance(context.obj, Stopping) else nullcontext
            options: dict[str, Any] = {"clip_length": clip, "limit": frames, "show_progress": False if quiet else None}
            try:
                report = run(source, session, sinks, **options, hold_interrupts=held)
            except EndOfVideoError:
                if stopped is None:
                    raise
                return stopped.finish(quiet=quiet)
            except PartlyWrittenError as error:
                failed, report = error, error.report
            # What was followed is worth as much as what was written, also where an output has failed.
            if session_file is not None and session_file != (stopped and stopped.session):
                session.save(session_file)
            if not to_stdout:
                Stopped.write(target, session, first + report.frames if report.interrupted else None)
        for warning in report.warnings:
            typer.echo(f"warning: {printable(warning)}", err=True)
        if not quiet:
            dropped = f", {report.dropped} dropped because they came too fast" if report.dropped else ""
            lines = [f"{report.frames} frames{dropped}{', stopped early' if report.interrupted else ''}"]
            lines += [
                f"  {printable(e)}: seen in {visible} of {report.frames}" for e, visible in report.visible.items()
            ]
            lines += [f"  wrote {printable(str(path))}" for path in report.written]
            typer.echo("\n".join(lines), err=to_stdout)
        if failed is not None:
            raise failed
        if report.interrupted:
            raise typer.Exit(INTERRUPTED)

    inside = videos_in(video)
    if not inside:
        return one(video, out, session_file, resume)
    # Each into a folder of its own; one that fails does not cost the others.
    if session_file is not None or to_stdout:
        option = "--out -" if to_stdout else "--session"
        raise PromptError(f"'{video}' is a folder of {len(inside)} videos, and {option} is for one.")
    the_model()  # what is wrong with it is told once
    failures = []
    for path, name in zip(inside, different_names(inside), strict=True):
        target = (out or result_folder(video)) / name
        stopped_here = bool(Stopped.notes_in(target))
        if resume and not stopped_here and target.is_dir() and any(target.iterdir()):
            continue  # it was finished before
        try:
            one(str(path), target, None, resume and stopped_here)
        except RefervosError as error:
            failures.append(path)
            complain(str(error), 2)
    if failures:
        raise VideoError(f"{len(failures)} of the {len(inside)} videos in '{video}' could not be segmented.")


def videos_in(folder: str) -> list[Path]:
    """Find the videos of a folder that holds videos and no pictures; of anything else none."""
    from refervos.files.images import SUFFIXES

    if not folder:  # which is no name for the folder of today
        return []
    try:
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    except (OSError, ValueError):
        return []
    if any(path.suffix.lower() in SUFFIXES for path in files):
        return []  # a folder of frames
    return [path for path in files if path.suffix.lower() in _VIDEOS]


def different_names(videos: list[Path]) -> list[str]:
    """Name the folder for each video's results: after the file, with its suffix where another has the same name."""
    names = [result_name(path.name) for path in videos]
    return [
        name if names.count(name) == 1 else f"{name}_{path.suffix[1:]}"
        for name, path in zip(names, videos, strict=True)
    ]


_VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".ogv"})

UNFINISHED = "unfinished.session"
"""What a stopped run leaves in its folder, from which ``--resume`` goes on."""


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped before the video's end.

    Attributes:
        session: File with the session as it was then.
        frame: The first frame that was not answered.
    """

    session: Path
    frame: int

    @classmethod
    def read(cls, folder: Path) -> Stopped:
        """Find it.

        Raises:
            VideoError: When no run was stopped there.
        """
        found = cls.notes_in(folder)
        if not found or not found[-1].name.partition(".")[0].isdigit():
            raise VideoError(f"'{folder}' holds no run that was stopped; leave out --resume to begin one.")
        return cls(found[-1], int(found[-1].name.partition(".")[0]))

    def finish(self, *, quiet: bool) -> None:
        """Take the note of a run away that was stopped after its last frame."""
        self.session.unlink(missing_ok=True)
        if not quiet:
            typer.echo(f"nothing is left to do: all {self.frame} frames were answered before it was stopped", err=True)

    @staticmethod
    def notes_in(folder: Path) -> list[Path]:
        """Find what runs that were stopped have left in a folder, in the order of their frames."""
        return sorted(folder.glob(f"*.{UNFINISHED}"))

    @staticmethod
    def write(folder: Path, session: Any, frame: int | None) -> None:
        """Note from which frame on to resume; None where there is nothing left to do."""
        before = Stopped.notes_in(folder)
        kept = None if frame is None else folder / f"{frame:06d}.{UNFINISHED}"
        if kept is not None:
            session.save(kept)
        for path in before:
            if path != kept:
                path.unlink(missing_ok=True)


def refuse_files(expressions: list[str]) -> None:
    """Refuse what can only be a second video, such as a shell makes of ``*.mp4``.

    Raises:
        PromptError: When one of the sentences is a file or folder that exists.
    """
    for expression in expressions:
        try:
            exists = len(expression) < 4096 and Path(expression).exists()
        except (OSError, ValueError):
            exists = False
        if exists and ("." in expression or os.sep in expression):
            raise PromptError(
                f"'{expression}' is a file, not a sentence, and one video is read at a time; run the command once for "
                "each, with the sentences in quotes."
            )


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
    words = [re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", expression.lower()) for expression in expressions]
    for verb in verbs:
        if not any(verb.lower() in sentence for sentence in words):
            raise PromptError(
                f"the verb {verb!r} is a word of no expression; give words as they stand in the sentence."
            )
    return [(e, [v for v in verbs if v.lower() in sentence]) for e, sentence in zip(expressions, words, strict=True)]


def result_name(name: str) -> str:
    """A file name made of a source's name: no folders, no extension, no odd characters, not too long."""
    stem = Path(name.rstrip("/")).stem or "result"
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in stem)[:100]


def result_folder(name: str) -> Path:
    """Where the results of a source go when no folder is given."""
    return Path(f"{result_name(name)}_refervos")


def open_sinks(outputs: list[Output], folder: Path, source: Any, overwrite: bool, resume: bool = False) -> list[Any]:
    """Open one sink for each wanted output.

    Args:
        outputs: What to write.
        folder: Where.
        source: The source, whose rate, size and sound the overlay keeps.
        overwrite: Whether results that exist may be replaced.
        resume: Whether results that exist are gone on with; a film cannot be, so the overlay is one of its own.

    Returns:
        The sinks.
    """
    from refervos.video import BinarySink, CutoutSink, PaletteSink, RleSink, overlay_sink

    makers = {
        Output.overlay: lambda: overlay_sink(
            unused(folder, "overlay") if resume else folder, source.info, overwrite=overwrite
        ),
        Output.masks: lambda: PaletteSink(folder / "masks", overwrite=overwrite, resume=resume),
        Output.binary: lambda: BinarySink(folder / "binary", overwrite=overwrite, resume=resume),
        Output.rle: lambda: RleSink(folder / "masks.jsonl", overwrite=overwrite, resume=resume, live=source.info.live),
        Output.cutout: lambda: CutoutSink(folder / "cutout", overwrite=overwrite, resume=resume),
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


def unused(folder: Path, name: str) -> Path:
    """A sub-folder that does not exist yet: ``resumed-1``, ``resumed-2`` and so on."""
    number = 1
    while (folder / f"resumed-{number}").exists():
        number += 1
    return folder / f"resumed-{number}"
