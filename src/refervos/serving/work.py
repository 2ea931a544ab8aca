"""What jobs do: segment a video by sentences, or write the masks of a session."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np

from refervos.pipeline import segment_frames
from refervos.segmentation import Segmentation
from refervos.serving.decoding import Decoder
from refervos.serving.jobs import Job
from refervos.serving.limits import Limits
from refervos.serving.mask_record import MaskRecord
from refervos.serving.outputs import (
    FORMATS_WITHOUT_PICTURES,
    OutputFormat,
    open_sink,
    recorded_segmentation,
    write_outputs,
)
from refervos.serving.problems import Problem
from refervos.serving.recording import Recording
from refervos.serving.videos import Video
from refervos.session.session import Session
from refervos.video import Frame, SourceInfo, palette
from refervos.video.effects import Effect
from refervos.video.overlay import Colour


@dataclass(frozen=True)
class OutputPlan:
    """What to write.

    Attributes:
        formats: The formats.
        first: First frame.
        last: Last frame; None for all.
        effects: Effects of the overlay.
        colours: Colour of each track, for effects.
        events: Events of a session.
    """

    formats: tuple[OutputFormat, ...]
    first: int = 0
    last: int | None = None
    effects: tuple[Effect, ...] = ()
    colours: dict[int, Colour] | None = None
    events: tuple[dict[str, Any], ...] = ()

    def total(self, video: Video) -> int | None:
        """Return the number of frames to write, if known."""
        if video.frame_count is None:
            return None if self.last is None else self.last - self.first + 1
        last = video.frame_count - 1 if self.last is None else min(self.last, video.frame_count - 1)
        return max(0, last - self.first + 1)


def segment_video(
    video: Video, path: Path, model: Any, expressions: Sequence[str], plan: OutputPlan, limits: Limits
) -> Callable[[Job], list[Path]]:
    """Return the work of segmenting a video.

    Args:
        video: The video.
        path: Its file.
        model: The model.
        expressions: The sentences; checked at once.
        plan: What to write.
        limits: Limits of the server.

    Returns:
        The work.

    Raises:
        PromptError: When the model does not accept a sentence.
    """
    session = Session(model, expressions)
    colours = dict(enumerate(palette(len(expressions))))
    chosen = replace(plan, colours=colours)

    def work(job: Job) -> list[Path]:
        with _Decoding(video, path, plan, limits) as frames:
            return _write(job, video, path, chosen, segment_frames(frames.read(), session))

    return work


def write_session(
    video: Video, path: Path, masks: MaskRecord, names: dict[int, str], plan: OutputPlan, limits: Limits
) -> Callable[[Job], list[Path]]:
    """Return the work of writing the masks of a session.

    Args:
        video: The session's video.
        path: Its file.
        masks: The session's masks.
        names: Name of each track to write.
        plan: What to write.
        limits: Limits of the server.

    Returns:
        The work; frames without masks are left out.
    """

    def work(job: Job) -> list[Path]:
        with _Decoding(video, path, plan, limits) as frames:

            def pairs() -> Iterator[tuple[Frame, Segmentation]]:
                for frame in frames.read():
                    record = masks.read(frame.index)
                    if record is None:
                        job.advance(frame)
                        continue
                    yield frame, _chosen(record, names)

            return _write(job, video, path, plan, pairs())

    return work


def write_live_session(
    name: str, recording: Recording, masks: MaskRecord, names: dict[int, str], plan: OutputPlan
) -> tuple[Callable[[Job], list[Path]], int]:
    """Return the work of writing the masks of a live session, with its recorded pictures where a format needs them.

    Args:
        name: Name of the source.
        recording: The session's recorded pictures.
        masks: The session's masks.
        names: Name of each track to write.
        plan: What to write.

    Returns:
        The work, and the number of frames; formats with pictures have the recorded frames only.

    Raises:
        Problem: A format needs pictures and none of the frames was recorded, or there are no masks.
    """
    bare = FORMATS_WITHOUT_PICTURES.issuperset(plan.formats)
    computed = masks.frames
    if not bare:
        recorded = set(recording.frames)
        computed = [frame for frame in computed if frame in recorded]
    chosen = [frame for frame in computed if plan.first <= frame and (plan.last is None or frame <= plan.last)]
    if not chosen:
        raise _nothing_to_write(bare)

    def pairs() -> Iterator[tuple[Frame, Segmentation]]:
        for index in chosen:
            record = masks.read(index)
            if record is None:
                continue
            image = np.zeros((*record["size"], 3), np.uint8) if bare else recording.read(index)
            if image is not None:
                yield Frame(index, image, record["time"]), _chosen(record, names)

    def work(job: Job) -> list[Path]:
        source = SourceInfo(name, frame_count=len(chosen), live=True)
        return _write_frames(job, source, plan, pairs())

    return work, len(chosen)


def _nothing_to_write(bare: bool) -> Problem:
    if bare:
        sentence = "the session has no masks in these frames; wait for some, or choose other frames."
    else:
        sentence = (
            "this format needs pictures, and those of a live session are kept only while it is recorded: press Record "
            f"(the command 'record') first, or export one of {', '.join(sorted(FORMATS_WITHOUT_PICTURES))}."
        )
    return Problem(HTTPStatus.CONFLICT, "not-recorded", sentence)


def _chosen(record: dict[str, Any], names: dict[int, str]) -> Segmentation:
    """Return the segmentation of a line of a mask record, with the named tracks only."""
    tracks = [track for track in record["tracks"] if track["id"] in names]
    return recorded_segmentation({**record, "tracks": tracks}, names)


def _write(
    job: Job, video: Video, path: Path, plan: OutputPlan, pairs: Iterator[tuple[Frame, Segmentation]]
) -> list[Path]:
    rate = None if not video.fps else Fraction(video.fps).limit_denominator(1001)
    name = Path(video.name).stem or "video"
    source = SourceInfo(
        name, video.width, video.height, rate, video.frame_count, path=path, start_time=video.start_time
    )
    return _write_frames(job, source, plan, pairs)


def _write_frames(
    job: Job, source: SourceInfo, plan: OutputPlan, pairs: Iterator[tuple[Frame, Segmentation]]
) -> list[Path]:
    sinks = [
        open_sink(kind, job.folder, source, effects=plan.effects, colours=plan.colours, events=plan.events)
        for kind in dict.fromkeys(plan.formats)
    ]
    return write_outputs(pairs, sinks, job.advance)


class _Decoding:
    """The frames of a plan's range, decoded in a process of their own."""

    def __init__(self, video: Video, path: Path, plan: OutputPlan, limits: Limits) -> None:
        self._plan = plan
        self._decoder = Decoder(limits)
        try:
            self._decoder.open(str(path), plan.first, video.name)
        except BaseException:
            self._decoder.close()
            raise

    def read(self) -> Iterator[Frame]:
        """Yield the frames."""
        while (frame := self._decoder.next()) is not None:
            if self._plan.last is not None and frame.index > self._plan.last:
                return
            yield frame

    def __enter__(self) -> _Decoding:
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()
