"""Streams that break, hurry, stall and change, from real servers on this machine and from stand-ins without waiting."""

from __future__ import annotations

import http.server
import io
import json
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from refervos.cli import entry as cli
from refervos.errors import VideoError
from refervos.pipeline import PartlyWrittenError, segment
from refervos.video import (
    BinarySink,
    CutoutSink,
    Frame,
    Losses,
    OverlaySink,
    PaletteSink,
    ReconnectPolicy,
    RleSink,
    SourceInfo,
    open_source,
)
from refervos.video import buffered as buffered_module
from refervos.video import media as media_module
from refervos.video import sources as sources_module
from refervos.video.buffered import BufferedReader
from refervos.video.live import LiveReader
from refervos.video.reader import Reader
from refervos.video.sources import DEFAULT_RECONNECT
from refervos.video.timeline import Timeline
from video_files import box_masks, decode, number_of, picture, segmentation, write_video

# Stand-ins


class Played(Reader):
    """A source that gives prepared frames, runs a function before each, and may end with an error."""

    described = "'the camera'"
    damaged = 0
    heard = 100.0

    def __init__(
        self,
        frames: list[Frame],
        before: Callable[[int], object] = lambda index: None,
        error: BaseException | None = None,
        end: str | None = None,
        live: bool = True,
    ) -> None:
        super().__init__(SourceInfo("played", 64, 48, Fraction(10), live=live))
        self._played, self._before, self._error, self.end = frames, before, error, end
        self.closed = threading.Event()

    def _generate(self) -> Generator[Frame, None, None]:
        for k, frame in enumerate(self._played):
            self._before(k)
            yield frame
        self._before(len(self._played))
        if self._error is not None:
            raise self._error

    def _release(self) -> None:
        self.closed.set()


def frames_of(count: int, **changes: Any) -> list[Frame]:
    return [replace(Frame(k, picture(k), time=k / 10), **changes) for k in range(count)]


