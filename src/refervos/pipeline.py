"""The main job: frames from a source, through a session, into sinks; written output survives any interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from refervos.errors import OutputError, RefervosError, VideoError
from refervos.ops.borders import Borders
from refervos.progress import Bar, progress
from refervos.prompts import Prompt
from refervos.segmentation import Segmentation
from refervos.session.hindsight import answer_in_hindsight, check_sentences
from refervos.session.session import OnCut, OnRepeat, Session, SessionMixin
from refervos.video import Frame, Sink, Source, SourceInfo, open_source
from refervos.video.sources import SourceSpec


@dataclass
class RunReport:
    """Summary of a run.

    Attributes:
        frames: Number of frames segmented.
        dropped: Number of frames dropped because they arrived faster than they could be processed.
        outages: How often the connection to the source was lost.
        away: Total length of all outages in seconds.
        visible: For each expression, the number of frames with a non-empty mask.
        written: Files and folders written.
        warnings: One sentence for each problem, and for each unusual property of the source.
        interrupted: Whether the user stopped the run.
    """

    frames: int = 0
    dropped: int = 0
    outages: int = 0
    away: float = 0.0
    visible: dict[str, int] = field(default_factory=dict)
    written: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    interrupted: bool = False


class PartlyWrittenError(OutputError):
    """Some outputs could not be written; the others are complete.

    Attributes:
        report: Summary of the run.
    """

    def __init__(self, sentence: str, report: RunReport) -> None:
        super().__init__(sentence)
        self.report = report


def segment_frames(
    source: Iterable[Frame],
    session: Session,
    clip_length: int | None = None,
    hold_interrupts: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[tuple[Frame, Segmentation]]:
    """Segment the frames of a source, one pair of frame and segmentation at a time.

    Gaps in the source are marked in the session, and no clip spans one.

    Args:
        source: Frames, read only as far as needed.
        session: Session with the tracks to segment.
        clip_length: Frames per clip, default the model's.
        hold_interrupts: Context entered while a clip is segmented and until all its segmentations have been consumed,
            because in between the session is ahead of the output.

    Yields:
        Each frame with its segmentation, in order.
    """
    for clip in session.chunks(source, clip_length):
        with hold_interrupts():
            for part in _split_at_gaps(clip):
                if part[0].after_gap:
                    session.mark_gap()
                yield from zip(part, session.clip([frame.image for frame in part]), strict=True)


def _split_at_gaps(clip: list[Frame]) -> Iterator[list[Frame]]:
    """Split a clip so that only the first frame of each part may follow a gap."""
    begin = 0
    for k in range(1, len(clip)):
        if clip[k].after_gap:
            yield clip[begin:k]
            begin = k
    yield clip[begin:]


def segment(
    source: Source,
    session: Session,
    sinks: Sequence[Sink],
    *,
    clip_length: int | None = None,
    limit: int | None = None,
    show_progress: bool | None = None,
    hold_interrupts: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> RunReport:
    """Segment a whole source and write the masks to sinks.

    Ctrl-C ends the run early: the output so far is finalised and reported. A sink that fails is skipped from then on;
    the run continues for the others and ends when none is left.

    Args:
        source: Source of frames.
        session: Session with the tracks to segment.
        sinks: Outputs; closed at the end, also after an error.
        clip_length: Frames per clip; default the model's for recordings and 1 for live sources, whose masks must appear
            as the frames arrive.
        limit: Maximum number of frames to read.
        show_progress: True or False; by default only if standard error is a terminal.
        hold_interrupts: See ``segment_frames``; delays an interruption there, so that the session can be resumed.

    Returns:
        Summary of the run.

    Raises:
        VideoError: When the source cannot be read.
        PartlyWrittenError: When a sink failed, after the others have been finalised.
    """
    if clip_length is None and source.info.live:
        clip_length = 1
    pairs = segment_frames(islice(source, limit), session, clip_length, hold_interrupts)
    return write_all(source, pairs, sinks, limit=limit, show_progress=show_progress)


def segment_in_hindsight(
    model: SessionMixin,
    recording: SourceSpec,
    prompts: Sequence[Prompt | str] | str,
    *,
    start: int = 0,
    limit: int | None = None,
    clip_length: int | None = None,
    deinterlace: bool | None = None,
    on_cut: OnCut = "ignore",
    on_repeat: OnRepeat = "answer",
    borders: Borders | None = None,
    border_cells: int = 7,
    show_progress: bool | None = False,
) -> Iterator[tuple[Frame, Segmentation]]:
    """Segment a recording in hindsight: decide at its end which object each sentence means, then answer from its start.

    See ``refervos.session.hindsight``. The recording is read at least twice, and nothing is returned before its end has
    been reached.

    Args:
        model: The model.
        recording: A file, folder, array or list of frames (see ``open_source``).
        prompts: One sentence or several.
        start: First frame to segment.
        limit: Maximum number of frames to segment.
        clip_length: Frames per clip; default the model's.
        deinterlace: See ``open_source``.
        on_cut: See ``Session``.
        on_repeat: See ``Session``.
        borders: See ``Session``.
        border_cells: See ``Session``.
        show_progress: True or False for a progress bar until the end has been reached; None if standard error is a
            terminal.

    Returns:
        An iterator over each frame with its segmentation, in order; it reports neither switches of the memory nor cuts.

    Raises:
        VideoError: Immediately, when the source is live, can be read only once, or is unreadable.
        PromptError: Immediately, when a prompt is not just a sentence; at the first frame, when the model refuses it.
    """
    if isinstance(recording, Iterator):
        raise VideoError(
            "the frames come from an iterator, which can be read only once, but hindsight reads a recording twice; "
            "give a file, a folder, an array or a list."
        )
    end = None if limit is None else start + limit

    def read(first: int, stop: int | None) -> Iterator[Frame]:
        last = end if stop is None else start + stop
        with open_source(recording, start=start + first, stop=last, deinterlace=deinterlace) as source:
            yield from source

    with open_source(recording, start=start, stop=end, deinterlace=deinterlace) as source:
        info = source.info
    refuse_live(info)
    sentences = check_sentences([prompts] if isinstance(prompts, str) else prompts)
    open_session = partial(model.open, on_cut=on_cut, on_repeat=on_repeat, borders=borders, border_cells=border_cells)

    def answer() -> Iterator[tuple[Frame, Segmentation]]:
        with Bar("frames", info.frame_count, show_progress, description=f"{info.name}, deciding") as bar:
            pairs = answer_in_hindsight(
                read,
                sentences,
                open_session,
                image_of=lambda frame: frame.image,
                clip_length=clip_length,
                advance=bar.advance,
            )
            first = next(pairs)  # everything is decided before it
        yield first
        yield from pairs

    return answer()


def refuse_live(info: SourceInfo) -> None:
    """Refuse to segment a live source in hindsight; VideoError when it is one."""
    if info.live:
        raise VideoError(
            f"'{info.name}' is live and can be read only once, but hindsight reads a recording twice; omit hindsight."
        )


def write_all(
    source: Source,
    pairs: Iterable[tuple[Frame, Segmentation]],
    sinks: Sequence[Sink],
    *,
    limit: int | None = None,
    show_progress: bool | None = None,
) -> RunReport:
    """Write segmented frames to sinks, as ``segment`` does.

    Args:
        source: The source, for its name, its length and its warnings.
        pairs: Its frames with their segmentations.
        sinks: Outputs; closed at the end, also after an error.
        limit: Maximum number of frames, for the progress bar.
        show_progress: True or False; by default only if standard error is a terminal.

    Returns:
        Summary of the run.

    Raises:
        VideoError: When the source cannot be read.
        PartlyWrittenError: When a sink failed, after the others have been finalised.
    """
    report = RunReport()
    failures: dict[int, Exception] = {}  # by position among the sinks
    with ExitStack() as stack:
        for position, sink in reversed(list(enumerate(sinks))):  # the last one pushed is closed first
            stack.push(_closing(sink, position, report, failures))
        counts = [count for count in (source.info.frame_count, limit) if count is not None]
        disable = None if show_progress is None else not show_progress
        try:
            for frame, segmentation in progress(pairs, min(counts, default=None), source.info.name, disable):
                for position, sink in enumerate(sinks):
                    if position not in failures:
                        _write(sink, frame, segmentation, position, failures)
                if failures and len(failures) == len(sinks):
                    break
                report.frames += 1
                pairs_of_frame = zip(segmentation.expressions, segmentation.masks, strict=True)
                visible = {expression for expression, mask in pairs_of_frame if mask.any()}
                for expression in dict.fromkeys(segmentation.expressions):  # two tracks may share an expression
                    report.visible[expression] = report.visible.get(expression, 0) + (expression in visible)
        except KeyboardInterrupt:
            report.interrupted = True
    losses = source.losses
    report.dropped, report.outages, report.away = losses.late, losses.outages, losses.away
    report.warnings.extend([*getattr(source, "notes", []), *source.warnings])
    for sink in sinks:
        report.warnings.extend(getattr(sink, "warnings", []))
    _raise_first(failures, report)
    return report


def _write(sink: Sink, frame: Frame, segmentation: Segmentation, position: int, failures: dict[int, Exception]) -> None:
    """Write to a sink; its failure must not cost the output of the others."""
    try:
        sink.write(frame, segmentation)
    except Exception as error:
        failures[position] = error


def _closing(
    sink: Sink, position: int, report: RunReport, failures: dict[int, Exception]
) -> Callable[[type[BaseException] | None, object, object], None]:
    """Return an exit callback that closes a sink, or aborts it if an error occurred before the first frame."""

    def close(kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and not report.frames:
                sink.abort()
            else:
                report.written.extend(sink.close())
        except Exception as error:
            failures.setdefault(position, error)

    return close


def _raise_first(failures: dict[int, Exception], report: RunReport) -> None:
    for error in failures.values():
        if not isinstance(error, RefervosError):
            raise error  # a bug
    if failures:
        sentences = " ".join(str(failures[position]) for position in sorted(failures))
        raise PartlyWrittenError(sentences, report) from next(iter(failures.values()))
