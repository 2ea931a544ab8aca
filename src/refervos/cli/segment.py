"""``refervos segment``."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refervos.cli.diagnose import parse_settings
from refervos.cli.failures import print_error
from refervos.cli.options import DeviceOption, ModelOption, Precision, ProtocolOption, SettingsOption
from refervos.cli.stopping import INTERRUPTED, StopSignals
from refervos.errors import EndOfVideoError, OutputError, PromptError, RefervosError, VideoError
from refervos.files.locks import FolderClaim
from refervos.files.plain_text import read_entries
from refervos.safe_text import printable

if TYPE_CHECKING:
    from refervos.pipeline import PartlyWrittenError, RunReport


class Output(StrEnum):
    """Kind of output."""

    overlay = "overlay"
    masks = "masks"
    binary = "binary"
    rle = "rle"
    cutout = "cutout"
    ytvis = "ytvis"
    ytvos = "ytvos"
    coco = "coco"
    cvat = "cvat"
    labelme = "labelme"
    anylabeling = "anylabeling"
    rerun = "rerun"


class OnCut(StrEnum):
    """Treatment of the memory at a scene cut."""

    forget = "forget"
    ignore = "ignore"


class OnRepeat(StrEnum):
    """Treatment of a repeated frame."""

    answer = "answer"
    reuse = "reuse"


class Borders(StrEnum):
    """Upsampling of masks to the size of the frame."""

    bilinear = "bilinear"
    frame = "frame"


class Late(StrEnum):
    """Treatment of frames that arrive faster than they can be processed."""

    drop = "drop"
    queue = "queue"
    wait = "wait"


def segment(
    context: typer.Context,
    video: Annotated[
        str,
        typer.Argument(
            help="Video file, image, folder of frames or videos, camera such as camera:0, rtsp:// or http:// address."
        ),
    ],
    expressions: Annotated[
        list[str] | None, typer.Argument(help="One or more sentences, each in quotes.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for the results; '-' writes run-length encoded masks to standard output."
        ),
    ] = None,
    save: Annotated[
        list[Output] | None,
        typer.Option(
            "--save",
            "-s",
            help="Output: overlay (mp4), masks (indexed PNG), binary (0/255 PNG), rle (JSON lines) or cutout (PNG); or "
            "an export for other tools: ytvis, ytvos, coco, cvat, labelme, anylabeling or rerun. Repeat for several; "
            "default overlay and rle.",
        ),
    ] = None,
    model: ModelOption = "miniature",
    device: DeviceOption = None,
    dtype: Annotated[Precision, typer.Option(help="Floating-point precision of the model.")] = Precision.float32,
    clip: Annotated[
        int | None,
        typer.Option(min=1, help="Frames processed as one clip; default the model's, or 1 for cameras and streams."),
    ] = None,
    verb: Annotated[
        list[str] | None,
        typer.Option(
            help="Motion verb of a sentence, for models with a motion prompt; repeat for several; default found "
            "automatically."
        ),
    ] = None,
    sentences: Annotated[
        Path | None,
        typer.Option(help="Text file with further sentences, one per line.", show_default=False),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(help="Click 'x,y' on the object in the first frame, or 'x,y,0' beside it; repeat for several."),
    ] = None,
    box: Annotated[str | None, typer.Option(help="Box 'x0,y0,x1,y1' around the object in the first frame.")] = None,
    protocol: ProtocolOption = None,
    settings: SettingsOption = None,
    start: Annotated[
        int, typer.Option(min=0, help="First frame to process, counted from 0; results keep the video's frame numbers.")
    ] = 0,
    deinterlace: Annotated[
        bool | None,
        typer.Option(
            "--deinterlace/--no-deinterlace", help="Deinterlace frames; default if the video is marked as interlaced."
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Maximum number of frames to process.")] = None,
    live: Annotated[
        bool | None,
        typer.Option(
            "--live/--recorded", help="Treat the source as live or as recorded; default depends on the kind of source."
        ),
    ] = None,
    late: Annotated[
        Late | None,
        typer.Option(
            help="Frames that arrive too fast: drop all but the newest, queue up to 30, or wait; default drop for live "
            "sources."
        ),
    ] = None,
    reconnect: Annotated[
        bool, typer.Option("--reconnect/--no-reconnect", help="Reconnect to a live source after a lost connection.")
    ] = True,
    on_cut: Annotated[
        OnCut | None,
        typer.Option(help="At a scene cut: forget the memory, or ignore the cut; default forget for live sources."),
    ] = None,
    on_repeat: Annotated[
        OnRepeat,
        typer.Option(help="A frame that repeats the previous one: answer segments it, reuse copies the masks."),
    ] = OnRepeat.answer,
    session_file: Annotated[
        Path | None,
        typer.Option("--session", help="Session file; continue from it if it exists, and save the session to it."),
    ] = None,
    borders: Annotated[
        Borders | None,
        typer.Option(
            help="Mask borders: frame follows the edges in the frame, bilinear is as published; default the model's."
        ),
    ] = None,
    hindsight: Annotated[
        bool,
        typer.Option(
            "--hindsight",
            help="For recordings: read the video twice, decide at its end which object each sentence means, and answer "
            "from the first frame on.",
        ),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run into the same folder.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace existing results.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress bar and no summary.")] = False,
) -> None:
    """Segment the objects in a video that sentences describe.

    Example: `refervos segment dog.mp4 "the dog that jumps over the fence" --out result`
    """
    from refervos.files.writing import prepare_folder
    from refervos.loading import load
    from refervos.pipeline import PartlyWrittenError, refuse_live, segment_in_hindsight, write_all
    from refervos.pipeline import segment as run
    from refervos.prompts import Prompt, parse_box, parse_click
    from refervos.video import ReconnectPolicy, RleSink, open_source

    texts = [*(expressions or []), *(read_entries(sentences, "sentence", PromptError) if sentences else [])]
    refuse_files(expressions or [])
    prompts = [Prompt(expression, verbs=found) for expression, found in verbs_of(texts, verb)]
    if point or box:
        if len(prompts) > 1:
            raise PromptError(f"--point and --box need one sentence or none, but there are {len(prompts)}.")
        clicks = [parse_click(click, "--point") for click in point or ()]
        text = prompts[0] if prompts else None
        prompts = [
            Prompt(
                text.expression if text else None,
                text.verbs if text else None,
                points=[click[:2] for click in clicks] or None,
                labels=[click[2] for click in clicks] or None,
                box=parse_box(box, "--box") if box else None,
            )
        ]
    if hindsight and (session_file is not None or resume):
        raise PromptError(
            "--hindsight decides at the end of a recording, so that there is nothing to continue; omit --session and "
            "--resume."
        )
    to_stdout = out == Path("-")
    if to_stdout and (save not in (None, [], [Output.rle]) or resume):
        raise VideoError("--out - writes only run-length encoded masks to standard output; omit --save and --resume.")
    has_session = session_file is not None and session_file.exists()
    if not prompts and not has_session and not resume:
        raise PromptError("there is no object to segment; give a sentence in quotes, or --point or --box.")
    policies: dict[str, Any] = {"live": live, "late": late and late.value, "deinterlace": deinterlace}
    overrides = parse_settings(settings or []) | ({} if protocol is None else {"protocol": protocol})
    load_model = functools.cache(lambda: load(model, device=device, dtype=dtype.value, **overrides))

    def segment_one(video: str, out: Path | None, session_file: Path | None, resume: bool) -> None:
        interrupted = UnfinishedRun.read(out or result_folder(video)) if resume else None
        first = interrupted.frame if interrupted else start
        if interrupted:
            session_file = session_file or interrupted.session
        with ExitStack() as stack:
            # Reading a few frames ahead decodes a recording while the model runs.
            try:
                source = stack.enter_context(
                    open_source(
                        video, start=first, **policies, reconnect=ReconnectPolicy() if reconnect else None, ahead=4
                    )
                )
            except EndOfVideoError:
                if interrupted is None:
                    raise
                return interrupted.finish(quiet=quiet)
            if hindsight:
                refuse_live(source.info)
            target = out or result_folder(source.info.name)
            loaded = load_model()
            forget = on_cut is OnCut.forget if on_cut else source.info.live
            session_options: dict[str, Any] = {
                "on_cut": "forget" if forget else "ignore",
                "on_repeat": on_repeat.value,
                "borders": borders and borders.value,
                "border_cells": 3 if source.info.live else 7,  # a larger window is too slow for streams
            }
            options: dict[str, Any] = {"limit": frames, "show_progress": False if quiet else None}
            earlier = interrupted.session if interrupted else session_file
            session: Any = None
            pairs: Any = None
            if hindsight:
                reading: dict[str, Any] = {"start": first, "clip_length": clip, "deinterlace": deinterlace}
                pairs = segment_in_hindsight(loaded, video, prompts, **reading, **session_options, **options)
            elif earlier is not None and (has_session or interrupted):
                session = loaded.restore(earlier)
                session.add_missing(prompts)
            else:
                session = loaded.open(prompts, **session_options)
            # Before the first frame, check that all outputs can be written and that no other process writes there.
            if session_file is not None:
                prepare_folder(session_file.parent)
            if to_stdout:
                sinks = [RleSink(sys.stdout.buffer)]
            else:
                prepare_folder(target)
                stack.callback(FolderClaim(target, "writing results", OutputError).release)
                if not (resume or overwrite) and UnfinishedRun.session_files(target):
                    raise OutputError(
                        f"'{target}' holds an interrupted run; continue it with --resume or start over with "
                        "--overwrite."
                    )
                sinks = open_sinks(save or [Output.overlay, Output.rle], target, source, overwrite, resume)
            failed: PartlyWrittenError | None = None
            held = context.obj.held if isinstance(context.obj, StopSignals) else nullcontext
            try:
                if pairs is not None:
                    report = write_all(source, pairs, sinks, **options)
                else:
                    report = run(source, session, sinks, clip_length=clip, hold_interrupts=held, **options)
            except EndOfVideoError:
                if interrupted is None:
                    raise
                return interrupted.finish(quiet=quiet)
            except PartlyWrittenError as error:
                failed, report = error, error.report
            # The session is saved even if an output failed.
            if session_file is not None and session_file != (interrupted and interrupted.session):
                session.save(session_file)
            if not to_stdout:
                resumable = report.interrupted and not hindsight
                UnfinishedRun.write(target, session, first + report.frames if resumable else None)
        finish_run(report, failed, quiet=quiet, err=to_stdout)

    inside = videos_in(video)
    if not inside:
        return segment_one(video, out, session_file, resume)
    # Each video has its own folder of results; a failure does not affect the others.
    if session_file is not None or to_stdout:
        option = "--out -" if to_stdout else "--session"
        raise PromptError(f"'{video}' is a folder of {len(inside)} videos, but {option} needs a single video.")
    load_model()  # so that an error of the model is reported once
    failures = []
    for path, name in zip(inside, unique_names(inside), strict=True):
        target = (out or result_folder(video)) / name
        unfinished = bool(UnfinishedRun.session_files(target))
        if resume and not unfinished and target.is_dir() and any(target.iterdir()):
            continue  # already finished
        try:
            segment_one(str(path), target, None, resume and unfinished)
        except RefervosError as error:
            failures.append(path)
            print_error(str(error), 2)
    if failures:
        raise VideoError(f"{len(failures)} of the {len(inside)} videos in '{video}' could not be segmented.")


def videos_in(folder: str) -> list[Path]:
    """List the videos in a folder of videos; empty for a folder with images and for anything else."""
    from refervos.files.images import SUFFIXES

    if not folder:  # Path("") would be the current folder
        return []
    try:
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())
    except (OSError, ValueError):
        return []
    if any(path.suffix.lower() in SUFFIXES for path in files):
        return []  # a folder of frames
    return [path for path in files if path.suffix.lower() in _VIDEOS]


def unique_names(videos: list[Path]) -> list[str]:
    """Return a unique folder name for each video: the name of the file, with its suffix if needed."""
    from refervos.video.tracks import file_stem

    names = [file_stem(path.name) for path in videos]
    return [
        name if names.count(name) == 1 else f"{name}_{path.suffix[1:]}"
        for name, path in zip(names, videos, strict=True)
    ]


_VIDEOS = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".ogv"})

UNFINISHED = "unfinished.session"
"""Name of the session file that an interrupted run leaves for ``--resume``."""


@dataclass(frozen=True)
class UnfinishedRun:
    """An interrupted run that ``--resume`` can continue.

    Attributes:
        session: File with the session at the time of the interruption.
        frame: The first frame that was not segmented.
    """

    session: Path
    frame: int

    @classmethod
    def read(cls, folder: Path) -> UnfinishedRun:
        """Find the interrupted run in a folder.

        Raises:
            VideoError: When there is none.
        """
        found = cls.session_files(folder)
        if not found or not found[-1].name.partition(".")[0].isdigit():
            raise VideoError(f"'{folder}' holds no interrupted run; omit --resume to start one.")
        return cls(found[-1], int(found[-1].name.partition(".")[0]))

    def finish(self, *, quiet: bool) -> None:
        """Delete the session file of a run that was interrupted after its last frame."""
        self.session.unlink(missing_ok=True)
        if not quiet:
            typer.echo(f"nothing left to do: all {self.frame} frames were segmented before the interruption", err=True)

    @staticmethod
    def session_files(folder: Path) -> list[Path]:
        """List the session files of interrupted runs in a folder, ordered by frame."""
        return sorted(folder.glob(f"*.{UNFINISHED}"))

    @staticmethod
    def write(folder: Path, session: Any, frame: int | None) -> None:
        """Save the session for resuming at a frame, and delete older files; None only deletes."""
        older = UnfinishedRun.session_files(folder)
        kept = None if frame is None else folder / f"{frame:06d}.{UNFINISHED}"
        if kept is not None:
            session.save(kept)
        for path in older:
            if path != kept:
                path.unlink(missing_ok=True)


def refuse_files(expressions: list[str]) -> None:
    """Refuse sentences that are paths, such as the expansion of ``*.mp4`` by a shell.

    Raises:
        PromptError: When a sentence is an existing file or folder.
    """
    for expression in expressions:
        try:
            exists = len(expression) < 4096 and Path(expression).exists()
        except (OSError, ValueError):
            exists = False
        if exists and ("." in expression or os.sep in expression):
            raise PromptError(
                f"'{expression}' is a file, not a sentence; run the command once for each video, with the sentences in "
                "quotes."
            )


def verbs_of(expressions: list[str], verbs: list[str] | None) -> list[tuple[str, list[str] | None]]:
    """Assign verbs to the expressions that contain them.

    Args:
        expressions: The sentences.
        verbs: Motion verbs; None to find them automatically.

    Returns:
        Each expression with its verbs.

    Raises:
        PromptError: When no expression contains a verb.
    """
    if not verbs:
        return [(expression, None) for expression in expressions]
    words = [re.findall(r"[^\W_]+(?:['\u2019-][^\W_]+)*", expression.lower()) for expression in expressions]
    for verb in verbs:
        if not any(verb.lower() in sentence for sentence in words):
            raise PromptError(
                f"the verb {verb!r} is in no sentence; give verbs in the form in which they appear there."
            )
    return [(e, [v for v in verbs if v.lower() in sentence]) for e, sentence in zip(expressions, words, strict=True)]


def result_folder(name: str) -> Path:
    """Return the default folder for the results of a source."""
    from refervos.video.tracks import file_stem

    return Path(f"{file_stem(name)}_refervos")


def finish_run(report: RunReport, failed: PartlyWrittenError | None, *, quiet: bool, err: bool) -> None:
    """Print the warnings and the summary of a run, and end the command as the run ended.

    Args:
        report: The run.
        failed: The error of the outputs that could not be written, if any.
        quiet: Whether to leave out the summary; warnings are always printed.
        err: Whether the summary goes to standard error, because standard output has the results.

    Raises:
        PartlyWrittenError: ``failed``.
        typer.Exit: When the user stopped the run.
    """
    for warning in report.warnings:
        typer.echo(f"warning: {printable(warning)}", err=True)
    if not quiet:
        dropped = f", {report.dropped} dropped because they arrived too fast" if report.dropped else ""
        lines = [f"{report.frames} frames{dropped}{', interrupted' if report.interrupted else ''}"]
        lines += [f"  {printable(e)}: seen in {visible} of {report.frames}" for e, visible in report.visible.items()]
        lines += [f"  wrote {printable(str(path))}" for path in report.written]
        typer.echo("\n".join(lines), err=err)
    if failed is not None:
        raise failed
    if report.interrupted:
        raise typer.Exit(INTERRUPTED)


def open_sinks(outputs: list[Output], folder: Path, source: Any, overwrite: bool, resume: bool = False) -> list[Any]:
    """Open a sink for each output.

    Args:
        outputs: Kinds of output.
        folder: Folder to write to.
        source: The source; the overlay keeps its frame rate, size and sound.
        overwrite: Replace existing results.
        resume: Continue existing results; overlays and exports cannot be continued, so they start in a new folder.

    Returns:
        The sinks.
    """
    from refervos.integrations.coco import CocoSink
    from refervos.integrations.cvat.video import CvatSink
    from refervos.integrations.labelme import LabelmeSink
    from refervos.integrations.rerun import RerunSink
    from refervos.integrations.youtube_vis import YoutubeVisSink
    from refervos.integrations.youtube_vos import YoutubeVosSink
    from refervos.video import BinarySink, CutoutSink, PaletteSink, RleSink, overlay_sink

    new = next_resumed_folder(folder) if resume else folder
    makers: dict[Output, Callable[[], Any]] = {
        Output.overlay: lambda: overlay_sink(new, source.info, overwrite=overwrite),
        Output.masks: lambda: PaletteSink(folder / "masks", overwrite=overwrite, resume=resume),
        Output.binary: lambda: BinarySink(folder / "binary", overwrite=overwrite, resume=resume),
        Output.rle: lambda: RleSink(folder / "masks.jsonl", overwrite=overwrite, resume=resume, live=source.info.live),
        Output.cutout: lambda: CutoutSink(folder / "cutout", overwrite=overwrite, resume=resume),
        Output.ytvis: lambda: YoutubeVisSink(new / "ytvis", source.info, overwrite=overwrite),
        Output.ytvos: lambda: YoutubeVosSink(new / "ytvos", source.info, overwrite=overwrite),
        Output.coco: lambda: CocoSink(new / "coco", source.info, overwrite=overwrite),
        Output.cvat: lambda: CvatSink(new / "cvat", source.info, overwrite=overwrite),
        Output.labelme: lambda: LabelmeSink(new / "labelme", source.info, overwrite=overwrite),
        Output.anylabeling: lambda: LabelmeSink(
            new / "anylabeling", source.info, shapes="polygon", overwrite=overwrite
        ),
        Output.rerun: lambda: RerunSink(folder / "rerun", name=source.info.name, overwrite=overwrite, resume=resume),
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


def next_resumed_folder(folder: Path) -> Path:
    """Return the first sub-folder ``resumed-1``, ``resumed-2`` and so on that does not exist yet."""
    number = 1
    while (folder / f"resumed-{number}").exists():
        number += 1
    return folder / f"resumed-{number}"