class Clock:
    """A clock that moves only when somebody waits."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.now += seconds
        return False


def reconnecting(
    connections: list[Played | None], reconnect: ReconnectPolicy | None = DEFAULT_RECONNECT, **options: Any
) -> tuple[LiveReader, Clock]:
    """A reader of connections that come one after the other; None is an attempt that nobody answers."""
    clock = Clock()
    left = iter(connections)

    def connect() -> Any:
        connection = next(left, None)
        if connection is None:
            raise VideoError("nobody answers.")
        connection.heard = clock.now
        return connection

    reader = LiveReader(connect, connect(), reconnect, clock=clock, pause=clock.pause, **options)
    return reader, clock


# Away and back


def test_indices_and_times_go_on_over_a_gap_which_is_told() -> None:
    first, second = Played(frames_of(3), end="Connection reset"), Played(frames_of(2))
    reader, clock = reconnecting([first, None, None, second], ReconnectPolicy(give_up=10))
    frames = list(islice(reader, 5))
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 0, 1]
    assert [frame.after_gap for frame in frames] == [False, False, False, True, False]
    assert clock.waits == [0.5, 1, 2]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 3.7, 3.8])
    assert reader.losses == Losses(outages=1, away=3.5)
    assert reader.warnings == ["'the camera' went away once, for 3.5 seconds in all."]
    assert first.closed.is_set()


def test_waits_grow_up_to_a_limit_until_patience_ends() -> None:
    reader, clock = reconnecting([Played(frames_of(3), end="Connection reset")])
    assert len(list(reader)) == 3
    assert clock.waits == [0.5, 1, 2, 4, 8, 16, *[30] * 8]
    assert reader.losses == Losses(outages=1, away=271.5)
    assert reader.warnings[-1] == (
        "'the camera' broke off after 3 frames (Connection reset) and did not come back within 300 seconds."
    )


def test_each_outage_is_waited_for_anew_and_counted() -> None:
    reader, clock = reconnecting(
        [Played(frames_of(1)), None, Played(frames_of(1)), Played(frames_of(1)), None], ReconnectPolicy(give_up=1.5)
    )
    assert [frame.after_gap for frame in reader] == [False, True, True]
    assert clock.waits == [0.5, 1, 0.5, 0.5, 1]
    assert reader.losses == Losses(outages=3, away=3.5)


def test_without_reconnecting_a_stream_ends_where_it_breaks() -> None:
    reader, clock = reconnecting([Played(frames_of(3), end="Connection reset"), Played(frames_of(3))], None)
    assert len(list(reader)) == 3
    assert clock.waits == []
    assert reader.warnings == ["'the camera' broke off after 3 frames: Connection reset."]
    assert reader.losses == Losses()


def test_damage_of_all_connections_is_one_warning() -> None:
    connections = [Played(frames_of(2)) for _ in range(3)]
    for connection in connections:
        connection.damaged = 2
    reader, _ = reconnecting([*connections], ReconnectPolicy(give_up=1))
    list(reader)
    assert reader.warnings[0] == "'the camera': 6 damaged packets were skipped, whose frames are missing."


def test_range_counts_over_connections() -> None:
    def connections() -> list[Played | None]:
        return [Played(frames_of(3)), Played(frames_of(3)), Played(frames_of(3))]

    reader, clock = reconnecting(connections(), start=4, stop=6)
    assert [(frame.index, number_of(frame.image)) for frame in reader] == [(4, 1), (5, 2)]
    assert len(clock.waits) == 1  # a stop at the end of a connection asks for no other
    reader, _ = reconnecting(connections(), ReconnectPolicy(give_up=0), start=4)
    with pytest.raises(VideoError, match="gave 3 frames, so there is none from frame 4 on"):
        list(reader)


def test_waits_that_cannot_be_followed() -> None:
    for options in ({"first": 0}, {"factor": 0.5}, {"longest": 0.1}, {"give_up": -1}):
        with pytest.raises(VideoError, match="cannot be followed"):
            ReconnectPolicy(**options)


def test_first_connection_is_waited_for_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[None] = []

    def connect(*_: Any, **__: Any) -> Played:
        attempts.append(None)
        if len(attempts) % 4:
            raise VideoError("nobody answers.")
        return Played(frames_of(2))

    monkeypatch.setattr("refervos.video.sources.open_url", connect)
    with pytest.raises(VideoError, match="nobody answers"):
        open_source("rtsp://host/stream")
    assert len(attempts) == 1
    with open_source(
        "rtsp://host/stream", reconnect=ReconnectPolicy(first=0.001, give_up=5, wait=True), late="wait"
    ) as source:
        assert next(iter(source)).index == 0
    assert len(attempts) == 4
    with pytest.raises(VideoError, match="nobody answers"):
        open_source("rtsp://host/stream", reconnect=ReconnectPolicy(first=0.001, give_up=0, wait=True))
    with pytest.raises(VideoError, match="unknown scheme gopher"):
        open_source("gopher://host/stream", reconnect=ReconnectPolicy(give_up=5, wait=True))


# Too fast


def read_late(frames: list[Frame], capacity: int) -> tuple[list[Frame], BufferedReader]:
    """What is left of frames that all come before the second is asked for."""
    asked = threading.Event()
    source = Played(frames, lambda index: index == 1 and asked.wait(10))
    reader = BufferedReader(source, capacity, drops=True)
    first = next(reader)
    asked.set()
    assert source.closed.wait(10)
    return [first, *reader], reader


def test_newest_frame_wins_and_the_dropped_are_counted() -> None:
    frames, reader = read_late(frames_of(10), 1)
    assert [frame.index for frame in frames] == [0, 9]
    assert reader.losses == Losses(late=8)


def test_queue_drops_its_oldest() -> None:
    frames, reader = read_late(frames_of(10), 3)
    assert [frame.index for frame in frames] == [0, 7, 8, 9]
    assert reader.losses == Losses(late=6)


def test_nothing_comes_too_fast_before_the_first_frame_is_asked_for() -> None:
    source = Played(frames_of(10))
    reader = BufferedReader(source, 1, drops=True)
    assert source.closed.wait(10)
    assert [frame.index for frame in reader] == [9]
    assert reader.losses == Losses()


@pytest.mark.parametrize("capacity", [1, 3])
def test_gap_is_told_even_where_its_frame_is_dropped(capacity: int) -> None:
    frames = frames_of(10)
    frames[4] = replace(frames[4], after_gap=True)
    left, _ = read_late(frames, capacity)
    assert [frame.after_gap for frame in left] == [False, True, *[False] * (capacity - 1)]


def test_frames_read_ahead_are_the_same_bits(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 20)
    with open_source(path) as one, open_source(path, ahead=3) as other:
        pairs = list(zip(one, other, strict=True))
        assert one.info == other.info
    assert len(pairs) == 20
    for plain, early in pairs:
        assert (plain.index, plain.time) == (early.index, early.time)
        assert np.array_equal(plain.image, early.image)


def test_no_more_frames_are_read_ahead_than_asked_for() -> None:
    asked: list[int] = []
    full = threading.Event()

    def note(index: int) -> None:
        asked.append(index)
        if index == 4:
            full.set()

    source = Played(frames_of(10), note)
    with BufferedReader(source, 3, drops=False) as reader:
        next(reader)
        assert full.wait(10)  # one given, three waiting, and one for which there is no room
        assert not source.closed.wait(0.05)
        assert asked == [0, 1, 2, 3, 4]
    assert source.closed.is_set()


@pytest.mark.parametrize("error", [VideoError("the folder fell over."), KeyboardInterrupt(), RuntimeError("other")])
def test_what_the_source_raises_comes_after_the_frames_before_it(error: BaseException) -> None:
    reader = BufferedReader(Played(frames_of(3), error=error), 5, drops=False)
    assert [next(reader).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)) as caught:
        next(reader)
    assert caught.value is error


def test_a_source_that_hangs_does_not_keep_anybody_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffered_module, "_JOIN_TIMEOUT", 0.01)
    stuck = threading.Event()
    source = Played(frames_of(3), lambda index: index == 1 and stuck.wait())
    reader = BufferedReader(source, 1, drops=True)
    assert next(reader).index == 0
    reader.close()
    assert list(reader) == []
    assert not source.closed.is_set()
    stuck.set()
    assert source.closed.wait(10)  # by its own thread, as soon as that can


def test_closing_ends_the_waiting_for_a_source_that_is_away() -> None:
    ended = threading.Event()
    away = threading.Event()

    def pause(seconds: float) -> bool:
        away.set()
        return ended.wait(60)

    def connect() -> Any:
        raise VideoError("nobody answers.")

    first: Any = Played(frames_of(1))
    reader = BufferedReader(LiveReader(connect, first, DEFAULT_RECONNECT, pause=pause), 1, drops=True, ended=ended)
    assert next(reader).index == 0
    assert away.wait(10)
    reader.close()
    reader._thread.join(10)
    assert not reader._thread.is_alive()


def test_policies_by_source(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 5)

    def read(spec: Any, **options: Any) -> int:
        with open_source(spec, **options) as source:
            if isinstance(source, BufferedReader):
                source._thread.join(10)  # all frames have come before the first is asked for
            return len(list(source))

    assert read(path) == 5
    assert read(path, late="drop") == 1
    assert read(iter([picture(k) for k in range(40)])) == 40
    assert read(iter([picture(k) for k in range(40)]), live=True) == 1
    assert read(iter([picture(k) for k in range(40)]), live=True, late="queue") == 30
    assert read(iter([picture(k) for k in range(40)]), live=True, late="wait") == 40
    for options, words in (
        ({"late": "later"}, "late is 'later'"),
        ({"ahead": -1}, "ahead is -1"),
        ({"live": True}, "is a recording"),
    ):
        with pytest.raises(VideoError, match=words):
            open_source(path, **options)


# Through the pipeline


class Listening:
    """A session that answers with nothing and notes what it is given."""

    def __init__(self, clip_length: int = 1) -> None:
        self.clip_length = clip_length
        self.heard: list[Any] = []

    def chunks(self, frames: Iterator[Frame], clip_length: int | None = None) -> Iterator[list[Frame]]:
        clip: list[Frame] = []
        for frame in frames:
            clip.append(frame)
            if len(clip) == (clip_length or self.clip_length):
                yield clip
                clip = []
        if clip:
            yield clip

    def clip(self, images: list[np.ndarray]) -> list[Any]:
        self.heard.append([number_of(image) for image in images])
        return [segmentation(0, np.zeros((1, *image.shape[:2]), bool)) for image in images]

    def mark_gap(self) -> None:
        self.heard.append("gap")


def test_session_hears_of_a_gap_before_the_frame_after_it() -> None:
    reader, _ = reconnecting([Played(frames_of(2)), Played(frames_of(2))], stop=4)
    session: Any = Listening()
    report = segment(reader, session, [])
    assert session.heard == [[0], [1], "gap", [0], [1]]
    assert (report.frames, report.dropped, report.outages, report.away) == (4, 0, 1, 0.5)


def test_no_clip_reaches_over_a_gap() -> None:
    frames = frames_of(6)
    frames[2] = replace(frames[2], after_gap=True)
    session: Any = Listening(4)
    assert segment(Played(frames, live=False), session, []).frames == 6
    assert session.heard == [[0, 1], "gap", [2, 3], [4, 5]]


def test_dropped_frames_are_reported_and_a_limit_asks_for_no_more() -> None:
    answering, dropped, more = threading.Event(), threading.Event(), threading.Event()

    def before(index: int) -> None:
        if index == 1:
            answering.wait(10)
        if index == 5:
            dropped.set()
            more.wait(10)

    reader = BufferedReader(Played(frames_of(6), before), 1, drops=True)

    class Slow(Listening):
        def clip(self, images: list[np.ndarray]) -> list[Any]:
            answering.set()
            dropped.wait(10)
            return super().clip(images)

    session: Any = Slow()
    report = segment(reader, session, [], limit=2)  # the frame after these two comes only when the test is over
    more.set()
    reader.close()
    assert session.heard == [[0], [4]]
    assert (report.frames, report.dropped) == (2, 3)


# Outputs that fail


class Answering(Listening):
    """A session whose answers can be written."""

    def clip(self, images: list[np.ndarray]) -> list[Any]:
        return [segmentation(0, box_masks(64, 48)) for _ in images]


class Failing:
    """A sink that takes so many frames, and then fails as told; or fails at the end."""

    def __init__(self, frames: int, error: Exception, at_end: bool = False) -> None:
        self.frames, self.error, self.at_end = frames, error, at_end
        self.closed = self.aborted = 0

    def write(self, frame: Frame, _: Any) -> None:
        if frame.index >= self.frames and not self.at_end:
            raise self.error

    def close(self) -> list[Path]:
        self.closed += 1
        if self.at_end:
            raise self.error
        return []

    def abort(self) -> None:
        self.aborted += 1


@pytest.mark.parametrize("frames", [0, 1, 3])
@pytest.mark.parametrize("at_end", [False, True])
def test_a_sink_that_fails_does_not_lose_the_others(tmp_path: Path, frames: int, at_end: bool) -> None:
    broken: Any = Failing(frames, VideoError("'o.mp4' cannot be written on."), at_end)
    sinks: list[Any] = [RleSink(tmp_path / "a.jsonl"), broken, RleSink(tmp_path / "b.jsonl")]
    session: Any = Answering()
    with pytest.raises(PartlyWrittenError, match=r"'o\.mp4' cannot be written on\.$") as caught:
        segment(Played(frames_of(6), live=False), session, sinks)
    for name in "ab":
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["frame"] for line in lines] == [0, 1, 2, 3, 4, 5]
    report = caught.value.report
    assert (report.frames, report.interrupted) == (6, False)
    assert report.written == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert broken.closed == 1


def test_a_run_ends_where_no_sink_is_left(tmp_path: Path) -> None:
    heard = Played(frames_of(6), live=False)
    session: Any = Answering()
    sinks: list[Any] = [Failing(2, VideoError("a is full.")), Failing(3, VideoError("b is full."))]
    with pytest.raises(PartlyWrittenError, match=r"a is full\. b is full\.") as caught:
        segment(heard, session, sinks)
    assert caught.value.report.frames == 3
    assert next(iter(heard)).index > 3


def test_a_sink_that_fails_by_a_fault_of_the_program_does_not_lose_the_others(tmp_path: Path) -> None:
    sinks: list[Any] = [Failing(1, RuntimeError("a fault")), RleSink(tmp_path / "a.jsonl")]
    session: Any = Answering()
    with pytest.raises(RuntimeError, match="a fault"):
        segment(Played(frames_of(4), live=False), session, sinks)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 4


def test_a_source_that_fails_keeps_what_was_written_and_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    def breaks(index: int) -> None:
        if index == at:
            raise VideoError("frame is damaged.")

    for at, count in ((3, 3), (0, 0)):
        path = tmp_path / f"{at}.jsonl"
        session: Any = Answering(1)
        with pytest.raises(VideoError, match="frame is damaged"):
            segment(Played(frames_of(6), breaks, live=False), session, [RleSink(path)])
        assert (len(path.read_text().splitlines()) if path.exists() else 0) == count
    assert [path.name for path in tmp_path.iterdir()] == ["3.jsonl"]


def test_how_a_source_is_read_is_told_in_the_report(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "1.png")
    (tmp_path / "notes.txt").touch()
    session: Any = Answering()
    with open_source(tmp_path, ahead=2) as source:
        report = segment(source, session, [])
    assert report.warnings == [f"'{tmp_path}' holds notes.txt, which is not read."]


# Sizes that change, packets that are missing, clocks that leap


def transport(path: Path, count: int, **options: Any) -> Path:
    """An MPEG transport stream, as broadcasters and cameras send it."""
    return write_video(path, count, options={"crf": "5", "preset": "ultrafast", "bf": "0"}, **options)


def test_outputs_follow_a_size_that_changes_in_mid_stream(tmp_path: Path) -> None:
    first = transport(tmp_path / "a.ts", 4)
    second = transport(tmp_path / "b.ts", 3, width=96, height=80)
    joined = tmp_path / "ab.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    sinks: list[Any] = [
        OverlaySink(tmp_path / "o.mp4"),
        PaletteSink(tmp_path / "masks"),
        BinarySink(tmp_path / "binary"),
        CutoutSink(tmp_path / "cutout"),
        RleSink(tmp_path / "masks.jsonl"),
    ]
    sizes = []
    with open_source(joined) as source:
        for frame in source:
            height, width = frame.image.shape[:2]
            sizes.append((width, height))
            for sink in sinks:
                sink.write(frame, segmentation(frame.index, box_masks(width, height)))
    for sink in sinks:
        sink.close()
    assert sizes == [(64, 48)] * 4 + [(96, 80)] * 3
    for folder in ("masks", "binary/0", "cutout/0"):
        assert [Image.open(path).size for path in sorted((tmp_path / folder).iterdir())] == sizes
    lines = [json.loads(line) for line in (tmp_path / "masks.jsonl").read_text().splitlines()]
    assert [tuple(line["size"][::-1]) for line in lines] == sizes
    images, times = decode(tmp_path / "o.mp4")
    assert {image.shape for image in images} == {(48, 64, 3)}
    assert len(images) == 7
    assert times == sorted(times)
    left, right = images[4][:, :2], images[4][:, -2:]  # 96x80 leaves bars at the sides of 64x48
    assert left.max() < 40
    assert right.max() < 40
    assert images[3][:, :2].max() > 40
    assert sinks[0].warnings == [
        f"Frames of other sizes than 64x48, such as frame 4 of 96x80, were fitted into '{tmp_path / 'o.mp4'}' "
        "with black bars."
    ]


def without_packets(path: Path, lost: Callable[[int], bool]) -> Path:
    """The same stream with some of its packets of 188 bytes lost, as on a bad line."""
    data = path.read_bytes()
    packets = [data[k : k + 188] for k in range(0, len(data), 188)]
    target = path.with_name(f"lossy-{path.name}")
    target.write_bytes(b"".join(packet for k, packet in enumerate(packets) if not lost(k)))
    return target


def test_lost_packets_do_not_end_a_stream(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [np.clip(picture(k) + rng.integers(0, 40, (48, 64, 1)), 0, 255).astype(np.uint8) for k in range(40)]
    path = without_packets(transport(tmp_path / "v.ts", 40, images=images, gop=5), lambda k: k > 50 and k % 37 == 0)
    with open_source(path) as source, OverlaySink(tmp_path / "o.mp4", source.info) as sink:
        frames = list(source)
        for frame in frames:
            sink.write(frame, segmentation(frame.index, box_masks(64, 48)))
    assert 20 <= len(frames) <= 40
    assert [frame.index for frame in frames] == list(range(len(frames)))
    times = [frame.time or 0.0 for frame in frames]
    assert times == sorted(times)
    assert 3 <= times[-1] < 4.2
    assert len(decode(tmp_path / "o.mp4")[0]) == len(frames)


def test_frames_sent_twice_are_shown_twice(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "v.mkv", 5, times=[0.0, 0.1, 0.1, 0.1, 0.2], codec="ffv1", pix_fmt="yuv444p", options={}
    )
    with open_source(path) as source, OverlaySink(tmp_path / "o.mp4", source.info) as sink:
        frames = list(source)
        for frame in frames:
            sink.write(frame, segmentation(frame.index, box_masks(64, 48)))
    assert len(frames) == 5
    times = [frame.time or 0.0 for frame in frames]
    assert times == sorted(times)
    assert len(decode(tmp_path / "o.mp4")[0]) == 5


def test_clock_that_is_set_anew_in_mid_stream(tmp_path: Path) -> None:
    first = transport(tmp_path / "a.ts", 4, video_first=500.0)
    second = transport(tmp_path / "b.ts", 4, video_first=3.0)
    third = transport(tmp_path / "c.ts", 4, video_first=50_000.0)
    joined = tmp_path / "abc.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes() + third.read_bytes())
    with open_source(joined) as source:
        times = [frame.time or 0.0 for frame in source]
    assert len(times) == 12
    assert times == sorted(times)
    # How long the frames at the seams were shown is a guess.
    for k in (0, 4, 8):
        assert np.diff(times[k : k + 4]) == pytest.approx([0.1] * 3, abs=0.002)
    assert 0.9 <= times[-1] < 1.3


@pytest.mark.parametrize(
    ("told", "step", "may_leap", "times"),
    [
        ([5, 5.1, 5.2], 0.1, False, [0, 0.1, 0.2]),
        ([5, None, 5.2], 0.1, False, [0, 0.1, 0.2]),
        ([None, None, None], 0.1, False, [0, 0.1, 0.2]),
        ([None, None, None], None, False, [0, None, None]),
        ([5, 5, 5.2], 0.1, False, [0, 0, 0.2]),
        ([5, 5.1, 3, 3.1], 0.1, False, [0, 0.1, 0.2, 0.3]),
        ([5, 5.1, 3, 3.1], None, False, [0, 0.1, 0.1, 0.2]),
        ([5, 5.1, 95445, 95445.1], 0.1, True, [0, 0.1, 0.2, 0.3]),
        ([5, 5.1, 65, 65.1], 0.1, False, [0, 0.1, 60, 60.1]),
        ([5, 5.1, 14, 14.1], 0.1, True, [0, 0.1, 9, 9.1]),
    ],
)
def test_times_never_run_backwards(
    told: list[float | None], step: float | None, may_leap: bool, times: list[float | None]
) -> None:
    timeline = Timeline(next((t for t in told if t is not None), 0.0), step, may_leap)
    assert [timeline.at(each) for each in told] == pytest.approx(times)


# Real servers


class Pictures:
    """An HTTP server that pushes JPEG pictures, as network cameras do; each connection gets so many and is then closed.

    Attributes:
        url: Where.
        served: Pictures that have been sent, all connections together.
    """

    def __init__(self, count: int, port: int = 0, pause: float = 0.0, exif: Image.Exif | None = None) -> None:
        self.served = 0
        shown = self
        parts = []
        for k in range(12):  # after which the pictures are the same again
            jpeg = io.BytesIO()
            Image.fromarray(picture(k)).save(jpeg, "JPEG", quality=95, exif=exif or b"")
            head = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg.getvalue())
            parts.append(head + jpeg.getvalue() + b"\r\n")

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                for _ in range(count):
                    try:
                        self.wfile.write(parts[shown.served % 12])
                    except OSError:
                        return
                    shown.served += 1
                    time.sleep(pause)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.HTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/stream.mjpg"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Pictures:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own servers are not reached through a proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_pictures_pushed_over_http_are_live() -> None:
    with Pictures(5) as server, open_source(server.url, late="wait", reconnect=None) as source:
        frames = list(source)
    assert source.info.live
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 3, 4]
    with Pictures(5) as server, open_source(server.url, live=False) as source:
        assert len(list(source)) == 5
    assert not source.info.live


def test_pictures_pushed_with_the_notes_of_a_camera_are_read() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "camera", 6
    with Pictures(5, exif=exif) as server, open_source(server.url, late="wait", reconnect=None) as source:
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 3, 4]
    assert frames[0].image.shape == (64, 48, 3)


def test_times_of_pushed_pictures_are_those_of_their_arrival() -> None:
    with Pictures(8, pause=0.1) as server, open_source(server.url, late="wait", reconnect=None) as source:
        times = [frame.time or 0.0 for frame in source]
    assert times == sorted(times)
    # At least the pauses between the pictures that were not read ahead on opening; at the rate that FFmpeg makes up
    # the last one would come at 0.28 s.
    assert times[-1] > 0.35


@pytest.mark.parametrize("ended", [True, False])
def test_hls_is_live_unless_it_has_an_end(tmp_path: Path, ended: bool) -> None:
    transport(tmp_path / "a.ts", 60)
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:6", "#EXTINF:6.0,", "a.ts"]
    (tmp_path / "list.m3u8").write_text("\n".join([*lines, *(["#EXT-X-ENDLIST"] if ended else [])]) + "\n")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        with open_source(f"http://127.0.0.1:{server.server_port}/list.m3u8", late="wait") as source:
            assert source.info.live is not ended
            assert number_of(next(iter(source)).image) == 0
    finally:
        server.shutdown()
        server.server_close()


def test_camera_that_closes_and_comes_back_on_the_same_port() -> None:
    first = Pictures(10)
    reconnect = ReconnectPolicy(first=0.05)
    with open_source(first.url, late="wait", reconnect=reconnect, stop=14) as source:
        before = list(islice(source, 10))
        first.close()
        with Pictures(10, first.port) as again:
            after = list(source)
    assert [frame.index for frame in [*before, *after]] == list(range(14))
    assert [number_of(frame.image) for frame in after] == [0, 1, 2, 3]
    assert [frame.after_gap for frame in [*before, *after]] == [k == 10 for k in range(14)]
    assert source.losses.outages == 1
    assert source.losses.away >= 0.05
    assert again.served >= 4
    assert "went away once" in source.warnings[0]


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broadcast:
    """Sends a picture after the other as an MPEG transport stream over UDP until told to end."""

    def __init__(self, port: int) -> None:
        self.ended = False
        self._thread = threading.Thread(target=self._send, args=(f"udp://127.0.0.1:{port}?pkt_size=1316",))
        self._thread.start()

    def _send(self, url: str) -> None:
        with av.open(url, "w", format="mpegts") as container:
            options = {"crf": "5", "preset": "ultrafast", "tune": "zerolatency"}
            stream: Any = container.add_stream("libx264", rate=50, options=options)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            stream.codec_context.gop_size = 5
            k = 0
            while not self.ended:
                time.sleep(0.02)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(k), format="rgb24")))
                k += 1

    def end(self) -> None:
        self.ended = True
        self._thread.join()


def test_broadcast_over_udp_that_falls_silent_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "_NETWORK_TIMEOUT", 1.0)
    port = free_port(socket.SOCK_DGRAM)
    broadcasts = [Broadcast(port)]
    opened = sources_module.open_url

    def opened_again(url: str, **options: Any) -> Any:
        if broadcasts[-1].ended:
            broadcasts.append(Broadcast(port))
        return opened(url, **options)

    monkeypatch.setattr(sources_module, "open_url", opened_again)
    with open_source(f"udp://127.0.0.1:{port}", late="wait", reconnect=ReconnectPolicy(first=0.05)) as source:
        assert source.info.live
        frames = list(islice(source, 5))
        broadcasts[0].end()
        for frame in source:
            frames.append(frame)
            if frame.after_gap:
                break
    broadcasts[-1].end()
    assert [frame.index for frame in frames] == list(range(len(frames)))
    times = [frame.time or 0.0 for frame in frames]
    assert times == sorted(times)
    assert source.losses.outages == 1
    assert times[-1] - times[-2] == pytest.approx(source.losses.away)


class Rtsp:
    """An RTSP server of one session: a transport stream in RTP packets over the session's own connection."""

    def __init__(self, stream: bytes) -> None:
        self._stream = stream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://127.0.0.1:{self._listener.getsockname()[1]}/stream"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as requests:
            while request := list(iter(lambda: requests.readline().decode().strip(), "")):
                method = request[0].split()[0]
                fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in request)}
                answer, body = [f"CSeq: {fields['cseq']}", "Session: 1"], ""
                if method == "DESCRIBE":
                    answer.append("Content-Type: application/sdp")
                    body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\n"
                elif method == "SETUP":
                    answer.append(f"Transport: {fields['transport']}")
                answer.append(f"Content-Length: {len(body)}")
                connection.sendall("\r\n".join(["RTSP/1.0 200 OK", *answer, "", body]).encode())
                if method == "PLAY":
                    self._play(connection)
                    return

    def _play(self, connection: socket.socket) -> None:
        for number, begin in enumerate(range(0, len(self._stream), 7 * 188)):
            packet = struct.pack(">BBHII", 0x80, 33, number, number * 900, 1) + self._stream[begin : begin + 7 * 188]
            try:
                connection.sendall(b"$\0" + struct.pack(">H", len(packet)) + packet)
            except OSError:
                return

    def __enter__(self) -> Rtsp:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(10)


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `refervos segment` in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["refervos", "segment", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return command


def indices_in(path: Path) -> list[int]:
    return [json.loads(line)["frame"] for line in path.read_text().splitlines()]


def test_segment_follows_a_network_camera(run: Run, tmp_path: Path) -> None:
    with Pictures(100_000, pause=0.005) as server:
        code, out, err = run(server.url, "the red square", "--frames", "30", "--out", "out")
    assert (code, err) == (0, "")
    indices = indices_in(tmp_path / "out" / "masks.jsonl")
    assert len(indices) == 30
    assert indices == sorted(set(indices))
    told = re.match(r"30 frames, (\d+) dropped because they came too fast\n", out)
    assert told is not None
    assert int(told[1]) >= indices[-1] - indices[0] - 29 > 0
    assert len(decode(tmp_path / "out" / "overlay.mp4")[0]) == 30


def test_segment_answers_every_frame_where_frames_wait(run: Run, tmp_path: Path) -> None:
    with Pictures(12) as server:
        code, out, err = run(
            server.url, "the red square", "--out", "out", "--save", "rle", "--late", "wait", "--no-reconnect"
        )
    assert code == 0
    assert out.startswith("12 frames\n")
    assert "broke off after 12 frames" in err
    assert indices_in(tmp_path / "out" / "masks.jsonl") == list(range(12))


def test_segment_follows_an_rtsp_stream(run: Run, tmp_path: Path) -> None:
    stream = transport(tmp_path / "v.ts", 12).read_bytes()
    with Rtsp(stream) as server:
        code, out, _ = run(server.url, "the red square", "--frames", "8", "--out", "out", "--late", "wait")
    assert code == 0
    assert out.startswith("8 frames\n")
    assert indices_in(tmp_path / "out" / "masks.jsonl") == list(range(8))
    assert len(decode(tmp_path / "out" / "overlay.mp4")[0]) == 8


def test_a_file_is_not_live(run: Run, tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", 2)
    code, out, err = run("in.mp4", "the red square", "--live", "--out", "out")
    assert (code, out) == (2, "")
    assert err == "refervos: 'in.mp4' is a recording; only cameras, addresses and iterables can be live.\n"
