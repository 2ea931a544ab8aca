"""The main job: frames from a source, through a session, into sinks; what is written survives any interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from refervos.errors import OutputError, RefervosError
from refervos.progress import progress
from refervos.segmentation import Segmentation
from refervos.session.session import Session
from refervos.video import Frame, Sink, Source


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        frames: Frames answered.
        dropped: Frames that came faster than they could be answered and were left out.
        outages: Times that the source went away.
        away: Seconds that it was away, all outages together.
        visible: For each expression, the frames in which its mask is not empty.
        written: Files and folders.
        warnings: Sentences about what was not as it should be, and about how the source was read.
        interrupted: Whether the user stopped it.
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
        report: What was done.
    """

    def __init__(self, sentence: str, report: RunReport) -> None:
        super().__init__(sentence)
        self.report = report


def segment_frames(
    source: Iterable[Frame],
    session: Session,
    clip_length: int | None = None,
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[tuple[Frame, Segmentation]]:
    """Pair each frame of a source with its answer.

    The session is told before a frame that comes after a gap, and no clip reaches over one.

    Args:
        source: Frames, read only as far as needed.
        session: What is followed.
        clip_length: Frames looked at together, default the model's.
        held: Entered from when a clip is answered until all its answers have been taken, for in between the session has
            seen more than has come out.

    Yields:
        A frame and its answer, in order.
    """
    for clip in session.chunks(source, clip_length):
        with held():
            for seen in _unbroken(clip):
                if seen[0].after_gap:
                    session.mark_gap()
                yield from zip(seen, session.clip([frame.image for frame in seen]), strict=True)


def _unbroken(clip: list[Frame]) -> Iterator[list[Frame]]:
    """A clip in pieces of which only the first frame may come after a gap."""
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
    held: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> RunReport:
    """Segment a whole source into sinks.

    Ctrl-C ends the run early: what was written until then is finished properly and reported. A sink that fails is left
    out from then on; the run goes on for the others and ends where there are none.

    Args:
        source: Where frames come from.
        session: What is followed.
        sinks: Where answers go; closed at the end, also after an error.
        clip_length: Frames looked at together; default the model's for recordings and 1 for live sources, whose masks
            must come out as the frames arrive.
        limit: Frames to answer at most; no further one is read.
        show_progress: True or False; default when standard error is a terminal.
        held: See ``segment_frames``; keeps an interruption waiting there, so that the session can be resumed.

    Returns:
        What was done.

    Raises:
        VideoError: When the source cannot be read.
        PartlyWrittenError: When a sink could not be written, after the others have been finished.
    """
    if clip_length is None and source.info.live:
        clip_length = 1
    report = RunReport()
    failures: dict[int, Exception] = {}  # by place among the sinks
    with ExitStack() as stack:
        for place, sink in reversed(list(enumerate(sinks))):  # the last pushed ends first
            stack.push(_ending(sink, place, report, failures))
        pairs = segment_frames(islice(source, limit), session, clip_length, held)
        counts = [count for count in (source.info.frame_count, limit) if count is not None]
        disable = None if show_progress is None else not show_progress
        try:
            for frame, answer in progress(pairs, min(counts, default=None), source.info.name, disable):
                for place, sink in enumerate(sinks):
                    if place not in failures:
                        _write(sink, frame, answer, place, failures)
                if failures and len(failures) == len(sinks):
                    break
                report.frames += 1
                shown = {e for e, mask in zip(answer.expressions, answer.masks, strict=True) if mask.any()}
                for expression in dict.fromkeys(answer.expressions):  # a sentence may be asked twice
                    report.visible[expression] = report.visible.get(expression, 0) + (expression in shown)
        except KeyboardInterrupt:
            report.interrupted = True
    losses = source.losses
    report.dropped, report.outages, report.away = losses.late, losses.outages, losses.away
    report.warnings.extend([*getattr(source, "notes", []), *source.warnings])
    for sink in sinks:
        report.warnings.extend(getattr(sink, "warnings", []))
    _raise_first(failures, report)
    return report


def _write(sink: Sink, frame: Frame, answer: Segmentation, place: int, failures: dict[int, Exception]) -> None:
    """Writes into a sink; one that fails must not cost what the others hold."""
    try:
        sink.write(frame, answer)
    except Exception as error:
        failures[place] = error


def _ending(
    sink: Sink, place: int, report: RunReport, failures: dict[int, Exception]
) -> Callable[[type[BaseException] | None, object, object], None]:
    """What to do with a sink at the end: finish it, or leave no trace where an error came before the first answer."""

    def end(kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is not None and not report.frames:
                sink.abort()
            else:
                report.written.extend(sink.close())
        except Exception as error:
            failures.setdefault(place, error)

    return end


def _raise_first(failures: dict[int, Exception], report: RunReport) -> None:
    for error in failures.values():
        if not isinstance(error, RefervosError):
            raise error  # a fault of the program
    if failures:
        sentences = " ".join(str(failures[place]) for place in sorted(failures))
        raise PartlyWrittenError(sentences, report) from next(iter(failures.values()))
