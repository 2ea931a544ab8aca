"""Sinks: outputs are complete, playable, correctly named, and never overwrite existing files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from refervos.errors import VideoError
from refervos.files import writing as outputs_module
from refervos.progress import progress
from refervos.segmentation import Segmentation
from refervos.video import (
    BinarySink,
    CutoutSink,
    Frame,
    OverlayImageSink,
    OverlaySink,
    PaletteSink,
    RleSink,
    Sink,
    SourceInfo,
    davis_palette,
    draw_overlay,
    open_source,
    overlay_sink,
    overlay_video,
    palette,
)
from video_files import (
    FolderServer,
    box_masks,
    decode,
    file_size_limit,
    make_audio_codec_unknown,
    number_of,
    numbered_frame,
    rotate,
    segmentation,
    write_video,
)


def boxes(index: int, width: int = 64, height: int = 48, count: int = 1, **options: Any) -> Segmentation:
    return segmentation(index, box_masks(width, height, count), **options)


def no_tracks(index: int, width: int = 64, height: int = 48) -> Segmentation:
    return segmentation(index, np.zeros((0, height, width), bool))


def overlay(source_path: Path, target: Path, **options: Any) -> OverlaySink:
    """Write a source as an overlay without masks, so that the frames can be compared."""
    with open_source(source_path) as source, OverlaySink(target, source.info, **options) as sink:
        for frame in source:
            sink.write(frame, no_tracks(frame.index, frame.image.shape[1], frame.image.shape[0]))
    return sink


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".") or path.suffix == ".part"]


def audio_of(path: Path) -> tuple[str, float, float, float]:
    """Codec, first time, duration in seconds and pitch in hertz of the decoded audio of a file."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        rate = frames[0].sample_rate
        samples = np.concatenate([frame.to_ndarray().reshape(-1)[: frame.samples] for frame in frames])
        spectrum = np.abs(np.fft.rfft(samples.astype(np.float64)))
        pitch = float(spectrum.argmax() * rate / len(samples))
        return stream.codec_context.name, float(frames[0].time or 0.0), len(samples) / rate, pitch


def sinks_in(folder: Path, **options: Any) -> list[Sink]:
    return [
        OverlaySink(folder / "o.mp4", **options),
        RleSink(folder / "o.jsonl", **options),
        PaletteSink(folder / "palette", **options),
        BinarySink(folder / "binary", **options),
        CutoutSink(folder / "cutout", **options),
    ]


# The overlay video


