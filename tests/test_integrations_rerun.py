"""Rerun: recordings are read back by its own reader, equal to the pixel."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from difficult_masks import EXPRESSIONS, HEIGHT, INDICES, TIMES, WIDTH, difficult_video, masks_of
from refervos.errors import OutputError
from refervos.integrations import rerun as adapter
from refervos.integrations.rerun import RerunLogger, RerunSink
from refervos.video import Frame
from video_files import file_size_limit
from video_files import segmentation as segmentation_of

rr = pytest.importorskip("rerun", reason="rerun-sdk is 660 MB: install the extra 'rerun' to run these tests")

NUMBERS = {4: 0, 9: 1, 7: 2}
"""Tracks in order of first appearance."""


def _columns(batch: Any) -> Any:
    """Leave out when things were logged, in nanoseconds, which pyarrow converts only with pandas."""
    return batch.select([name for name in batch.schema.names if name != "log_time"])


def rows(paths: Iterator[Path] | list[Path], entity: str) -> list[dict[str, Any]]:
    """Read the rows of an entity from the files of a recording, in the order of the frames; static ones first."""
    from rerun.chunk import RrdReader

    found = [
        row
        for path in sorted(paths)
        for chunk in RrdReader(path).stream()
        if chunk.entity_path == entity
        for row in _columns(chunk.to_record_batch()).to_pylist()
    ]
    return sorted(found, key=lambda row: row.get("frame", -1))


def record(folder: Path, video: list[Any], **options: Any) -> list[Path]:
    with RerunSink(folder, **options) as sink:
        for frame, segmentation in video:
            sink.write(frame, segmentation)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("overlapping", [False, True])
def test_masks_are_read_back_equal_to_the_pixel(tmp_path: Path, overlapping: bool) -> None:
    video = difficult_video(overlapping=overlapping)
    files = record(tmp_path / "out", video)
    assert len(files) == 1
    expected = masks_of(video)
    for track, number in NUMBERS.items():
        logged = rows(files, f"/video/masks/{number}")
        images = {row["frame"]: row for row in logged if row.get("SegmentationImage:buffer")}
        assert set(images) == {index for index, other in expected if other == track}
        for index, row in images.items():
            layout = row["SegmentationImage:format"][0]
            assert (layout["width"], layout["height"]) == (WIDTH, HEIGHT)
            ids = np.array(row["SegmentationImage:buffer"][0], np.uint8).reshape(HEIGHT, WIDTH)
            assert np.array_equal(ids == number + 1, expected[index, track])
            assert set(np.unique(ids)) <= {0, number + 1}
            assert row["time"].total_seconds() == pytest.approx(TIMES[INDICES.index(index)])


def test_a_dropped_track_is_cleared_and_presence_is_kept(tmp_path: Path) -> None:
    video = difficult_video()
    files = record(tmp_path / "out", video)
    cleared = [row["frame"] for row in rows(files, "/video/masks/1") if row.get("Clear:is_recursive")]
    assert cleared == [8]  # once, in the frame in which it is no longer followed
    for track, number in NUMBERS.items():
        presences = rows(files, f"/presence/{number}")
        logged = {row["frame"]: row["Scalars:scalars"] for row in presences if row.get("Scalars:scalars")}
        expected = {
            frame.index: [float(presence)]
            for frame, segmentation in video
            for other, presence in zip(segmentation.track_ids, segmentation.presence, strict=True)
            if other == track
        }
        assert logged == expected


def test_more_than_255_tracks_are_told_apart(tmp_path: Path) -> None:
    masks = np.zeros((257, 2, 2), bool)
    masks[[0, 254, 256], 0, 1] = True
    with RerunSink(tmp_path / "out") as sink:
        sink.write(Frame(0, np.zeros((2, 2, 3), np.uint8)), segmentation_of(0, masks))
    for number, dtype in ((0, np.uint8), (254, np.uint8), (256, np.uint16)):
        (row,) = rows(list((tmp_path / "out").iterdir()), f"/video/masks/{number}")
        ids = np.array(row["SegmentationImage:buffer"][0], np.uint8).view(dtype)
        assert ids.tolist() == [0, number + 1, 0, 0]


def test_names_and_colours_are_those_of_the_overlay(tmp_path: Path) -> None:
    files = record(tmp_path / "out", difficult_video())
    context = rows(files, "/video")[-1]["AnnotationContext:context"][0]
    background, *classes = ({"id": each["class_id"], **each["class_description"]["info"]} for each in context)
    assert (background["id"], background["color"]) == (0, 0)  # transparent
    assert {each["id"]: each["label"] for each in classes} == {
        number + 1: EXPRESSIONS[track] for track, number in NUMBERS.items()
    }
    colours = [each["color"] >> 8 for each in classes]
    assert colours == [red << 16 | green << 8 | blue for red, green, blue in adapter.palette(3)]


def test_frames_are_stored_with_index_and_time(tmp_path: Path) -> None:
    video = difficult_video()
    smooth = [(Frame(f.index, np.full_like(f.image, 20 * k), f.time), s) for k, (f, s) in enumerate(video)]
    stored = rows(record(tmp_path / "out", smooth), "/video/image")
    assert [row["frame"] for row in stored] == list(INDICES)
    assert [row["time"].total_seconds() for row in stored] == pytest.approx(TIMES)
    for (frame, _), row in zip(smooth, stored, strict=True):
        with Image.open(io.BytesIO(bytes(row["EncodedImage:blob"][0]))) as image:
            assert np.abs(np.asarray(image).astype(int) - frame.image).max() <= 2


def test_frames_without_times_have_no_time(tmp_path: Path) -> None:
    video = [(Frame(frame.index, frame.image), segmentation) for frame, segmentation in difficult_video()]
    stored = rows(record(tmp_path / "out", video), "/video/image")
    assert [row["frame"] for row in stored] == list(INDICES)
    assert all("time" not in row for row in stored)


def test_long_recordings_have_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "PART_SIZE", 1)
    video = difficult_video()
    files = record(tmp_path / "out", video)
    assert [path.name.partition("-")[0] for path in files] == [f"{index:06d}" for index in INDICES]
    from rerun.chunk import RrdReader

    recordings = {entry.recording_id for path in files for entry in RrdReader(path).recordings()}
    assert len(recordings) == 1
    assert [row["frame"] for row in rows(files, "/video/masks/0")] == list(INDICES)
    # The names are in the first file, and again only where a track is new.
    assert [len(rows([path], "/video")) for path in files] == [1, 0, 1, 0, 0, 0]


def test_an_earlier_recording_is_kept_continued_or_replaced(tmp_path: Path) -> None:
    video = difficult_video()
    (first,) = record(tmp_path / "out", video[:3])
    with pytest.raises(OutputError, match="already has a recording; choose another folder"):
        RerunSink(tmp_path / "out")
    both = record(tmp_path / "out", video[3:], resume=True)
    assert first in both
    assert len(both) == 2
    assert len({path.stem.partition("-")[2] for path in both}) == 1
    assert [row["frame"] for row in rows(both, "/video/image")] == list(INDICES)
    assert first not in record(tmp_path / "out", video, overwrite=True)
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_full_disk_is_one_sentence_and_leaves_no_partial_file(tmp_path: Path) -> None:
    sink = RerunSink(tmp_path / "out")
    for frame, segmentation in difficult_video():
        sink.write(frame, segmentation)
    with file_size_limit(1000), pytest.raises(OutputError, match="cannot be written"):
        sink.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_frames_can_be_logged_to_any_recording(tmp_path: Path) -> None:
    recording = rr.RecordingStream("mine")
    recording.save(tmp_path / "mine.rrd")
    logger = RerunLogger()
    for frame, segmentation in difficult_video():
        assert logger.log(recording, frame, segmentation) > 0
    recording.flush(timeout_sec=30)
    recording.disconnect()
    assert [row["frame"] for row in rows([tmp_path / "mine.rrd"], "/video/image")] == list(INDICES)


def test_rerun_verifies_the_file(tmp_path: Path) -> None:
    import subprocess

    (file,) = record(tmp_path / "out", difficult_video())
    command = [sys.executable, "-m", "rerun", "rrd", "verify", str(file)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "1 file verified without error" in found.stdout + found.stderr


def test_the_command_line_writes_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from refervos.cli.entry import app

    video = Path(__file__).parents[1] / "examples" / "data" / "shapes.mp4"
    command = ["segment", str(video), "the red circle", "--start", "2", "--frames", "9", "--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, [*command, "--save", "rerun", "--save", "masks"])
    assert outcome.exit_code == 0, outcome.output
    recorded = rows(list((tmp_path / "out" / "rerun").iterdir()), "/video/masks/0")
    assert [row["frame"] for row in recorded] == list(range(2, 11))
    assert recorded[0]["time"].total_seconds() == pytest.approx(2 / 25)
    for row in recorded:
        layout = row["SegmentationImage:format"][0]
        ids = np.array(row["SegmentationImage:buffer"][0], np.uint8).reshape(layout["height"], layout["width"])
        with Image.open(tmp_path / "out" / "masks" / f"{row['frame']:05d}.png") as image:
            assert np.array_equal(ids, np.asarray(image))
