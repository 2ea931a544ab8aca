"""Live streams that break, stall, change, or are too fast: real local servers, and fakes without waiting."""

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
from video_files import FolderServer, box_masks, decode, number_of, numbered_frame, segmentation, write_video

pytestmark = pytest.mark.usefixtures("no_proxy")


# Fakes


class FakeSource(Reader):
    """A source of prepared frames that runs a function before each, and may end with an error."""

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
        self._prepared, self._before, self._error, self.end = frames, before, error, end
        self.closed = threading.Event()

    def _generate(self) -> Generator[Frame, None, None]:
        for k, frame in enumerate(self._prepared):
            self._before(k)
            yield frame
        self._before(len(self._prepared))
        if self._error is not None:
            raise self._error

    def _release(self) -> None:
        self.closed.set()


def frames_of(count: int, **changes: Any) -> list[Frame]:
    return [replace(Frame(k, numbered_frame(k), time=k / 10), **changes) for k in range(count)]


class Clock:
    """A clock that advances only by waiting."""

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
    connections: list[FakeSource | None], reconnect: ReconnectPolicy | None = DEFAULT_RECONNECT, **options: Any
) -> tuple[LiveReader, Clock]:
    """A reader of successive connections; None is a failed attempt."""
    clock = Clock()
    left = iter(connections)

    def connect() -> Any:
        connection = next(left, None)
        if connection is None:
            raise VideoError("the connection failed.")
        connection.heard = clock.now
        return connection

    reader = LiveReader(connect, connect(), reconnect, clock=clock, pause=clock.pause, **options)
    return reader, clock


