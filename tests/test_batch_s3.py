"""A job whose videos and results are on S3: a server of this machine that behaves like it (moto)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batch_jobs import PATIENT, begin, draw_videos, work, write_manifest
from refervos.batch.job import Job, latest_records
from refervos.batch.merging import check
from refervos.batch.states import saved_units
from refervos.batch.storage import open_store
from refervos.batch.worker import worker_command
from refervos.errors import DataError, OutputError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread", "no_proxy"), pytest.mark.timeout(1800)]
moto_server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

FRAMES = (40, 12, 6, 3)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Run a server and return its address."""
    server = moto_server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def films(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Upload four videos, an empty and a truncated one; return their manifest, which also names a missing one."""
    settings = {"ACCESS_KEY_ID": "testing", "SECRET_ACCESS_KEY": "testing", "DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "ENDPOINT_URL": endpoint, "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    contents = {path.name: path.read_bytes() for path in draw_videos(tmp_path / "videos", FRAMES)}
    contents |= {"empty.mp4": b"", "truncated.mp4": contents["000.mp4"][:300]}
    for bucket in ("films", "masks"):
        if store.exists(bucket):
            store.rm(bucket, recursive=True)
        store.mkdir(bucket)
    for name, content in contents.items():
        store.pipe_file(f"films/{name}", content)
    return write_manifest(tmp_path / "m.jsonl", [f"s3://films/{name}" for name in (*contents, "missing.mp4")])


def files(job: Job) -> dict[str, bytes]:
    """Return the files of masks."""
    return {name: job.store.read(f"data/{name}") for name in job.store.names("data")}


def test_a_killed_and_a_stopped_job_go_on_with_the_same_bytes(films: Path) -> None:
    calm = begin("s3://masks/calm", films, shard_seconds=0.5)
    work(calm)
    latest = latest_records(calm.shards(), calm.records())
    found = {unit.uri.rpartition("/")[2]: latest[unit.name][0] for shard in calm.shards() for unit in shard.units}
    assert [found[f"{index:03d}.mp4"].frames for index in range(4)] == list(FRAMES)
    assert "is empty (0 bytes)" in (found["empty.mp4"].reason or "")
    assert "is truncated" in (found["truncated.mp4"].reason or "")
    assert found["missing.mp4"].reason == "'s3://films/missing.mp4' does not exist; check the address."

    job = begin("s3://masks/disturbed", films, shard_seconds=0.5)
    killed = subprocess.Popen(worker_command(job.store.address, PATIENT), stdin=subprocess.PIPE)
    while not job.finished():
        assert killed.poll() is None
        time.sleep(0.1)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    work(job, stop_after=4)  # as by SIGTERM
    assert saved_units(job.store)
    work(job)
    assert files(job) == files(calm)
    assert check(job) == check(calm) == sum(FRAMES)
    assert job.store.names("_state") == job.store.names("_leases") == []


def test_the_first_of_two_uploads_stays(films: Path) -> None:
    one, other = open_store("s3://masks/race"), open_store("s3://masks/race")
    assert one.create("data/a", b"first")
    assert not other.create("data/a", b"second")
    assert one.read("data/a") == b"first"
    assert other.names("data") == ["a"]


def test_missing_credentials_buckets_and_servers_are_sentences(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"nobucket.*bucket does not exist.*check the address"):
        begin("s3://nobucket/out", films)
    local = films.with_name("local.jsonl")
    local.write_text(json.dumps({"video": "videos/000.mp4", "expression": "the red circle"}))
    for name, value, reason in (
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "Could not connect to the endpoint"),
        ("AWS_SECRET_ACCESS_KEY", None, "credentials"),
    ):
        (monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value))
        if value is None:
            monkeypatch.delenv("AWS_ACCESS_KEY_ID")
            monkeypatch.setenv("HOME", os.fspath(films.parent))
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(
            OutputError, match=f"'s3://masks/out.* cannot be .*{reason}.*check the address and the cred"
        ):
            begin("s3://masks/out", local)
        with pytest.raises(DataError, match=f"such as 's3://films/000.mp4' .*{reason}.*check the address and the cred"):
            begin(films.with_name("out"), films)