def test_overlay_keeps_frames_and_times(tmp_path: Path) -> None:
    sink = overlay(write_video(tmp_path / "v.mp4", 10), tmp_path / "deep" / "er" / "o.mp4", crf=5)
    assert sink.close() == [tmp_path / "deep" / "er" / "o.mp4"]
    images, times = decode(tmp_path / "deep" / "er" / "o.mp4")
    assert [number_of(image) for image in images] == list(range(10))
    assert times == pytest.approx([k / 10 for k in range(10)], abs=1e-4)
    # Colours survive, which needs the right matrix and range for encoding and decoding.
    assert np.abs(images[0][3, 3].astype(int) - (220, 30, 30)).max() <= 6
    with av.open(str(tmp_path / "deep" / "er" / "o.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float((stream.duration or 0) * (stream.time_base or 0)) == pytest.approx(1.0, abs=1e-4)
    assert leftovers(tmp_path) == []


def test_overlay_keeps_a_variable_frame_rate(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.4, 0.45, 1.0]
    overlay(write_video(tmp_path / "v.mkv", times=times), tmp_path / "o.mp4")
    assert decode(tmp_path / "o.mp4")[1] == pytest.approx(times, abs=1e-3)
    with av.open(str(tmp_path / "o.mp4")) as container:
        stream = container.streams.video[0]
        # The duration of the last frame is the average of the others.
        assert float((stream.duration or 0) * (stream.time_base or 0)) == pytest.approx(1.2, abs=2e-3)


@pytest.mark.parametrize(("fps", "step"), [(None, 1 / 25), (8, 1 / 8), (29.97, 1001 / 30000)])
def test_overlay_of_frames_without_times_has_a_fixed_rate(tmp_path: Path, fps: float | None, step: float) -> None:
    with OverlaySink(tmp_path / "o.mp4", fps=fps) as sink:
        for k in range(4):
            sink.write(Frame(k, numbered_frame(k)), no_tracks(k))
    assert decode(tmp_path / "o.mp4")[1] == pytest.approx([k * step for k in range(4)], abs=1e-4)


def test_overlay_has_increasing_times_whatever_the_source_has(tmp_path: Path) -> None:
    with OverlaySink(tmp_path / "o.mp4") as sink:
        for k, time in enumerate([0.0, 0.2, 0.1, 0.1, 0.5]):
            sink.write(Frame(k, numbered_frame(k), time), no_tracks(k))
    times = decode(tmp_path / "o.mp4")[1]
    assert len(times) == 5
    assert times == sorted(set(times))
    assert times[-1] == pytest.approx(0.5, abs=1e-3)


def test_overlay_pads_odd_sizes_with_the_edge(tmp_path: Path) -> None:
    image = np.full((47, 63, 3), 200, np.uint8)
    with OverlaySink(tmp_path / "o.mp4", crf=5) as sink:
        for k in range(3):
            sink.write(Frame(k, image), no_tracks(k, 63, 47))
    (first, *_), _ = decode(tmp_path / "o.mp4")
    assert first.shape == (48, 64, 3)
    assert first.min() >= 190


def noise(count: int) -> Iterator[tuple[Frame, Segmentation]]:
    """Incompressible frames, ten per second."""
    rng = np.random.default_rng(0)
    for k in range(count):
        yield Frame(k, rng.integers(0, 256, (48, 64, 3), np.uint8), time=k / 10), no_tracks(k)


def write_all(sink: Sink, frames: Iterator[tuple[Frame, Segmentation]]) -> None:
    for frame, empty in frames:
        sink.write(frame, empty)


def test_overlay_on_a_full_disk_keeps_the_playable_part(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    sink = OverlaySink(path, legend=False)
    frames = noise(200)
    with file_size_limit(200_000), pytest.raises(VideoError) as caught:
        write_all(sink, frames)
    taken = next(frames)[0].index - 1
    assert str(caught.value).startswith(f"writing '{path}' failed (")
    assert "the part written so far can be played" in str(caught.value)
    assert sink.close() == [path]
    assert list(tmp_path.iterdir()) == [path]
    images, times = decode(path)
    # Only the last second and the frames inside the encoder are lost.
    assert 20 < taken - 60 < len(images) <= taken
    assert times == pytest.approx([k / 10 for k in range(len(images))], abs=1e-3)


def test_overlay_that_cannot_be_finalised_keeps_the_playable_part(tmp_path: Path) -> None:
    with OverlaySink(tmp_path / "whole.mp4", legend=False) as whole:
        write_all(whole, noise(100))
    path = tmp_path / "o.mp4"
    sink = OverlaySink(path, legend=False)
    with file_size_limit((tmp_path / "whole.mp4").stat().st_size - 100):
        write_all(sink, noise(100))
        with pytest.raises(VideoError, match="the part written so far can be played"):
            sink.close()
    assert sink.close() == [path]
    assert 20 < len(decode(path)[0]) <= 100


def test_overlay_without_a_playable_part_leaves_no_file(tmp_path: Path) -> None:
    sink = OverlaySink(tmp_path / "o.mp4", legend=False)
    with file_size_limit(2000):
        write_all(sink, noise(5))
        with pytest.raises(VideoError, match="choose a writable place with enough free space"):
            sink.close()
    assert list(tmp_path.iterdir()) == []


def test_overlay_fits_frames_of_other_sizes_into_the_first_size(tmp_path: Path) -> None:
    with OverlaySink(tmp_path / "o.mp4", crf=5) as sink:
        sink.write(Frame(0, np.full((48, 64, 3), 200, np.uint8)), no_tracks(0))
        sink.write(Frame(1, np.full((96, 48, 3), 200, np.uint8)), no_tracks(1, 48, 96))
    images, _ = decode(tmp_path / "o.mp4")
    assert [image.shape for image in images] == [(48, 64, 3)] * 2
    assert images[1][24, 32].min() >= 185
    assert images[1][24, 8].max() <= 25
    assert images[1][24, -8].max() <= 25


def test_overlay_of_a_rotated_video_is_upright(tmp_path: Path) -> None:
    overlay(rotate(write_video(tmp_path / "v.mp4", 3), 90), tmp_path / "o.mp4", crf=5)
    images, _ = decode(tmp_path / "o.mp4")
    assert images[0].shape == (64, 48, 3)
    assert np.abs(images[0][3, -4].astype(int) - (220, 30, 30)).max() < 30
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


@pytest.mark.parametrize(
    ("name", "codec", "kept"),
    [
        ("v.mp4", "aac", "aac"),
        ("v.mkv", "libmp3lame", "mp3float"),
        ("v.webm", "libopus", "opus"),
        ("v.mkv", "pcm_s16le", "aac"),
    ],
)
def test_overlay_keeps_the_audio_up_to_the_end_of_the_video(tmp_path: Path, name: str, codec: str, kept: str) -> None:
    path = write_video(tmp_path / name, 10, audio=codec, audio_seconds=2.5)
    assert overlay(path, tmp_path / "o.mp4").warnings == []
    found, first, seconds, pitch = audio_of(tmp_path / "o.mp4")
    assert found == kept
    assert abs(first) < 0.03
    assert 0.93 < seconds < 1.08
    assert pitch == pytest.approx(440, abs=3)
    assert len(decode(tmp_path / "o.mp4")[0]) == 10


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_overlay_keeps_the_audio_in_sync_with_the_first_frame_written(tmp_path: Path, codec: str) -> None:
    # The video begins at 0.2 s and is read from its fourth frame; the audio begins at 0.9 s.
    path = write_video(tmp_path / "v.mkv", 12, audio=codec, audio_seconds=2, audio_first=0.9, video_first=0.2)
    with open_source(path, start=3) as source, OverlaySink(tmp_path / "o.mp4", source.info) as sink:
        for frame in source:
            sink.write(frame, no_tracks(frame.index))
    assert sink.warnings == []
    assert decode(tmp_path / "o.mp4")[1][0] == 0
    _, first, seconds, _ = audio_of(tmp_path / "o.mp4")
    assert first == pytest.approx(0.4, abs=0.03)
    assert first + seconds == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_overlay_omits_the_audio_before_its_first_frame(tmp_path: Path, codec: str) -> None:
    path = write_video(tmp_path / "v.mkv", 12, audio=codec, audio_seconds=2)
    with open_source(path, start=8) as source, OverlaySink(tmp_path / "o.mp4", source.info) as sink:
        for frame in source:
            sink.write(frame, no_tracks(frame.index))
    with av.open(str(tmp_path / "o.mp4")) as container:
        packets = [packet for packet in container.demux(container.streams.audio[0]) if packet.pts is not None]
        first = min(float((packet.pts or 0) * packet.time_base) for packet in packets)
        assert -0.06 <= first <= 0.03
        assert sum(float((packet.duration or 0) * packet.time_base) for packet in packets) < 0.4 + 0.1
    assert decode(tmp_path / "o.mp4")[1] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-3)


def test_overlay_without_audio_keeps_all_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = write_video(tmp_path / "silent.mp4", 3)
    assert overlay(silent, tmp_path / "a.mp4").warnings == []
    loud = write_video(tmp_path / "loud.mp4", 3, audio="aac")
    overlay(loud, tmp_path / "b.mp4", audio=False)

    def refuse(*_: Any) -> None:
        raise OSError("the audio is broken")

    monkeypatch.setattr(overlay_video.AudioTrack, "write_until", refuse)
    sink = overlay(loud, tmp_path / "c.mp4")
    assert sink.warnings == [f"The audio of '{loud}' could not be kept in '{tmp_path / 'c.mp4'}': the audio is broken."]
    monkeypatch.setattr(overlay_video, "AudioTrack", refuse)
    assert len(overlay(loud, tmp_path / "d.mp4").warnings) == 1
    for name in "abcd":
        assert len(decode(tmp_path / f"{name}.mp4")[0]) == 3
        if name != "c":
            with av.open(str(tmp_path / f"{name}.mp4")) as container:
                assert not container.streams.audio


def test_an_unknown_audio_codec_does_not_lose_the_overlay(tmp_path: Path) -> None:
    path = make_audio_codec_unknown(write_video(tmp_path / "v.mov", 6, audio="aac"))
    sink = overlay(path, tmp_path / "o.mp4")
    assert sink.warnings == [
        f"The audio of '{path}' could not be kept in '{tmp_path / 'o.mp4'}': its codec is unknown."
    ]
    assert len(decode(tmp_path / "o.mp4")[0]) == 6


def test_a_second_track_replaces_one_with_an_unknown_codec(tmp_path: Path) -> None:
    path = make_audio_codec_unknown(write_video(tmp_path / "v.mov", 10, audio="aac", tracks=2))
    assert overlay(path, tmp_path / "o.mp4").warnings == []
    codec, _, seconds, pitch = audio_of(tmp_path / "o.mp4")
    assert codec == "aac"
    assert seconds > 0.9
    assert pitch == pytest.approx(440, abs=3)


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, AssertionError, MemoryError])
def test_no_error_of_the_audio_loses_the_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    loud = write_video(tmp_path / "loud.mp4", 3, audio="aac")

    def refuse(*_: Any) -> None:
        raise error("broken")

    for method in ("__init__", "write_until", "finish"):
        with monkeypatch.context() as patch:
            patch.setattr(overlay_video.AudioTrack, method, refuse)
            sink = overlay(loud, tmp_path / f"{method}.mp4")
        assert sink.warnings[0].endswith("broken.")
        assert len(decode(tmp_path / f"{method}.mp4")[0]) == 3