def reader_threads() -> list[threading.Thread]:
    """The running threads of buffered readers, the newest last."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("frames of ")]


# Reconnecting


def test_indices_and_times_continue_after_a_reported_gap() -> None:
    first, second = FakeSource(frames_of(3), end="Connection reset"), FakeSource(frames_of(2))
    reader, clock = reconnecting([first, None, None, second], ReconnectPolicy(give_up=10))
    frames = list(islice(reader, 5))
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 0, 1]
    assert [frame.after_gap for frame in frames] == [False, False, False, True, False]
    assert clock.waits == [0.5, 1, 2]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2, 3.7, 3.8])
    assert reader.losses == Losses(outages=1, away=3.5)
    assert reader.warnings == ["'the camera' was disconnected once, for 3.5 seconds in total."]
    assert first.closed.is_set()


def test_waits_grow_up_to_a_limit_until_the_source_is_given_up() -> None:
    reader, clock = reconnecting([FakeSource(frames_of(3), end="Connection reset")])
    assert len(list(reader)) == 3
    assert clock.waits == [0.5, 1, 2, 4, 8, 16, *[30] * 8]
    assert reader.losses == Losses(outages=1, away=271.5)
    assert reader.warnings[-1] == (
        "'the camera' broke off after 3 frames (Connection reset) and did not come back within 300 seconds."
    )


def test_each_outage_restarts_the_back_off_and_is_counted() -> None:
    reader, clock = reconnecting(
        [FakeSource(frames_of(1)), None, FakeSource(frames_of(1)), FakeSource(frames_of(1)), None],
        ReconnectPolicy(give_up=1.5),
    )
    assert [frame.after_gap for frame in reader] == [False, True, True]
    assert clock.waits == [0.5, 1, 0.5, 0.5, 1]
    assert reader.losses == Losses(outages=3, away=3.5)


def test_a_stream_ends_at_the_first_outage_without_reconnecting() -> None:
    reader, clock = reconnecting([FakeSource(frames_of(3), end="Connection reset"), FakeSource(frames_of(3))], None)
    assert len(list(reader)) == 3
    assert clock.waits == []
    assert reader.warnings == ["'the camera' broke off after 3 frames: Connection reset."]
    assert reader.losses == Losses()


def test_damaged_packets_of_all_connections_are_one_warning() -> None:
    connections = [FakeSource(frames_of(2)) for _ in range(3)]
    for connection in connections:
        connection.damaged = 2
    reader, _ = reconnecting([*connections], ReconnectPolicy(give_up=1))
    list(reader)
    assert reader.warnings[0] == "'the camera': 6 damaged packets were skipped; their frames are missing."


def test_a_range_of_frames_spans_connections() -> None:
    def connections() -> list[FakeSource | None]:
        return [FakeSource(frames_of(3)), FakeSource(frames_of(3)), FakeSource(frames_of(3))]

    reader, clock = reconnecting(connections(), start=4, stop=6)
    assert [(frame.index, number_of(frame.image)) for frame in reader] == [(4, 1), (5, 2)]
    assert len(clock.waits) == 1  # no new connection if stop is reached
    reader, _ = reconnecting(connections(), ReconnectPolicy(give_up=0), start=4)
    with pytest.raises(VideoError, match="had only 3 frames, so none is left from frame 4 on"):
        list(reader)


def test_invalid_reconnect_policies_are_refused() -> None:
    for options in ({"first": 0}, {"factor": 0.5}, {"longest": 0.1}, {"give_up": -1}):
        with pytest.raises(VideoError, match="is invalid; first must"):
            ReconnectPolicy(**options)


def test_the_first_connection_is_retried_only_if_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[None] = []

    def connect(*_: Any, **__: Any) -> FakeSource:
        attempts.append(None)
        if len(attempts) % 4:
            raise VideoError("the connection failed.")
        return FakeSource(frames_of(2))

    monkeypatch.setattr("refervos.video.sources.open_url", connect)
    with pytest.raises(VideoError, match="the connection failed"):
        open_source("rtsp://host/stream")
    assert len(attempts) == 1
    with open_source(
        "rtsp://host/stream", reconnect=ReconnectPolicy(first=0.001, give_up=5, wait=True), late="wait"
    ) as source:
        assert next(iter(source)).index == 0
    assert len(attempts) == 4
    with pytest.raises(VideoError, match="the connection failed"):
        open_source("rtsp://host/stream", reconnect=ReconnectPolicy(first=0.001, give_up=0, wait=True))
    with pytest.raises(VideoError, match="unknown scheme gopher"):
        open_source("gopher://host/stream", reconnect=ReconnectPolicy(give_up=5, wait=True))


# Frames that arrive too fast


def read_late(frames: list[Frame], capacity: int) -> tuple[list[Frame], BufferedReader]:
    """Read frames that all arrive before the second one is requested."""
    requested = threading.Event()
    source = FakeSource(frames, lambda index: index == 1 and requested.wait(10))
    reader = BufferedReader(source, capacity, drops=True)
    first = next(reader)
    requested.set()
    assert source.closed.wait(10)
    return [first, *reader], reader


def test_only_the_newest_frame_is_kept_and_dropped_ones_are_counted() -> None:
    frames, reader = read_late(frames_of(10), 1)
    assert [frame.index for frame in frames] == [0, 9]
    assert reader.losses == Losses(late=8)


def test_a_full_queue_drops_its_oldest_frame() -> None:
    frames, reader = read_late(frames_of(10), 3)
    assert [frame.index for frame in frames] == [0, 7, 8, 9]
    assert reader.losses == Losses(late=6)


def test_frames_before_the_first_request_are_not_counted_as_dropped() -> None:
    source = FakeSource(frames_of(10))
    reader = BufferedReader(source, 1, drops=True)
    assert source.closed.wait(10)
    assert [frame.index for frame in reader] == [9]
    assert reader.losses == Losses()


@pytest.mark.parametrize("capacity", [1, 3])
def test_a_gap_is_kept_if_its_frame_is_dropped(capacity: int) -> None:
    frames = frames_of(10)
    frames[4] = replace(frames[4], after_gap=True)
    left, _ = read_late(frames, capacity)
    assert [frame.after_gap for frame in left] == [False, True, *[False] * (capacity - 1)]


def test_frames_read_ahead_are_identical(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 20)
    with open_source(path) as one, open_source(path, ahead=3) as other:
        pairs = list(zip(one, other, strict=True))
        assert one.info == other.info
    assert len(pairs) == 20
    for direct, buffered in pairs:
        assert (direct.index, direct.time) == (buffered.index, buffered.time)
        assert np.array_equal(direct.image, buffered.image)


def test_no_more_frames_are_read_ahead_than_requested() -> None:
    read: list[int] = []
    full = threading.Event()

    def note(index: int) -> None:
        read.append(index)
        if index == 4:
            full.set()

    source = FakeSource(frames_of(10), note)
    with BufferedReader(source, 3, drops=False) as reader:
        next(reader)
        assert full.wait(10)  # one returned, three buffered, and one that does not fit
        assert not source.closed.wait(0.05)
        assert read == [0, 1, 2, 3, 4]
    assert source.closed.is_set()


@pytest.mark.parametrize("error", [VideoError("the folder is gone."), KeyboardInterrupt(), RuntimeError("other")])
def test_errors_of_the_source_are_raised_after_the_frames_before_them(error: BaseException) -> None:
    reader = BufferedReader(FakeSource(frames_of(3), error=error), 5, drops=False)
    assert [next(reader).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(error)) as caught:
        next(reader)
    assert caught.value is error


def test_a_hanging_source_does_not_block_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffered_module, "_JOIN_TIMEOUT", 0.01)
    stuck = threading.Event()
    source = FakeSource(frames_of(3), lambda index: index == 1 and stuck.wait())
    reader = BufferedReader(source, 1, drops=True)
    assert next(reader).index == 0
    reader.close()
    assert list(reader) == []
    assert not source.closed.is_set()
    stuck.set()
    assert source.closed.wait(10)  # by its own thread, once it is unblocked


def test_closing_ends_the_wait_for_a_disconnected_source() -> None:
    ended = threading.Event()
    disconnected = threading.Event()

    def pause(seconds: float) -> bool:
        disconnected.set()
        return ended.wait(60)

    def connect() -> Any:
        raise VideoError("the connection failed.")

    first: Any = FakeSource(frames_of(1))
    reader = BufferedReader(LiveReader(connect, first, DEFAULT_RECONNECT, pause=pause), 1, drops=True, ended=ended)
    assert next(reader).index == 0
    assert disconnected.wait(10)
    thread = reader_threads()[-1]
    reader.close()
    thread.join(10)
    assert not thread.is_alive()


def test_the_default_policy_depends_on_the_source(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 5)

    def read(spec: Any, **options: Any) -> int:
        with open_source(spec, **options) as source:
            for thread in reader_threads():
                thread.join(10)  # all frames arrive before the first is requested
            return len(list(source))

    assert read(path) == 5
    assert read(path, late="drop") == 1
    assert read(iter([numbered_frame(k) for k in range(40)])) == 40
    assert read(iter([numbered_frame(k) for k in range(40)]), live=True) == 1
    assert read(iter([numbered_frame(k) for k in range(40)]), live=True, late="queue") == 30
    assert read(iter([numbered_frame(k) for k in range(40)]), live=True, late="wait") == 40
    for options, words in (
        ({"late": "later"}, "late is 'later'"),
        ({"ahead": -1}, "ahead is -1"),
        ({"live": True}, "is a recording"),
    ):
        with pytest.raises(VideoError, match=words):
            open_source(path, **options)


# Through the pipeline


class FakeSession:
    """A session that records its calls and returns empty masks."""

    def __init__(self, clip_length: int = 1) -> None:
        self.clip_length = clip_length
        self.calls: list[Any] = []

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
        self.calls.append([number_of(image) for image in images])
        return [segmentation(0, np.zeros((1, *image.shape[:2]), bool)) for image in images]

    def mark_gap(self) -> None:
        self.calls.append("gap")


def test_a_gap_is_marked_before_the_frame_after_it() -> None:
    reader, _ = reconnecting([FakeSource(frames_of(2)), FakeSource(frames_of(2))], stop=4)
    session: Any = FakeSession()
    report = segment(reader, session, [])
    assert session.calls == [[0], [1], "gap", [0], [1]]
    assert (report.frames, report.dropped, report.outages, report.away) == (4, 0, 1, 0.5)


def test_no_clip_spans_a_gap() -> None:
    frames = frames_of(6)
    frames[2] = replace(frames[2], after_gap=True)
    session: Any = FakeSession(4)
    assert segment(FakeSource(frames, live=False), session, []).frames == 6
    assert session.calls == [[0, 1], "gap", [2, 3], [4, 5]]


def test_dropped_frames_are_reported_and_a_limit_reads_no_more() -> None:
    segmenting, dropped, more = threading.Event(), threading.Event(), threading.Event()

    def before(index: int) -> None:
        if index == 1:
            segmenting.wait(10)
        if index == 5:
            dropped.set()
            more.wait(10)

    reader = BufferedReader(FakeSource(frames_of(6), before), 1, drops=True)

    class Slow(FakeSession):
        def clip(self, images: list[np.ndarray]) -> list[Any]:
            segmenting.set()
            dropped.wait(10)
            return super().clip(images)

    session: Any = Slow()
    report = segment(reader, session, [], limit=2)  # the next frame arrives only after the test
    more.set()
    reader.close()
    assert session.calls == [[0], [4]]
    assert (report.frames, report.dropped) == (2, 3)


# Failing outputs


class BoxSession(FakeSession):
    """A session that returns boxes as masks."""

    def clip(self, images: list[np.ndarray]) -> list[Any]:
        return [segmentation(0, box_masks(64, 48)) for _ in images]


class FailingSink:
    """A sink that fails with an error after some frames, or at the end."""

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
def test_a_failing_sink_does_not_affect_the_others(tmp_path: Path, frames: int, at_end: bool) -> None:
    broken: Any = FailingSink(frames, VideoError("writing 'o.mp4' failed."), at_end)
    sinks: list[Any] = [RleSink(tmp_path / "a.jsonl"), broken, RleSink(tmp_path / "b.jsonl")]
    session: Any = BoxSession()
    with pytest.raises(PartlyWrittenError, match=r"writing 'o\.mp4' failed\.$") as caught:
        segment(FakeSource(frames_of(6), live=False), session, sinks)
    for name in "ab":
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["frame"] for line in lines] == [0, 1, 2, 3, 4, 5]
    report = caught.value.report
    assert (report.frames, report.interrupted) == (6, False)
    assert report.written == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert broken.closed == 1


def test_a_run_ends_when_no_sink_is_left(tmp_path: Path) -> None:
    source = FakeSource(frames_of(6), live=False)
    session: Any = BoxSession()
    sinks: list[Any] = [FailingSink(2, VideoError("a is full.")), FailingSink(3, VideoError("b is full."))]
    with pytest.raises(PartlyWrittenError, match=r"a is full\. b is full\.") as caught:
        segment(source, session, sinks)
    assert caught.value.report.frames == 3
    assert next(iter(source)).index > 3


def test_a_bug_in_a_sink_does_not_affect_the_others(tmp_path: Path) -> None:
    sinks: list[Any] = [FailingSink(1, RuntimeError("a bug")), RleSink(tmp_path / "a.jsonl")]
    session: Any = BoxSession()
    with pytest.raises(RuntimeError, match="a bug"):
        segment(FakeSource(frames_of(4), live=False), session, sinks)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 4


def test_a_failing_source_keeps_written_frames_and_leaves_no_empty_file(tmp_path: Path) -> None:
    def breaks(index: int) -> None:
        if index == at:
            raise VideoError("frame is damaged.")

    for at, count in ((3, 3), (0, 0)):
        path = tmp_path / f"{at}.jsonl"
        session: Any = BoxSession(1)
        with pytest.raises(VideoError, match="frame is damaged"):
            segment(FakeSource(frames_of(6), breaks, live=False), session, [RleSink(path)])
        assert (len(path.read_text().splitlines()) if path.exists() else 0) == count
    assert [path.name for path in tmp_path.iterdir()] == ["3.jsonl"]


def test_notes_of_the_source_are_in_the_report(tmp_path: Path) -> None:
    Image.fromarray(numbered_frame(0)).save(tmp_path / "1.png")
    (tmp_path / "notes.txt").touch()
    session: Any = BoxSession()
    with open_source(tmp_path, ahead=2) as source:
        report = segment(source, session, [])
    assert report.warnings == [f"'{tmp_path}' has notes.txt, which is not read."]


# Changing sizes, lost packets, discontinuous timestamps


def transport(path: Path, count: int, **options: Any) -> Path:
    """Write an MPEG transport stream, as broadcasters and cameras send it."""
    return write_video(path, count, options={"crf": "5", "preset": "ultrafast", "bf": "0"}, **options)


def test_outputs_follow_a_change_of_the_frame_size(tmp_path: Path) -> None:
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
    left, right = images[4][:, :2], images[4][:, -2:]  # 96x80 in 64x48 leaves bars at the sides
    assert left.max() < 40
    assert right.max() < 40
    assert images[3][:, :2].max() > 40
    assert sinks[0].warnings == [
        f"Frames of other sizes than 64x48, such as frame 4 of 96x80, were fitted into '{tmp_path / 'o.mp4'}' "
        "with black bars."
    ]


def without_packets(path: Path, lost: Callable[[int], bool]) -> Path:
    """Write a copy of a stream with some of its 188-byte packets lost."""
    data = path.read_bytes()
    packets = [data[k : k + 188] for k in range(0, len(data), 188)]
    target = path.with_name(f"lossy-{path.name}")
    target.write_bytes(b"".join(packet for k, packet in enumerate(packets) if not lost(k)))
    return target


def test_lost_packets_do_not_end_a_stream(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [np.clip(numbered_frame(k) + rng.integers(0, 40, (48, 64, 1)), 0, 255).astype(np.uint8) for k in range(40)]
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


def test_repeated_frames_are_kept(tmp_path: Path) -> None:
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


def test_times_increase_when_the_clock_of_a_stream_is_reset(tmp_path: Path) -> None:
    first = transport(tmp_path / "a.ts", 4, video_first=500.0)
    second = transport(tmp_path / "b.ts", 4, video_first=3.0)
    third = transport(tmp_path / "c.ts", 4, video_first=50_000.0)
    joined = tmp_path / "abc.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes() + third.read_bytes())
    with open_source(joined) as source:
        times = [frame.time or 0.0 for frame in source]
    assert len(times) == 12
    assert times == sorted(times)
    # The durations of the frames at the joints are guesses.
    for k in (0, 4, 8):
        assert np.diff(times[k : k + 4]) == pytest.approx([0.1] * 3, abs=0.002)
    assert 0.9 <= times[-1] < 1.3


@pytest.mark.parametrize(
    ("timestamps", "step", "may_leap", "times"),
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
def test_times_never_decrease(
    timestamps: list[float | None], step: float | None, may_leap: bool, times: list[float | None]
) -> None:
    timeline = Timeline(next((t for t in timestamps if t is not None), 0.0), step, may_leap)
    assert [timeline.at(each) for each in timestamps] == pytest.approx(times)


# Real servers


class ImageServer:
    """An HTTP server that pushes JPEG images like a network camera, and closes each connection after some.

    Attributes:
        url: Address of the stream.
        served: Number of images sent on all connections.
    """

    def __init__(self, count: int, port: int = 0, pause: float = 0.0, exif: Image.Exif | None = None) -> None:
        self.served = 0
        server = self
        parts = []
        for k in range(12):  # after which the images repeat
            jpeg = io.BytesIO()
            Image.fromarray(numbered_frame(k)).save(jpeg, "JPEG", quality=95, exif=exif or b"")
            head = b"--next\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(jpeg.getvalue())
            parts.append(head + jpeg.getvalue() + b"\r\n")

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
                self.end_headers()
                for _ in range(count):
                    try:
                        self.wfile.write(parts[server.served % 12])
                    except OSError:
                        return
                    server.served += 1
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

    def __enter__(self) -> ImageServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def test_images_pushed_over_http_are_live() -> None:
    with ImageServer(5) as server, open_source(server.url, late="wait", reconnect=None) as source:
        frames = list(source)
    assert source.info.live
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 3, 4]
    with ImageServer(5) as server, open_source(server.url, live=False) as source:
        assert len(list(source)) == 5
    assert not source.info.live


def test_pushed_images_with_exif_are_read() -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "camera", 6
    with ImageServer(5, exif=exif) as server, open_source(server.url, late="wait", reconnect=None) as source:
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == [0, 1, 2, 3, 4]
    assert frames[0].image.shape == (64, 48, 3)


def test_times_of_pushed_images_are_their_arrival_times() -> None:
    with ImageServer(8, pause=0.1) as server, open_source(server.url, late="wait", reconnect=None) as source:
        times = [frame.time or 0.0 for frame in source]
    assert times == sorted(times)
    # At least the pauses between the images that were not read on opening; with the rate that FFmpeg invents, the last
    # time would be 0.28 s.
    assert times[-1] > 0.35


@pytest.mark.parametrize("ended", [True, False])
def test_hls_is_live_unless_it_has_an_end(tmp_path: Path, ended: bool) -> None:
    transport(tmp_path / "a.ts", 60)
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:6", "#EXTINF:6.0,", "a.ts"]
    (tmp_path / "list.m3u8").write_text("\n".join([*lines, *(["#EXT-X-ENDLIST"] if ended else [])]) + "\n")
    with FolderServer(tmp_path) as url, open_source(f"{url}/list.m3u8", late="wait") as source:
        assert source.info.live is not ended
        assert number_of(next(iter(source)).image) == 0


def test_a_camera_that_restarts_on_the_same_port_is_reconnected() -> None:
    first = ImageServer(10)
    reconnect = ReconnectPolicy(first=0.05)
    with open_source(first.url, late="wait", reconnect=reconnect, stop=14) as source:
        before = list(islice(source, 10))
        first.close()
        with ImageServer(10, first.port) as again:
            after = list(source)
    assert [frame.index for frame in [*before, *after]] == list(range(14))
    assert [number_of(frame.image) for frame in after] == [0, 1, 2, 3]
    assert [frame.after_gap for frame in [*before, *after]] == [k == 10 for k in range(14)]
    assert source.losses.outages == 1
    assert source.losses.away >= 0.05
    assert again.served >= 4
    assert "was disconnected once" in source.warnings[0]


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broadcast:
    """Sends frames as an MPEG transport stream over UDP until ended."""

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
                container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(k), format="rgb24")))
                k += 1

    def end(self) -> None:
        self.ended = True
        self._thread.join()


def test_a_udp_broadcast_that_pauses_is_reconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_module, "_NETWORK_TIMEOUT", 1.0)
    port = free_port(socket.SOCK_DGRAM)
    broadcasts = [Broadcast(port)]
    open_url = sources_module.open_url

    def restart_and_open(url: str, **options: Any) -> Any:
        if broadcasts[-1].ended:
            broadcasts.append(Broadcast(port))
        return open_url(url, **options)

    monkeypatch.setattr(sources_module, "open_url", restart_and_open)
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
    """An RTSP server for one session: a transport stream in RTP packets, interleaved in the connection."""

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
                reply, body = [f"CSeq: {fields['cseq']}", "Session: 1"], ""
                if method == "DESCRIBE":
                    reply.append("Content-Type: application/sdp")
                    body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\n"
                elif method == "SETUP":
                    reply.append(f"Transport: {fields['transport']}")
                reply.append(f"Content-Length: {len(body)}")
                connection.sendall("\r\n".join(["RTSP/1.0 200 OK", *reply, "", body]).encode())
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
    """Run `refervos segment` in an empty folder; returns exit code, standard output and standard error."""
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
    with ImageServer(100_000, pause=0.005) as server:
        code, out, err = run(server.url, "the red square", "--frames", "30", "--out", "out")
    assert (code, err) == (0, "")
    indices = indices_in(tmp_path / "out" / "masks.jsonl")
    assert len(indices) == 30
    assert indices == sorted(set(indices))
    match = re.match(r"30 frames, (\d+) dropped because they arrived too fast\n", out)
    assert match is not None
    assert int(match[1]) >= indices[-1] - indices[0] - 29 > 0
    assert len(decode(tmp_path / "out" / "overlay.mp4")[0]) == 30


def test_segment_keeps_every_frame_with_late_wait(run: Run, tmp_path: Path) -> None:
    with ImageServer(12) as server:
        code, out, err = run(
            server.url, "the red square", "--out", "out", "--save", "rle", "--late", "wait", "--no-reconnect"
        )
    assert code == 0
    assert out.startswith("12 frames\n")
    assert "broke off after 12 frames" in err
    assert indices_in(tmp_path / "out" / "masks.jsonl") == list(range(12))


def test_hindsight_refuses_a_network_camera(run: Run, tmp_path: Path) -> None:
    with ImageServer(100_000, pause=0.005) as server:
        code, out, err = run(server.url, "the red square", "--hindsight", "--out", "out")
    assert (code, out) == (2, "")
    assert "is live and can be read only once, but hindsight reads a recording twice" in err
    assert not (tmp_path / "out").exists()


def test_segment_follows_an_rtsp_stream(run: Run, tmp_path: Path) -> None:
    stream = transport(tmp_path / "v.ts", 12).read_bytes()
    with Rtsp(stream) as server:
        code, out, _ = run(server.url, "the red square", "--frames", "8", "--out", "out", "--late", "wait")
    assert code == 0
    assert out.startswith("8 frames\n")
    assert indices_in(tmp_path / "out" / "masks.jsonl") == list(range(8))
    assert len(decode(tmp_path / "out" / "overlay.mp4")[0]) == 8


def test_a_file_is_refused_as_live(run: Run, tmp_path: Path) -> None:
    write_video(tmp_path / "in.mp4", 2)
    code, out, err = run("in.mp4", "the red square", "--live", "--out", "out")
    assert (code, out) == (2, "")
    assert err == "refervos: 'in.mp4' is a recording; only cameras, addresses and iterables can be live.\n"
