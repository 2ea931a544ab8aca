"""A job over many videos: whatever happens to its processes, its files are those of an undisturbed run."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from pycocotools import mask as coco

import refervos
from batch_jobs import (
    PATIENT,
    SENTENCES,
    begin,
    draw_videos,
    files,
    video_server,
    work,
    write_manifest,
)
from refervos.batch.decoding import Decoder, DecoderDiedError
from refervos.batch.job import Job, Options, latest_records
from refervos.batch.leases import Lease, Leases
from refervos.batch.manifest import read_manifest
from refervos.batch.merging import check, merge
from refervos.batch.run_local import run_local
from refervos.batch.shard_files import UnitRecord, mask_schema, unit_schema
from refervos.batch.states import saved_units
from refervos.batch.status import status_of
from refervos.batch.storage import open_store
from refervos.batch.worker import LOST_LIMIT, WorkerSettings
from refervos.cli.entry import main
from refervos.errors import ConfigError, DataError, OutputError

pytestmark = [pytest.mark.usefixtures("one_thread", "loaded_once")]

FRAMES = (24, 10, 5, 3, 2)
"""Frames of the videos of the undisturbed run."""


_LOADED: dict[str, Any] = {}


@pytest.fixture
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the miniature once for all tests in this process."""
    load = Options.load

    def load_once(options: Options, device: str | None) -> Any:
        if options.model != "miniature":
            return load(options, device)
        key = json.dumps(dict(options.settings), sort_keys=True)
        if key not in _LOADED:
            _LOADED[key] = load(options, device)
        return _LOADED[key]

    monkeypatch.setattr(Options, "load", load_once)