def test_audio_that_an_mp4_does_not_support_does_not_lose_the_overlay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unwritable(overlay_video.AudioTrack):
        def __init__(self, address: str, output: Any, begin: float) -> None:
            super().__init__(address, output, begin)
            output.add_stream("wmv2", rate=10)  # a stream that the container refuses

    monkeypatch.setattr(overlay_video, "AudioTrack", Unwritable)
    loud = write_video(tmp_path / "loud.mp4", 3, audio="aac")
    sink = overlay(loud, tmp_path / "o.mp4")
    assert len(decode(tmp_path / "o.mp4")[0]) == 3
    assert len(sink.warnings) == 1
    assert sink.warnings[0].startswith(f"The audio of '{loud}' could not be kept")
    assert leftovers(tmp_path) == []


@pytest.mark.usefixtures("no_proxy")
def test_overlay_of_a_recording_over_http_keeps_its_audio(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", 10, audio="aac")
    target = tmp_path / "o.mp4"
    with FolderServer(tmp_path) as url:
        with open_source(f"{url}/v.mp4?key=secret", start=3) as source, OverlaySink(target, source.info) as sink:
            for frame in source:
                sink.write(frame, no_tracks(frame.index))
        assert sink.warnings == []
        assert "secret" not in repr(source.info)
        assert audio_of(target)[3] == pytest.approx(440, abs=5)
        assert audio_of(target)[2] == pytest.approx(0.7, abs=0.08)
        info = source.info
    # Without the server there is a warning, which does not contain the key.
    with OverlaySink(tmp_path / "p.mp4", info) as sink:
        sink.write(Frame(0, numbered_frame(0), 0.0), no_tracks(0))
    assert len(sink.warnings) == 1
    assert sink.warnings[0].startswith(f"The audio of 'v' could not be kept in '{tmp_path / 'p.mp4'}': ")
    assert "secret" not in sink.warnings[0]


def test_audio_of_a_live_stream_is_not_kept_with_a_warning(tmp_path: Path) -> None:
    with OverlaySink(tmp_path / "o.mp4", SourceInfo("camera", live=True, has_audio=True)) as sink:
        sink.write(Frame(0, numbered_frame(0), 0.0), no_tracks(0))
        sink.write(Frame(1, numbered_frame(1), 0.1), no_tracks(1))
    assert sink.warnings == [f"The audio of 'camera', which is live, is not kept in '{tmp_path / 'o.mp4'}'."]


@pytest.mark.parametrize(("height", "width", "shape"), [(20, 20000, (16, 16384)), (33000, 60, (16384, 30))])
def test_overlay_of_a_panorama_is_scaled_to_the_limit_of_h264(
    tmp_path: Path, height: int, width: int, shape: tuple[int, int]
) -> None:
    image = np.full((height, width, 3), 90, np.uint8)
    image[:, : width // 4] = (220, 30, 30)
    path = tmp_path / "o.mp4"
    with OverlaySink(path, legend=False) as sink:
        for k in range(2):
            sink.write(Frame(k, image), no_tracks(k, width, height))
    assert sink.warnings == [
        f"'{path}' is {shape[1]}x{shape[0]}, smaller than the frames, because H.264 is limited to 16384 "
        "pixels per side."
    ]
    (first, _), _ = decode(path)
    assert first.shape[:2] == (shape[0] + shape[0] % 2, shape[1] + shape[1] % 2)
    assert np.abs(first[shape[0] // 2, 0].astype(int) - (220, 30, 30)).max() < 40
    assert np.abs(first[shape[0] // 2, -1].astype(int) - 90).max() < 40


def test_overlay_refuses_its_own_input_and_bad_options(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 2)
    with open_source(path) as source, pytest.raises(VideoError, match="is the video being read"):
        OverlaySink(path, source.info, overwrite=True)
    for options, words in (
        ({"crf": 99}, "crf is 99"),
        ({"opacity": 2.0}, "opacity is 2.0"),
        ({"fps": -1}, "fps is -1"),
        ({"preset": "best"}, "preset is 'best'"),
    ):
        with pytest.raises(VideoError, match=words):
            OverlaySink(tmp_path / "o.mp4", **options)
    with pytest.raises(VideoError, match=r"does not end in \.mp4"):
        OverlaySink(tmp_path / "o.avi")
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]


def test_overlay_reports_errors_of_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay_video, "_PRESETS", ("nonsense",))
    sink = OverlaySink(tmp_path / "o.mp4", preset="nonsense")
    with pytest.raises(VideoError, match="cannot be written"):
        sink.write(Frame(0, numbered_frame(0)), no_tracks(0))
    assert sink.close() == []
    assert list(tmp_path.iterdir()) == []


def test_a_track_keeps_its_colour_when_another_is_dropped(tmp_path: Path) -> None:
    gray = np.full((48, 64, 3), 128, np.uint8)
    whole = np.ones((1, 48, 64), bool)
    with OverlaySink(tmp_path / "o.mp4", crf=1, opacity=1.0) as sink:
        sink.write(Frame(0, gray), segmentation(0, np.concatenate([~whole, whole]), ids=[4, 7]))
        sink.write(Frame(1, gray), segmentation(1, whole, ids=[7]))
    images, _ = decode(tmp_path / "o.mp4")
    assert np.abs(images[0].astype(int) - images[1]).max() < 12


# Interruptions


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_output_before_an_interruption_is_complete(tmp_path: Path, stop: type[BaseException]) -> None:
    sinks = sinks_in(tmp_path)

    def interrupted(sink: Sink) -> None:
        with sink:
            for k in range(3):
                sink.write(Frame(k, numbered_frame(k), k / 10), boxes(k))
            raise stop

    for sink in sinks:
        with pytest.raises(stop):
            interrupted(sink)
    assert [sink.close() for sink in sinks] == [
        [tmp_path / name] for name in ("o.mp4", "o.jsonl", "palette", "binary", "cutout")
    ]
    assert len(decode(tmp_path / "o.mp4")[0]) == 3
    assert [json.loads(line)["frame"] for line in (tmp_path / "o.jsonl").read_text().splitlines()] == [0, 1, 2]
    for folder in ("palette", "binary/0", "cutout/0"):
        names = sorted(path.name for path in (tmp_path / folder).iterdir())
        assert names == ["00000.png", "00001.png", "00002.png"]
    assert leftovers(tmp_path) == []


def test_no_file_exists_before_close_or_after_abort(tmp_path: Path) -> None:
    for sink, path in (
        (OverlaySink(tmp_path / "o.mp4"), tmp_path / "o.mp4"),
        (RleSink(tmp_path / "o.jsonl"), tmp_path / "o.jsonl"),
    ):
        sink.write(Frame(0, numbered_frame(0)), boxes(0))
        assert not path.exists()
        sink.abort()
        assert sink.close() == []
    assert list(tmp_path.iterdir()) == []


def test_sinks_without_frames_leave_no_files(tmp_path: Path) -> None:
    for sink in sinks_in(tmp_path):
        assert sink.close() == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_closed_sinks_refuse_frames(tmp_path: Path) -> None:
    for sink in sinks_in(tmp_path):
        sink.close()
        with pytest.raises(VideoError, match="is already closed"):
            sink.write(Frame(0, numbered_frame(0)), boxes(0))


@pytest.mark.parametrize("live", [False, True])
def test_run_lengths_on_a_full_disk_keep_all_complete_frames(tmp_path: Path, live: bool) -> None:
    with RleSink(tmp_path / "one.jsonl") as one:
        one.write(Frame(0, numbered_frame(0)), boxes(0, count=2))
    path = tmp_path / "o.jsonl"
    sink = RleSink(path, live=live)
    sink.write(Frame(0, numbered_frame(0)), boxes(0, count=2))
    with file_size_limit(3 * (tmp_path / "one.jsonl").stat().st_size // 2):
        for _ in range(2):
            with pytest.raises(VideoError, match=r"o\.jsonl' cannot be written \(File too large\)"):
                sink.write(Frame(1, numbered_frame(1)), boxes(1, count=2))
        assert sink.close() == [path]
    assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == [0, 0]
    assert leftovers(tmp_path) == []


def test_run_lengths_continue_after_a_failed_write(tmp_path: Path) -> None:
    path = tmp_path / "o.jsonl"
    with RleSink(path, live=True) as sink:
        sink.write(Frame(0, numbered_frame(0)), boxes(0, count=2))
        with file_size_limit(path.stat().st_size + 50), pytest.raises(VideoError, match="cannot be written"):
            sink.write(Frame(1, numbered_frame(1)), boxes(1, count=2))
        sink.write(Frame(2, numbered_frame(2)), boxes(2, count=2))
    assert [json.loads(line)["frame"] for line in path.read_text().splitlines()] == [0, 0, 2, 2]


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {tests!r})
from test_video_sinks import Frame, boxes, numbered_frame, sinks_in
for sink in sinks_in(Path({folder!r})):
    for k in range(3):
        sink.write(Frame(k, numbered_frame(k), k / 10), boxes(k))
from refervos.files import writing as outputs
part = outputs.PartialFile(Path({folder!r}) / "palette" / "00003.png")
print("ready", flush=True)
if {wait}:
    sys.stdin.read()
os.kill(os.getpid(), signal.SIGKILL)
"""


def in_another_process(folder: Path, *, wait: bool) -> subprocess.Popen[str]:
    """Start a run that writes three frames and is then killed, immediately or when its input is closed."""
    code = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), wait=wait)
    run = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    if not wait:
        run.wait()
    return run


@pytest.mark.skipif(sys.platform == "win32", reason="killed by a signal")
def test_leftovers_of_a_killed_run_are_removed_by_the_next(tmp_path: Path) -> None:
    in_another_process(tmp_path, wait=False).communicate()
    assert len(leftovers(tmp_path)) == 3  # overlay, run lengths and an image
    others = [tmp_path / ".a.part", tmp_path / "b.0123abcd.part", tmp_path / ".0123abcd.part"]
    for path in others:
        path.touch()
    for sink in sinks_in(tmp_path, overwrite=True):
        with sink:
            sink.write(Frame(0, numbered_frame(0)), boxes(0))
    assert sorted(leftovers(tmp_path)) == sorted(others)


@pytest.mark.skipif(sys.platform == "win32", reason="killed by a signal")
def test_unfinished_files_of_a_live_run_are_kept(tmp_path: Path) -> None:
    other = in_another_process(tmp_path, wait=True)
    unfinished = leftovers(tmp_path)
    assert len(unfinished) == 3
    mine = RleSink(tmp_path / "mine.jsonl")
    mine.write(Frame(0, numbered_frame(0)), boxes(0))
    RleSink(tmp_path / "third.jsonl").abort()  # also in the same process
    mine.close()
    assert sorted(leftovers(tmp_path)) == sorted(unfinished)
    assert (tmp_path / "mine.jsonl").exists()
    other.communicate()
    outputs_module.prepare_folder(tmp_path)
    outputs_module.prepare_folder(tmp_path / "palette")
    assert leftovers(tmp_path) == []


# Single images


@pytest.mark.parametrize("name", ["o.png", "o.jpg", "o.webp"])
def test_overlay_of_a_single_image_is_an_image(tmp_path: Path, name: str) -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    path = tmp_path / "deep" / name
    with OverlayImageSink(path) as sink:
        sink.write(Frame(0, image, name="one"), boxes(0, 320, 240))
        with pytest.raises(VideoError, match="is a single image, but more frames follow"):
            sink.write(Frame(1, image), boxes(1, 320, 240))
    assert sink.close() == [path]
    drawn = draw_overlay(image, boxes(0, 320, 240), palette(1))
    with Image.open(path) as opened:
        assert np.abs(np.asarray(opened.convert("RGB")).astype(int) - drawn).mean() < 4
    with pytest.raises(VideoError, match="overwrite=True"):
        OverlayImageSink(path)
    with pytest.raises(VideoError, match="is already closed"):
        sink.write(Frame(0, image), boxes(0, 320, 240))
    OverlayImageSink(path, overwrite=True).abort()
    assert path.exists()
    assert leftovers(tmp_path) == []


def test_overlay_image_refuses_unsupported_suffixes_options_and_sizes(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"does not end in \.png, \.jpg, \.jpeg, \.webp"):
        OverlayImageSink(tmp_path / "o.mp4")
    with pytest.raises(VideoError, match=r"opacity is 2\.0"):
        OverlayImageSink(tmp_path / "o.png", opacity=2.0)
    sink = OverlayImageSink(tmp_path / "o.webp", legend=False)
    with pytest.raises(VideoError, match="cannot be written"):  # WebP allows at most 16383 pixels per side
        sink.write(Frame(0, np.zeros((4, 17000, 3), np.uint8)), no_tracks(0, 17000, 4))
    assert list(tmp_path.iterdir()) == []


def test_overlay_sink_is_an_image_or_a_video_like_the_source(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    Image.fromarray(numbered_frame(0)).save(tmp_path / "folder" / "1.png")
    video = write_video(tmp_path / "v.mp4", 1)
    stack = np.stack([numbered_frame(k) for k in range(2)])
    for spec, kind in (
        (tmp_path / "folder" / "1.png", OverlayImageSink),
        (tmp_path / "folder", OverlayImageSink),
        (stack[:1], OverlayImageSink),
        (stack, OverlaySink),
        (video, OverlaySink),
    ):
        with open_source(spec) as source:
            sink = overlay_sink(tmp_path / "out", source.info, opacity=0.5, overwrite=True)
            assert isinstance(sink, kind)
            for frame in source:
                sink.write(frame, boxes(frame.index))
            (path,) = sink.close()
            assert path == tmp_path / "out" / ("overlay.png" if kind is OverlayImageSink else "overlay.mp4")
    video.rename(tmp_path / "overlay.mp4")
    with open_source(tmp_path / "overlay.mp4") as source, pytest.raises(VideoError, match="is the video being read"):
        overlay_sink(tmp_path, source.info, overwrite=True)


# Live run lengths and streams


def test_live_run_lengths_grow_with_each_frame(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "o.jsonl"
    sink = RleSink(path, live=True)
    assert not path.exists()
    for k in range(3):
        sink.write(Frame(k, numbered_frame(k)), boxes(k, count=2))
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line["frame"] for line in lines] == sorted([*range(k + 1)] * 2)
    assert sink.close() == [path]
    assert leftovers(tmp_path) == []
    with pytest.raises(VideoError, match="overwrite=True"):
        RleSink(path, live=True)
    again = RleSink(path, live=True, overwrite=True)
    assert len(path.read_text().splitlines()) == 6  # until there is a new frame
    again.write(Frame(0, numbered_frame(0)), boxes(0))
    again.abort()
    assert len(path.read_text().splitlines()) == 1
    third = RleSink(tmp_path / "third.jsonl", live=True)
    (tmp_path / "third.jsonl").write_text("another's work")
    with pytest.raises(VideoError, match="cannot be written"):
        third.write(Frame(0, numbered_frame(0)), boxes(0))
    assert third.close() == []
    assert (tmp_path / "third.jsonl").read_text() == "another's work"


def test_run_lengths_are_written_to_a_stream(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with RleSink(stream) as sink:
        sink.write(Frame(0, numbered_frame(0)), boxes(0))
        first = stream.getvalue()
        sink.write(Frame(1, numbered_frame(1)), boxes(1))
    assert json.loads(first)["frame"] == 0
    assert not stream.closed
    assert [json.loads(line)["frame"] for line in stream.getvalue().splitlines()] == [0, 1]
    assert sink.close() == []
    stream.close()
    with pytest.raises(VideoError, match="cannot be written"):
        RleSink(stream).write(Frame(0, numbered_frame(0)), boxes(0))
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(VideoError, match="'/dev/full' cannot be written"):
        RleSink(full).write(Frame(0, numbered_frame(0)), boxes(0))


# Existing files and unwritable places


def test_existing_output_is_not_overwritten_unless_allowed(tmp_path: Path) -> None:
    for sink in sinks_in(tmp_path):
        with sink:
            sink.write(Frame(0, numbered_frame(0)), boxes(0))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for kind, name in (
        (OverlaySink, "o.mp4"),
        (RleSink, "o.jsonl"),
        (PaletteSink, "palette"),
        (BinarySink, "binary"),
        (CutoutSink, "cutout"),
    ):
        with pytest.raises(VideoError, match="overwrite=True"):
            kind(tmp_path / name)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for sink in sinks_in(tmp_path, overwrite=True):
        with sink:
            sink.write(Frame(0, numbered_frame(5)), boxes(0, count=2))
    assert all(path.read_bytes() != data for path, data in before.items() if "binary" not in str(path))
    assert leftovers(tmp_path) == []


def test_a_file_created_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    sink = RleSink(tmp_path / "o.jsonl")
    sink.write(Frame(0, numbered_frame(0)), boxes(0))
    (tmp_path / "o.jsonl").write_text("another's work")
    with pytest.raises(VideoError, match="; rename it yourself") as caught:
        sink.close()
    assert (tmp_path / "o.jsonl").read_text() == "another's work"
    (kept,) = tmp_path.glob("*.part")
    assert str(kept) in str(caught.value)
    # The finished file is visible, and not removed as a leftover by the next run.
    assert not kept.name.startswith(".")
    outputs_module.prepare_folder(tmp_path)
    assert json.loads(kept.read_text())["frame"] == 0


def test_unwritable_places_are_refused(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    for make in (
        lambda: OverlaySink(blocked / "o.mp4"),
        lambda: RleSink(blocked / "o.jsonl"),
        lambda: PaletteSink(blocked / "deeper"),
        lambda: RleSink(Path("/proc/none/o.jsonl")),
    ):
        with pytest.raises(VideoError, match="cannot be written"):
            make()
    with pytest.raises(VideoError, match="is a file; give a folder"):
        PaletteSink(blocked)
    with pytest.raises(VideoError, match="is a folder"):
        RleSink(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs_module.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        outputs_module.write_atomically(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert target.read_bytes() == b"old"


def test_segmentations_that_do_not_fit_the_frame_are_refused(tmp_path: Path) -> None:
    sinks = sinks_in(tmp_path)
    fewer = Segmentation(0, (0,), (), box_masks(64, 48), np.ones(1, np.float32), np.zeros(1, bool))
    for sink in sinks:
        with pytest.raises(VideoError, match=r"masks of shape \(1, 24, 32\)"):
            sink.write(Frame(0, numbered_frame(0)), boxes(0, 32, 24))
        with pytest.raises(VideoError, match="1 tracks but 0 expressions"):
            sink.write(Frame(0, numbered_frame(0)), fewer)
        sink.close()


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".."])
def test_frame_names_that_are_paths_are_refused(tmp_path: Path, name: str) -> None:
    sink = PaletteSink(tmp_path / "in")
    with pytest.raises(VideoError, match="must be the stem of a file"):
        sink.write(Frame(0, numbered_frame(0), name=name), boxes(0))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_repeated_frame_name_is_refused(tmp_path: Path) -> None:
    sink = PaletteSink(tmp_path)
    sink.write(Frame(0, numbered_frame(0), name="a"), boxes(0))
    with pytest.raises(VideoError, match="of an earlier frame"):
        sink.write(Frame(1, numbered_frame(1), name="a"), boxes(1))


# Masks


def test_the_palette_is_that_of_davis() -> None:
    colours = davis_palette().tolist()
    assert colours[:8] == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
    ]
    assert colours[8] == [64, 0, 0]
    assert colours[255] == [224, 224, 192]
    assert len({tuple(colour) for colour in colours}) == 256


def test_palette_images_number_tracks_by_first_appearance(tmp_path: Path) -> None:
    masks = box_masks(64, 48, 3)
    with PaletteSink(tmp_path) as sink:
        sink.write(Frame(0, numbered_frame(0)), segmentation(0, masks, ids=[5, 9, 2]))
        sink.write(Frame(1, numbered_frame(1), name="given"), segmentation(1, masks[:2], ids=[2, 9]))
        sink.write(Frame(12, numbered_frame(2)), no_tracks(12))
    with Image.open(tmp_path / "00000.png") as image:
        assert image.mode == "P"
        assert image.getpalette() == davis_palette().ravel().tolist()
        indices = np.asarray(image)
    expected = np.zeros((48, 64), np.uint8)
    for k, mask in enumerate(masks):
        expected[mask] = k + 1
    assert np.array_equal(indices, expected)
    # Track 9 stays the second and track 2 the third, whatever their order in the segmentation.
    expected[:] = 0
    expected[masks[1]] = 2
    expected[masks[0]] = 3
    assert np.array_equal(np.asarray(Image.open(tmp_path / "given.png")), expected)
    assert not np.asarray(Image.open(tmp_path / "00012.png")).any()


def test_palette_images_do_not_use_the_void_index_of_davis(tmp_path: Path) -> None:
    masks = np.zeros((254, 16, 16), bool)
    masks.reshape(254, 256)[range(254), range(254)] = True
    with PaletteSink(tmp_path / "most") as sink:
        sink.write(Frame(0, np.zeros((16, 16, 3), np.uint8)), segmentation(0, masks))
    indices = np.asarray(Image.open(next((tmp_path / "most").iterdir())))
    assert indices.max() == 254
    assert np.array_equal(indices.ravel()[:254], np.arange(1, 255))
    with pytest.raises(VideoError, match="More than 254 tracks"), PaletteSink(tmp_path / "more") as sink:
        sink.write(Frame(0, np.zeros((4, 4, 3), np.uint8)), segmentation(0, np.zeros((255, 4, 4), bool)))
    assert list((tmp_path / "more").iterdir()) == []


def test_binary_images_have_a_folder_per_track(tmp_path: Path) -> None:
    masks = box_masks(64, 48, 2)
    with BinarySink(tmp_path) as sink:
        sink.write(Frame(3, numbered_frame(0)), segmentation(3, masks, ids=[8, 6]))
        sink.write(Frame(4, numbered_frame(1), name="b"), segmentation(4, masks[:1], ids=[6]))
    for path, mask in (("0/00003.png", masks[0]), ("1/00003.png", masks[1]), ("1/b.png", masks[0])):
        with Image.open(tmp_path / path) as image:
            assert image.mode == "L"
            assert np.array_equal(np.asarray(image), np.where(mask, 255, 0))
    assert not (tmp_path / "0" / "b.png").exists()


def test_cutouts_show_only_the_object(tmp_path: Path) -> None:
    masks = box_masks(64, 48, 2)
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    with CutoutSink(tmp_path) as sink:
        sink.write(Frame(0, image), segmentation(0, masks))
    for k, mask in enumerate(masks):
        with Image.open(tmp_path / str(k) / "00000.png") as opened:
            assert opened.mode == "RGBA"
            cutout = np.asarray(opened)
        assert np.array_equal(cutout[..., 3], np.where(mask, 255, 0))
        assert np.array_equal(cutout[mask][:, :3], image[mask])
        assert not cutout[~mask].any()


def test_run_lengths_decode_to_the_same_masks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((3, 47, 63)) > 0.6
    masks[1] = False
    given = Segmentation(
        frame_index=7,
        track_ids=(3, 1, 2),
        expressions=("größe 東京\n", 'a "quoted" \ud800 one', "plain"),
        masks=masks,
        presence=np.array([0.9, np.nan, 1], np.float32),
        switched=np.array([True, False, False]),
    )
    image = np.zeros((47, 63, 3), np.uint8)
    with RleSink(tmp_path / "o.jsonl") as sink:
        sink.write(Frame(7, image, time=0.28), given)
        sink.write(Frame(8, image), no_tracks(8, 63, 47))
    lines = (tmp_path / "o.jsonl").read_bytes().split(b"\n")
    assert lines.pop() == b""
    records = [json.loads(line) for line in lines]
    assert list(records[0]) == [
        "frame",
        "time",
        "track",
        "expression",
        "size",
        "counts",
        "presence",
        "switched",
        "area",
        "bbox",
    ]
    for k, record in enumerate(records):
        rle = {"size": record["size"], "counts": record["counts"].encode()}
        assert np.array_equal(coco.decode(rle).astype(bool), masks[k])
        assert record["frame"] == 7
        assert record["time"] == 0.28
        assert record["track"] == given.track_ids[k]
        assert record["expression"] == given.expressions[k]
        assert record["area"] == masks[k].sum()
    assert [record["presence"] for record in records] == [0.9, None, 1.0]
    assert [record["switched"] for record in records] == [True, False, False]
    assert records[1]["bbox"] == [0, 0, 0, 0]
    rows, columns = np.flatnonzero(masks[0].any(1)), np.flatnonzero(masks[0].any(0))
    assert records[0]["bbox"] == [
        columns[0],
        rows[0],
        columns[-1] - columns[0] + 1,
        rows[-1] - rows[0] + 1,
    ]


# Drawing


def test_a_mask_is_tinted_inside_and_unchanged_outside() -> None:
    image = np.full((240, 320, 3), 128, np.uint8)
    before = image.copy()
    mask = np.zeros((1, 240, 320), bool)
    mask[0, 100:200, 100:220] = True
    out = draw_overlay(image, segmentation(0, mask), [(255, 0, 0)], opacity=0.5, legend=False)
    assert np.array_equal(image, before)
    assert out[150, 160].tolist() == [192, 64, 64]
    assert out[100, 160].tolist() == [255, 0, 0]
    assert (out[99, 160] < 60).all()
    assert np.array_equal(out[:90], image[:90])
    assert np.array_equal(out[210:], image[210:])


def test_outlines_skip_the_image_border_and_are_not_hidden_by_later_masks() -> None:
    image = np.full((60, 80, 3), 128, np.uint8)
    masks = np.zeros((2, 60, 80), bool)
    masks[0, :, :40] = True
    masks[1] = True
    out = draw_overlay(image, segmentation(0, masks), [(255, 0, 0), (0, 0, 255)], legend=False)
    assert out[30, 39].tolist() == [255, 0, 0]
    assert out[30, 0].tolist() == out[30, 20].tolist()
    assert out[0, 60].tolist() == out[30, 60].tolist()


def test_legend_lists_every_track_and_dims_absent_ones() -> None:
    image = np.full((480, 640, 3), 200, np.uint8)
    masks = np.zeros((2, 480, 640), bool)
    colours = palette(2)

    def drawn(presence: list[float]) -> np.ndarray:
        return draw_overlay(image, segmentation(0, masks, presence=presence), colours)

    both, one = drawn([1, 1]), drawn([1, 0.2])
    changed = np.argwhere((both != image).any(-1))
    assert changed[:, 0].max() < 0.34 * 480
    for k, colour in enumerate(colours):
        full = int((both == colour).all(-1).sum())
        assert full > 100
        visible = int((one == colour).all(-1).sum())
        assert (visible < full / 2) == (k == 1)
    assert np.array_equal(draw_overlay(image, segmentation(0, masks), colours, legend=False), image)


@pytest.mark.parametrize(
    "text",
    ["", "東京タワーの前を歩く人", "🦊 fox", "a\nb\tc\0", "\ud800 lone", "مرحبا", "long " * 200, "\u202e turned"],
)
def test_legend_accepts_any_text(text: str) -> None:
    for height, width in ((240, 320), (48, 64), (2, 2), (600, 90), (90, 600)):
        given = Segmentation(
            0,
            (0,),
            (text,),
            np.zeros((1, height, width), bool),
            np.array([np.nan], np.float32),
            np.zeros(1, bool),
        )
        image = np.zeros((height, width, 3), np.uint8)
        assert draw_overlay(image, given, palette(1)).shape == image.shape


def test_legend_collapses_white_space() -> None:
    image = np.full((240, 320, 3), 200, np.uint8)
    one, other = (
        Segmentation(0, (0,), (text,), np.zeros((1, 240, 320), bool), np.ones(1, np.float32), np.zeros(1, bool))
        for text in ("the red fox", "  the\nred \t fox ")
    )
    assert np.array_equal(draw_overlay(image, one, palette(1)), draw_overlay(image, other, palette(1)))


def test_legend_of_many_tracks_leaves_most_of_the_frame_visible() -> None:
    image = np.full((360, 480, 3), 200, np.uint8)
    given = segmentation(0, np.zeros((60, 360, 480), bool))
    changed = np.argwhere((draw_overlay(image, given, palette(60)) != image).any(-1))
    assert 0 < changed[:, 0].max() < 0.4 * 360


def test_palette_is_distinct_and_stable() -> None:
    assert palette(0) == []
    many = palette(264)
    assert many[:5] == palette(5)
    assert len(set(many)) == 264
    first = np.array(palette(24), int)
    gaps = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(24, dtype=int)
    assert gaps.min() >= 60
    assert len(palette(300)) == 300


# Progress


def test_progress_is_shown_on_standard_error_unless_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter(range(3)), total=3, description="Segmenting", disable=False)) == [0, 1, 2]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Segmenting" in printed.err
    assert "3/3" in printed.err
    assert "frames/s" in printed.err
    assert list(progress([1, 2], disable=True)) == [1, 2]
    assert capsys.readouterr().err == ""


def test_frames_without_times_use_the_rate_of_the_source(tmp_path: Path) -> None:
    source = open_source(np.stack([numbered_frame(k) for k in range(3)]), fps=Fraction(5))
    with OverlaySink(tmp_path / "o.mp4", source.info) as sink:
        for frame in source:
            sink.write(Frame(frame.index, frame.image), no_tracks(frame.index))
    assert decode(tmp_path / "o.mp4")[1] == pytest.approx([0, 0.2, 0.4], abs=1e-4)
