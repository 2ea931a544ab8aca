"""Outputs of exports and jobs: which formats there are, and the sinks that write them."""

from __future__ import annotations

import contextlib
import csv
import io
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from refervos.files.writing import write_atomically
from refervos.integrations.coco import CocoSink
from refervos.integrations.cvat.video import CvatSink
from refervos.integrations.labelme import LabelmeSink
from refervos.integrations.youtube_vis import YoutubeVisSink
from refervos.integrations.youtube_vos import YoutubeVosSink
from refervos.segmentation import Segmentation
from refervos.video import CutoutSink, Frame, OverlaySink, PaletteSink, RleSink, Sink, SourceInfo
from refervos.video.closing import Closing
from refervos.video.effects import Effect, apply_effects
from refervos.video.overlay import Colour

OutputFormat = Literal[
    "overlay", "rle", "png", "cutout", "ytvis", "ytvos", "coco", "cvat", "labelme", "anylabeling", "events"
]
OUTPUT_FORMATS: tuple[str, ...] = get_args(OutputFormat)

FORMATS_WITHOUT_PICTURES = frozenset({"rle", "png", "cvat", "events"})
"""Formats that are written from masks alone."""

_PRESENT = 0.5
"""Presence from which an object counts as visible."""


class EffectsSink(Closing):
    """Sink for a video with effects applied.

    Args:
        path: The mp4 file.
        source: Information about the source, for its frame rate and its sound.
        effects: The effects.
        colours: Colour of each track.
    """

    def __init__(self, path: Path, source: SourceInfo, effects: Sequence[Effect], colours: dict[int, Colour]) -> None:
        self._video = OverlaySink(path, source, legend=False)
        self._effects, self._colours = effects, colours

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Write the next frame."""
        colours = [self._colours[track] for track in segmentation.track_ids]
        image = apply_effects(frame.image, list(segmentation.masks), colours, self._effects)
        self._video.write(replace(frame, image=image), without_tracks(segmentation))

    def close(self) -> list[Path]:
        """Finish the video."""
        return self._video.close()

    def abort(self) -> None:
        """Delete the unfinished video."""
        self._video.abort()


class EventsSink(Closing):
    """Sink for a CSV table of when each object appears and disappears, and of the events of a session.

    Args:
        path: The file.
        events: Corrections, switches, cuts and alerts of the session.
    """

    def __init__(self, path: Path, events: Iterable[dict[str, Any]] = ()) -> None:
        self._path = path
        self._events = list(events)
        self._rows: list[tuple[int, float | None, str, str, str]] = []
        self._visible: dict[int, bool] = {}
        self._names: dict[int, str] = {}
        self._closed = False

    def write(self, frame: Frame, segmentation: Segmentation) -> None:
        """Note the changes of one frame."""
        rows = zip(segmentation.track_ids, segmentation.expressions, segmentation.presence, strict=True)
        for track, expression, presence in rows:
            self._names[track] = expression
            visible = bool(presence >= _PRESENT)
            if visible != self._visible.get(track, False):
                self._visible[track] = visible
                kind = "appears" if visible else "disappears"
                self._rows.append((frame.index, frame.time, kind, str(track), expression))

    def close(self) -> list[Path]:
        """Write the table; safe to call twice."""
        if self._closed:
            return [self._path]
        self._closed = True
        for event in self._events:
            track = event.get("track")
            name = "" if track is None else self._names.get(track, "")
            shown = "" if track is None else str(track)
            self._rows.append((event["frame"], event.get("time"), event["kind"], shown, name))
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["frame", "time", "event", "track", "expression"])
        for frame, time, kind, track, expression in sorted(self._rows, key=lambda row: row[0]):
            table.writerow([frame, "" if time is None else f"{time:.3f}", kind, track, _as_text(expression)])
        write_atomically(self._path, text.getvalue().encode("utf-8", "replace"))
        return [self._path]

    def abort(self) -> None:
        """Write nothing."""
        self._closed = True


def _as_text(value: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def without_tracks(segmentation: Segmentation) -> Segmentation:
    """Return a segmentation of no object, for a frame that is already drawn."""
    return replace(
        segmentation,
        track_ids=(),
        expressions=(),
        masks=segmentation.masks[:0],
        presence=segmentation.presence[:0],
        switched=segmentation.switched[:0],
        logits=None,
    )


def open_sink(
    kind: OutputFormat,
    folder: Path,
    source: SourceInfo,
    *,
    effects: Sequence[Effect] = (),
    colours: dict[int, Colour] | None = None,
    events: Iterable[dict[str, Any]] = (),
) -> Sink:
    """Open the sink of a format.

    Args:
        kind: The format.
        folder: Folder to write to; exists.
        source: Information about the source.
        effects: Effects of ``overlay``; none for masks with outlines and a legend.
        colours: Colour of each track, for effects.
        events: Events of a session, for ``events``.

    Returns:
        The sink, which leaves one file or one folder in the folder.
    """
    if kind == "overlay":
        if effects:
            return EffectsSink(folder / "overlay.mp4", source, effects, colours or {})
        return OverlaySink(folder / "overlay.mp4", source)
    makers: dict[str, Callable[[], Sink]] = {
        "rle": lambda: RleSink(folder / "masks.jsonl"),
        "png": lambda: PaletteSink(folder / "png"),
        "cutout": lambda: CutoutSink(folder / "cutout"),
        "events": lambda: EventsSink(folder / "events.csv", events),
        "ytvis": lambda: YoutubeVisSink(folder / "youtube-vis", source),
        "ytvos": lambda: YoutubeVosSink(folder / "youtube-vos", source),
        "coco": lambda: CocoSink(folder / "coco", source),
        "cvat": lambda: CvatSink(folder / "cvat", source),
        "labelme": lambda: LabelmeSink(folder / "labelme", source),
        "anylabeling": lambda: LabelmeSink(folder / "anylabeling", source, shapes="polygon"),
    }
    return makers[kind]()


def write_outputs(
    pairs: Iterable[tuple[Frame, Segmentation]], sinks: Sequence[Sink], advance: Callable[[Frame], None]
) -> list[Path]:
    """Write frames with their segmentations to sinks; folders become zip files.

    Args:
        pairs: The frames.
        sinks: The sinks; closed at the end, or aborted after an error.
        advance: Called after each frame; may raise to end the work.

    Returns:
        The files written.
    """
    with contextlib.ExitStack() as stack:
        for sink in sinks:
            stack.callback(sink.abort)  # does nothing to a sink that was closed
        for frame, segmentation in pairs:
            for sink in sinks:
                sink.write(frame, segmentation)
            advance(frame)
        written = [path for sink in sinks for path in sink.close()]
    return [_zipped(path) if path.is_dir() else path for path in written]


def _zipped(folder: Path) -> Path:
    """Pack a folder of images into a zip file beside it."""
    packed = folder.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # PNG is compressed already
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return packed


def recorded_segmentation(record: dict[str, Any], names: dict[int, str]) -> Segmentation:
    """Return the segmentation that a line of a mask record describes.

    Args:
        record: The line.
        names: Name of each track.

    Returns:
        The segmentation.
    """
    from refervos.serving.mask_record import decode_counts

    height, width = record["size"]
    tracks = record["tracks"]
    masks = np.zeros((len(tracks), height, width), bool)
    for row, track in enumerate(tracks):
        masks[row] = decode_counts(track["counts"], height, width)
    return Segmentation(
        frame_index=record["frame"],
        track_ids=tuple(track["id"] for track in tracks),
        expressions=tuple(names.get(track["id"], "") for track in tracks),
        masks=masks,
        presence=np.array([track["presence"] for track in tracks], np.float32),
        switched=np.zeros(len(tracks), bool),
    )