def records_of(job: Job) -> dict[str, UnitRecord]:
    """Return the latest outcome of each video, by the name of its file."""
    latest = latest_records(job.shards(), job.records())
    return {Path(unit.uri).name: latest[unit.name][0] for shard in job.shards() for unit in shard.units}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a manifest of five videos and the folder of an undisturbed run."""
    root = tmp_path_factory.mktemp("batch")
    manifest = write_manifest(root / "videos.jsonl", draw_videos(root / "videos", FRAMES), SENTENCES, FRAMES)
    work(begin(root / "out", manifest, shard_seconds=0.5))
    return manifest, root / "out"


def test_the_rows_are_the_masks_of_a_session(undisturbed: tuple[Path, Path]) -> None:
    _, out = undisturbed
    job = Job.open(open_store(out))
    assert len(files(out)) == len(job.shards()) > 2
    model = refervos.load("miniature", device="cpu")
    for shard in job.shards():
        table = parquet.read_table(out / "data" / f"{shard.name}.parquet").to_pylist()
        for unit in shard.units:
            session = model.open(SENTENCES, border_cells=7)
            rows = iter([row for row in table if row["unit"] == unit.name])
            with refervos.open_source(unit.uri) as source:
                frames = list(source)
                for frame, found in zip(frames, session.stream(f.image for f in frames), strict=True):
                    for track in (0, 1):
                        row = next(rows)
                        assert (row["track"], row["frame"], row["pts"]) == (track, frame.index, frame.time)
                        assert row["presence"] == found.presence[track]
                        mask = coco.decode({"size": row["size"], "counts": row["counts"]})
                        assert np.array_equal(mask.astype(bool), found.masks[track])
            assert next(rows, None) is None


def test_units_have_rows_and_files_have_the_stamp(undisturbed: tuple[Path, Path]) -> None:
    _, out = undisturbed
    job = Job.open(open_store(out))
    rows = [row for name in files(out, "_units") for row in parquet.read_table(out / "_units" / name).to_pylist()]
    assert len(rows) == 5
    assert {row["status"] for row in rows} == {"ok"}
    assert sorted(row["frames"] for row in rows) == [2, 3, 5, 10, 24]
    assert {row["fingerprint"] for row in rows} == {job.fingerprint}
    assert {row["version"] for row in rows} == {refervos.__version__}
    assert all(row["expressions"] == list(SENTENCES) and row["seconds"] > 0 for row in rows)
    for name in files(out):
        stamp = json.loads(parquet.read_schema(out / "data" / name).metadata[b"refervos.stamp"])
        assert stamp == job.stamp
    assert job.store.names("_leases") == job.store.names("_state") == []


def test_a_second_run_has_nothing_to_do_and_new_videos_are_added(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, out = undisturbed
    before = files(out)
    job = begin(out, manifest, shard_seconds=0.5)
    assert job.finished() == {shard.name for shard in job.shards()}
    assert files(out) == before
    more = draw_videos(tmp_path / "more", [2])
    lines = manifest.read_text()
    longer = tmp_path / "longer.jsonl"
    longer.write_text(lines + json.dumps({"video": str(more[0]), "expression": "the red circle"}) + "\n")
    job = begin(out, longer)
    assert len(job.shards()) == len(before) + 1
    (out / "_plan" / "0001.parquet").unlink()  # other tests use the folder


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"clip": 4}, "results with clip null, not 4"), ({"settings": {"cme": False}}, "results with")],
)
def test_a_folder_is_not_mixed(change: dict[str, Any], sentence: str, undisturbed: tuple[Path, Path]) -> None:
    manifest, out = undisturbed
    with pytest.raises(OutputError, match=sentence):
        begin(out, manifest, **change)


def test_a_changed_video_is_another_unit(tmp_path: Path) -> None:
    (video,) = draw_videos(tmp_path, [2])
    manifest = write_manifest(tmp_path / "m.jsonl", [video])
    job = begin(tmp_path / "out", manifest)
    (first,) = [unit.name for shard in job.shards() for unit in shard.units]
    draw_videos(tmp_path, [3])
    work(job)  # planned before the change
    record = records_of(job)[video.name]
    assert (record.status, record.error) == ("failed", "InputChangedError")
    job = begin(tmp_path / "out", manifest)
    assert len({unit.name for shard in job.shards() for unit in shard.units} - {first}) == 1
    work(job)
    assert sorted(record.status for shard in job.records().values() for record in shard) == ["failed", "ok"]


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Return a folder with a good, a truncated, a cut off, an empty and a stalling video."""
    good, cut, index, stalls = draw_videos(tmp_path / "videos", [3, 12, 4, 4])
    content = cut.read_bytes()
    (tmp_path / "videos" / "truncated.mp4").write_bytes(index.read_bytes()[:300])
    (tmp_path / "videos" / "cut.mkv").write_bytes(b"")
    from video_files import write_video

    whole = write_video(tmp_path / "videos" / "cut.mkv", 12)
    whole.write_bytes(whole.read_bytes()[: int(len(whole.read_bytes()) * 0.6)])
    (tmp_path / "videos" / "empty.mp4").write_bytes(b"")
    stalls.rename(tmp_path / "videos" / "stalls.mp4")
    assert good.exists()
    assert content
    return tmp_path / "videos"


def test_faulty_videos_are_rows_with_a_reason_and_tried_three_times(faulty: Path, tmp_path: Path) -> None:
    names = ["000.mp4", "truncated.mp4", "empty.mp4", "cut.mkv", "missing.mp4"]
    job = begin(tmp_path / "out", write_manifest(tmp_path / "m.jsonl", [faulty / name for name in names]))
    work(job)
    found = records_of(job)
    assert {name: record.status for name, record in found.items()} == {
        "000.mp4": "ok",
        "truncated.mp4": "failed",
        "empty.mp4": "failed",
        "cut.mkv": "ok",
        "missing.mp4": "failed",
    }
    assert "is truncated" in (found["truncated.mp4"].reason or "")
    assert "is empty (0 bytes)" in (found["empty.mp4"].reason or "")
    assert "does not exist" in (found["missing.mp4"].reason or "")
    assert found["empty.mp4"].attempts == 3
    assert 0 < found["cut.mkv"].frames < 12
    assert any("truncated" in warning for warning in found["cut.mkv"].warnings)
    status = status_of(job)
    assert (status.done, status.failed, status.left) == (2, 3, 0)


def test_failed_videos_are_repeated_on_request(tmp_path: Path) -> None:
    videos = draw_videos(tmp_path / "videos", [2, 3])
    content = videos[1].read_bytes()
    times = os.stat(videos[1])
    videos[1].write_bytes(bytes(len(content)))  # as a disk with a passing fault
    os.utime(videos[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    job = begin(tmp_path / "out", write_manifest(tmp_path / "m.jsonl", videos, frames=[2, 3]))
    work(job)
    assert records_of(job)["001.mp4"].status == "failed"
    assert len(files(tmp_path / "out")) == 1
    work(job)
    assert len(files(tmp_path / "out")) == 1  # in quarantine
    videos[1].write_bytes(content)
    os.utime(videos[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    assert job.repeat_failed() == 1
    assert job.repeat_failed() == 0  # planned already
    work(job)
    assert records_of(job)["001.mp4"].status == "ok"
    assert status_of(job).failed == 0
    merge(job, tmp_path / "all.parquet")
    units = parquet.read_table(tmp_path / "all.units.parquet").to_pylist()
    assert sorted((unit["status"], unit["generation"]) for unit in units) == [("ok", 0), ("ok", 1)]


def test_a_hanging_decoder_is_killed(faulty: Path, tmp_path: Path) -> None:
    with video_server(faulty) as address:
        job = begin(tmp_path / "out", write_manifest(tmp_path / "m.jsonl", [f"{address}/stalls.mp4"]))
        worker = work(job, dataclasses.replace(PATIENT, timeout=3.0))
    (record,) = records_of(job).values()
    assert (record.error, record.attempts) == ("DecoderTimeoutError", 3)
    assert worker._decoder._child is None


def test_videos_on_a_web_server_are_read_by_ranges(faulty: Path, tmp_path: Path) -> None:
    with video_server(faulty) as address:
        videos = [f"{address}/{name}" for name in ("000.mp4", "truncated.mp4", "empty.mp4", "no.mp4")]
        job = begin(tmp_path / "out", write_manifest(tmp_path / "m.jsonl", videos))
        work(job)
    found = records_of(job)
    assert (found["000.mp4"].status, found["000.mp4"].frames) == ("ok", 3)
    assert "is truncated" in (found["truncated.mp4"].reason or "")
    assert "is empty" in (found["empty.mp4"].reason or "")
    assert found["no.mp4"].status == "failed"


def test_a_crashing_decoder_is_an_error_of_the_video(tmp_path: Path) -> None:
    (video,) = draw_videos(tmp_path, [300])
    decoder = Decoder()
    frames = decoder.frames(str(video), 0, None, version=None, patience=60, total=60)
    next(frames)
    assert decoder._child is not None
    decoder._child.close()
    with pytest.raises(DecoderDiedError, match="killed by SIGKILL"):
        list(frames)
    # The next video gets a new process.
    assert len(list(decoder.frames(str(video), 298, None, version=None, patience=60, total=60))) == 2
    decoder.close()


def test_a_stopped_worker_saves_its_sessions_and_another_goes_on(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, out = undisturbed
    job = begin(tmp_path / "out", manifest, shard_seconds=0.5)
    continued = set()
    for frames in (1, 8, 9, 3, 6):
        work(job, stop_after=frames)
        assert job.store.names("_leases") == []
        continued |= saved_units(job.store)
    assert continued
    work(job)
    assert files(tmp_path / "out") == files(out)
    assert saved_units(job.store) == set()


def test_a_state_that_is_damaged_is_begun_again(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, out = undisturbed
    job = begin(tmp_path / "out", manifest, shard_seconds=0.5)
    work(job, stop_after=8)
    (name,) = saved_units(job.store)
    path = tmp_path / "out" / "_state" / f"{name}.state"
    path.write_bytes(path.read_bytes()[:-100])
    work(job)
    assert files(tmp_path / "out") == files(out)


def test_a_long_video_goes_on_from_its_last_state_after_a_kill(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, out = undisturbed

    class Killed(BaseException):
        """Ends a worker at once, as a kill does."""

    def kill() -> bool:
        if saved_units(job.store):
            raise Killed
        return False

    job = begin(tmp_path / "out", manifest, shard_seconds=0.5)
    with pytest.raises(Killed):
        work(job, dataclasses.replace(PATIENT, save_every=0.0), stop=kill)
    assert len(saved_units(job.store)) == 1
    work(job)
    assert files(tmp_path / "out") == files(out)


def test_leases_are_taken_over_from_the_dead_and_count_them(tmp_path: Path) -> None:
    store, now = open_store(tmp_path), [1000.0]
    one, other = (Leases(store, name, clock=lambda: now[0], lasts=60) for name in ("one", "other"))
    lease = one.acquire("shard")
    assert lease is not None
    assert other.acquire("shard") is None
    now[0] += 50
    one.renew("shard", lease)
    now[0] += 50
    assert other.acquire("shard") is None
    lease.unit = "u"
    one.renew("shard", lease, now=True)
    now[0] += 61
    taken = other.acquire("shard")
    assert taken is not None
    assert taken.lost == {"u": [1, 0]}
    other.release("shard")
    free = one.acquire("shard")
    assert free is not None
    assert free.lost == {}


def test_a_lease_of_a_dead_process_of_this_machine_is_void_at_once(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    child = os.fork()
    if not child:
        Leases(store, "dead").acquire("shard")
        os._exit(0)
    os.waitpid(child, 0)
    assert Leases(store, "other").acquire("shard") is not None


@pytest.mark.parametrize("position", [0, -1])
def test_a_video_at_which_workers_die_is_given_up(
    position: int, undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, _ = undisturbed
    job = begin(tmp_path / "out", manifest, shard_seconds=0.7)
    shard = next(shard for shard in job.shards() if len(shard.units) > 1)
    unit = shard.units[position]
    for _ in range(LOST_LIMIT):
        child = os.fork()
        if not child:
            leases = Leases(job.store, "dying")
            lease = leases.acquire(shard.name)
            for each in shard.units:
                if lease is not None:
                    lease.unit, lease.frame = each.name, each.start
                    leases.renew(shard.name, lease, now=True)
                if each is unit:
                    os._exit(9)
        os.waitpid(child, 0)
    work(job)
    record = records_of(job)[Path(unit.uri).name]
    assert (record.status, record.error, record.attempts) == ("failed", "WorkerDiedError", LOST_LIMIT)
    assert status_of(job).done == 4


def test_deaths_count_only_without_progress() -> None:
    lease = Lease("w", "h", 1, 0, lost={"u": [4, 40]})
    assert lease.deaths("u", 40) == 4
    assert lease.deaths("other", 0) == 0
    assert lease.deaths("u", 48) == 0
    assert lease.lost == {}


def killed_runs(kills: int, job: Job, number: int, seconds: Callable[[], float]) -> int:
    """Start workers in forked processes and end each by a signal at a random moment; return how many were at work."""
    killed = 0
    for _ in range(kills):
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            work(job, dataclasses.replace(PATIENT, save_every=0.2))
            os._exit(0)
        time.sleep(seconds())
        try:
            os.killpg(child, number)
        except ProcessLookupError:
            os.kill(child, number)
        _, code = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(code)
    return killed


def test_kills_at_random_moments_leave_the_files_of_an_undisturbed_run(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, out = undisturbed
    job = begin(tmp_path / "out", manifest, shard_seconds=0.5)
    draw = random.Random(5)
    records = Job.open(open_store(out)).records().values()
    whole = sum(record.seconds or 0.0 for each in records for record in each)
    assert killed_runs(6, job, signal.SIGKILL, lambda: draw.uniform(0.05, 0.4) * whole) >= 2
    work(job)
    job.write_missing_records()
    assert files(tmp_path / "out") == files(out)
    assert sorted(files(tmp_path / "out", "_units")) == sorted(files(out, "_units"))
    assert check(job) == check(Job.open(open_store(out)))


def test_rows_of_units_that_a_killed_worker_did_not_write_are_written_later(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(undisturbed[1], tmp_path / "out")
    job = Job.open(open_store(tmp_path / "out"))
    whole = [(record.unit, record.status, record.frames) for each in job.records().values() for record in each]
    (tmp_path / "out" / "_units" / f"{job.shards()[0].name}.parquet").unlink()
    job.write_missing_records()
    again = [(record.unit, record.status, record.frames) for each in job.records().values() for record in each]
    assert again == whole


def test_a_merged_file_has_every_row_once(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    job = Job.open(open_store(undisturbed[1]))
    masks, units = merge(job, tmp_path / "all.parquet")
    table = parquet.read_table(masks)
    assert table.num_rows == 2 * (24 + 10 + 5 + 3 + 2)
    keys = list(zip(*(table.column(name).to_pylist() for name in ("unit", "frame", "track")), strict=True))
    assert len(set(keys)) == len(keys)
    assert json.loads(table.schema.metadata[b"refervos.stamp"]) == job.stamp
    assert parquet.read_table(units).num_rows == 5
    with pytest.raises(OutputError, match="exists already"):
        merge(job, tmp_path / "all.parquet")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data, names: (data / names[0]).write_bytes((data / names[0]).read_bytes()[:-50]), "is damaged"),
        (lambda data, names: (data / names[0]).unlink(), "1 of the . shards .* are not finished"),
        (lambda data, names: (data / names[0]).rename(data / "other.parquet"), "not finished"),
        (lambda data, names: (data / "other.parquet").write_bytes((data / names[0]).read_bytes()), "no plan"),
        (lambda data, names: (data / names[0]).write_bytes((data / names[1]).read_bytes()), "renamed file"),
        (
            lambda data, names: parquet.write_table(parquet.read_table(data / names[0])[:-1], data / names[0]),
            "has not all rows",
        ),
        (
            lambda data, names: parquet.write_table(
                parquet.read_table(data / names[0]).replace_schema_metadata(None), data / names[0]
            ),
            "was not written by refervos batch",
        ),
    ],
)
def test_a_damaged_folder_is_not_merged(
    damage: Callable[[Path, list[str]], object], sentence: str, undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(undisturbed[1], tmp_path / "out")
    damage(tmp_path / "out" / "data", sorted(os.listdir(tmp_path / "out" / "data")))
    with pytest.raises(DataError, match=sentence):
        merge(Job.open(open_store(tmp_path / "out")), tmp_path / "all.parquet")
    assert not (tmp_path / "all.parquet").exists()


def test_results_on_an_object_store_have_the_same_bytes(undisturbed: tuple[Path, Path]) -> None:
    manifest, out = undisturbed
    job = begin("memory://masks", manifest, shard_seconds=0.5)
    work(job, stop_after=10)
    work(job)
    assert {name: job.store.read(f"data/{name}") for name in job.store.names("data")} == files(out)
    assert status_of(job).done == 5


@pytest.mark.parametrize(("call", "done"), [("ls", "listed"), ("pipe_file", "written"), ("cat_file", "read")])
def test_an_object_store_that_fails_is_named(
    call: str, done: str, undisturbed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unable to locate\ncredentials")  # the errors of object stores have classes of their own

    if call == "cat_file":
        begin("memory://failing", undisturbed[0])
    monkeypatch.setattr(MemoryFileSystem, call, fail)
    sentence = (
        rf"'memory://failing.*' cannot be {done} \(unable to locate credentials\); check the address and the cred"
    )
    with pytest.raises(OutputError, match=sentence):
        begin("memory://failing", undisturbed[0])


def test_videos_behind_a_failing_server_are_not_just_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    manifest = write_manifest(tmp_path / "m.jsonl", ["memory://films/a.mp4"])
    with pytest.raises(DataError, match=r"such as 'memory://films/a.mp4'; paths are relative"):
        begin(tmp_path / "out", manifest)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("unable to locate credentials")

    monkeypatch.setattr(MemoryFileSystem, "info", fail)
    with pytest.raises(DataError, match=r"a.mp4' \(unable to locate credentials\); check the address"):
        begin(tmp_path / "out", manifest)


def test_a_merged_file_is_not_written_to_an_address(
    undisturbed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"'s3:/bucket/all.parquet' is an address; give a file of this machine"):
        merge(Job.open(open_store(undisturbed[1])), Path("s3://bucket/all.parquet"))
    assert list(tmp_path.iterdir()) == []


def test_the_status_tells_speed_and_remaining_time(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, _ = undisturbed
    job = begin(tmp_path / "out", manifest, shard_seconds=0.5)
    lines = [
        {"time": 1000.0, "event": "start", "frames": 0, "started": 985.0},
        {"time": 1010.0, "event": "ready", "frames": 0},
        {"time": 1030.0, "event": "beat", "frames": 200},
    ]
    for worker in ("one", "other"):
        job.store.append(f"_log/{worker}.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    job.store.append("_log/other.jsonl", b'{"time": 10')  # of a killed worker
    found = status_of(job, now=1040.0)
    assert (found.workers, found.frames_per_second) == (2, 20.0)
    assert found.seconds_left == (24 + 10 + 5 + 3 + 2) / 20
    assert found.worker_hours == pytest.approx(90 / 3600)  # from the start of the processes
    assert found.cost(6.0) == pytest.approx(0.15)
    assert status_of(job, now=9000.0).seconds_left is None


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process; return the exit code."""
    monkeypatch.setattr(sys, "argv", ["refervos", "batch", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_command_runs_shows_and_merges(
    undisturbed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, out = undisturbed
    options = ("--device", "cpu", "--shard-seconds", "0.5", "--fps", "300")
    assert command(monkeypatch, manifest, tmp_path / "out", *options, "--shard", "1/2") == 0
    assert command(monkeypatch, *options, "--shard", "2/2", manifest, tmp_path / "out") == 0
    assert "5 videos done, 0 failed, 0 left" in capsys.readouterr().err
    assert command(monkeypatch, "status", tmp_path / "out", "--price", "2") == 0
    shown = capsys.readouterr().out
    assert "videos   5 done, 0 failed, 0 left" in shown
    assert "frames   44" in shown
    assert command(monkeypatch, "status", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["done"] == 5
    assert command(monkeypatch, "merge", tmp_path / "out", tmp_path / "all.parquet") == 0
    merge(Job.open(open_store(out)), tmp_path / "other.parquet")
    order = [(name, "ascending") for name in ("unit", "frame", "track")]
    one, other = (parquet.read_table(tmp_path / name).sort_by(order) for name in ("all.parquet", "other.parquet"))
    assert one.equals(other)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "x", "1", "1/0", "-1/2"])
def test_a_wrong_share_is_refused(
    shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, tmp_path / "m.csv", tmp_path / "out", "--shard", shard) == 2
    assert f"--shard is '{shard}'; write i/n" in capsys.readouterr().err


def test_a_folder_without_a_job_has_no_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "status", tmp_path) == 2
    assert "holds no results of refervos batch" in capsys.readouterr().err


def test_a_model_that_has_changed_is_refused(tmp_path: Path) -> None:
    model = tmp_path / "model"
    refervos.load("miniature", device="cpu").save_pretrained(model)
    manifest = write_manifest(tmp_path / "m.jsonl", draw_videos(tmp_path, [2]))
    job = begin(tmp_path / "out", manifest, model=str(model))
    refervos.load("miniature", device="cpu", cme=False).save_pretrained(model, overwrite=True)
    with pytest.raises(ConfigError, match="has changed since"):
        work(job)


@pytest.mark.slow
def test_local_processes_share_the_work_and_are_replaced_when_they_die(
    undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, out = undisturbed
    job = begin(tmp_path / "out", manifest, shard_seconds=0.5)
    killed: list[int] = []

    def kill_one() -> None:
        for path in (tmp_path / "out" / "_leases").glob("*.json"):
            if not killed:
                killed.append(json.loads(path.read_text())["pid"])
                os.kill(killed[0], signal.SIGKILL)

    run_local(job, WorkerSettings(), ["cpu", "cpu"], kill_one)
    assert killed
    assert files(tmp_path / "out") == files(out)


PAGE = (Path(__file__).parents[1] / "docs" / "batch.md").read_text(encoding="utf-8")


def test_the_pages_manifest_and_its_lines_of_python_work(
    undisturbed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (table,) = re.findall(r"```csv\n(.+?)```", PAGE, re.DOTALL)
    (tmp_path / "videos.csv").write_text(table)
    street, park = read_manifest(tmp_path / "videos.csv")
    assert street.expressions == ("the red car", "the woman with the umbrella")
    assert (park.uri, park.start, park.end) == ("s3://films/park.mp4", 0, 240)
    (snippet,) = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    merge(Job.open(open_store(undisturbed[1])), tmp_path / "masks.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(snippet, "batch.md", "exec"), names)
    assert names["first"].shape == (48, 64)
    assert names["first"].dtype == np.uint8


def test_the_page_names_the_columns_of_the_files() -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith("| `data/<shard>.parquet`"))
    assert re.findall(r"`(\w+)`", row) == mask_schema().names
    row = next(line for line in PAGE.splitlines() if line.startswith("| `_units/<shard>.parquet`"))
    assert set(re.findall(r"`(\w+)`", row)) - {"ok", "failed"} == set(unit_schema().names)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_the_page_run_and_a_stopped_one_goes_on(undisturbed: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, out = undisturbed
    videos = [json.loads(line)["video"] for line in manifest.read_text().splitlines()]
    rows = [f"{video},{sentence}" for video in videos for sentence in SENTENCES]
    (tmp_path / "videos.csv").write_text("\n".join(["video,expression", *rows]))
    (block,) = re.findall(r"```bash\npip install 'refervos\[batch\]'\n(.+?)```", PAGE, re.DOTALL)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(line: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", *line.partition("#")[0].split(), *more]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes)

    plan, run, status, merging = block.strip().splitlines()
    stopped = start(run, "--device", "cpu", "--shard-seconds", "0.5", "--save-every", "0")
    while not list((tmp_path / "masks" / "_state").glob("*.state")):
        assert stopped.poll() is None
        time.sleep(0.1)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate(timeout=300)
    assert stopped.returncode == 143, errors
    assert list((tmp_path / "masks" / "_leases").iterdir()) == []
    for line, expected in ((run, "5 videos done, 0 failed, 0 left"), (status, "videos   5 done"), (merging, "wrote")):
        process = start(line, *(("--device", "cpu", "--shard-seconds", "0.5") if line == run else ()))
        printed = "".join(process.communicate(timeout=600))
        assert process.returncode == 0, printed
        assert expected in printed
    tables = [
        sorted(parquet.read_table(folder / "data").drop(["unit"]).to_pylist(), key=str)
        for folder in (out, tmp_path / "masks")
    ]
    assert tables[0] == tables[1]
    process = start(plan, "--device", "cpu")
    printed = "".join(process.communicate(timeout=600))
    assert process.returncode == 0, printed
    assert "makespan" in printed
    assert "measured here" in printed
