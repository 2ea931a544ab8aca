"""Sessions on disk: one file that reopens anywhere, restarts, kill -9, and sessions that are abandoned."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
import httpx

from refervos.client import connect
from refervos.serving.limits import Limits
from refervos.serving.videos import VideoStore
from served import drawn_video, open_session, serving, watching

RED, BLUE = "the red circle", "the blue box"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_video(tmp_path_factory.mktemp("videos"))


def masks_of(client: Any, session: str) -> str:
    text: str = client.get(f"/v1/sessions/{session}/masks").text
    return text


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, video: Path) -> tuple[bytes, str, dict[str, Any]]:
    """A session file with a correction, its masks and its state."""
    with serving(tmp_path_factory.mktemp("first")) as client:
        session = open_session(client, video, RED, BLUE)
        with watching(client, session) as watcher:
            watcher.do("step", frames=6)
            watcher.until_frame(5)
            watcher.do("correct", track=0, frame=5, points=[[35, 40, 1]])
            watcher.do("rename", track=1, label="box")
        content = client.get(f"/v1/sessions/{session}/file").content
        return content, masks_of(client, session), client.get(f"/v1/sessions/{session}").json()


def test_a_session_is_one_file_that_reopens_on_another_server(
    saved: tuple[bytes, str, dict[str, Any]], tmp_path: Path, video: Path
) -> None:
    content, masks, state = saved
    with serving(tmp_path) as client:
        answer = client.post("/v1/sessions/open", content=content)
        assert answer.status_code == 201, answer.text
        session = answer.json()["id"]
        assert session != state["id"]
        assert masks_of(client, session) == masks
        assert answer.json()["tracks"] == state["tracks"]
        assert answer.json()["events"] == state["events"]
        assert answer.json()["frame"] == 5
        with watching(client, session) as watcher:  # it goes on, and its correction can be undone
            watcher.do("step")
            watcher.until_frame(6)
            watcher.do("undo", track=0)
            watcher.until_frame(6)


def test_the_file_goes_on_like_the_session(saved: tuple[bytes, str, dict[str, Any]], tmp_path: Path) -> None:
    content, _, _ = saved
    found = []
    with serving(tmp_path) as client:
        for _ in range(2):
            session = client.post("/v1/sessions/open", content=content).json()["id"]
            with watching(client, session) as watcher:
                watcher.do("play")
                watcher.until_event("end")
            found.append(masks_of(client, session))
    assert found[0] == found[1]


def test_a_session_at_its_end_is_there_after_a_restart_and_in_its_file(tmp_path: Path, video: Path) -> None:
    with serving(tmp_path) as client:
        session = open_session(client, video, RED)
        with watching(client, session) as watcher:
            watcher.do("play")
            watcher.until_event("end")
        content = client.get(f"/v1/sessions/{session}/file").content
    with serving(tmp_path) as client:
        assert client.get(f"/v1/sessions/{session}").json()["ended"]
        assert client.post("/v1/sessions/open", content=content).json()["ended"]


def altered(content: bytes, name: str, change: Any) -> bytes:
    """The session file with one member changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for member in old.namelist():
            data = old.read(member)
            new.writestr(member, change(data) if member == name else data)
    return out.getvalue()


def record_with(**values: Any) -> Any:
    def change(data: bytes) -> bytes:
        content = json.loads(data)
        content["record"] |= values
        return json.dumps(content).encode()

    return change


def broken_masks(data: bytes) -> bytes:
    lines = data.splitlines()
    record = json.loads(lines[0])
    record["tracks"][0]["counts"] = "0" * 5000 + "~~~"  # the decoder of run lengths would write out of bounds
    return b"\n".join([json.dumps(record).encode(), *lines[1:]])


def extra_member(content: bytes) -> bytes:
    out = io.BytesIO(content)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("../../evil", b"x")
    return out.getvalue()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: b"",
        lambda c: c[: len(c) // 2],
        lambda c: b"PK\x03\x04" + c[4:100],
        extra_member,
        lambda c: altered(c, "masks.jsonl", broken_masks),
        lambda c: altered(c, "masks.jsonl", lambda data: b"[" * 10_000 + b"\n"),
        lambda c: altered(c, "masks.jsonl", lambda data: b'{"frame": -1, "size": [9, 9], "tracks": []}\n'),
        lambda c: altered(c, "session.json", lambda data: b"{}"),
        lambda c: altered(c, "session.json", lambda data: b"nonsense"),
        lambda c: altered(c, "session.json", record_with(first="x")),
        lambda c: altered(c, "session.json", lambda data: json.dumps(json.loads(data) | {"end": "x"}).encode()),
        lambda c: altered(c, "session.json", record_with(events=[{"kind": "x"}])),
        lambda c: altered(c, "session.json", record_with(next_track=0)),
        lambda c: altered(c, "session.json", record_with(source={"url": "http://127.0.0.1/"})),
        lambda c: altered(c, "session.json", record_with(source={"camera": "0"})),
        lambda c: altered(c, "session.json", record_with(model="another")),
        lambda c: altered(c, "state.session", lambda data: data[:-100]),
        lambda c: altered(c, "video", lambda data: b"hello"),
    ],
    ids=range(18),
)
def test_a_broken_session_file_is_one_sentence_and_leaves_nothing(
    saved: tuple[bytes, str, dict[str, Any]], tmp_path: Path, spoil: Any
) -> None:
    with serving(tmp_path) as client:
        answer = client.post("/v1/sessions/open", content=spoil(saved[0]))
        assert answer.status_code in (409, 422), answer.text
        assert answer.json()["detail"].endswith(".")
        assert "/tmp" not in answer.json()["detail"]
        assert os.listdir(tmp_path / "sessions") == []
        assert client.get("/health").status_code == 200


def test_a_restart_continues_every_session(tmp_path: Path, video: Path) -> None:
    with serving(tmp_path) as client:
        session = open_session(client, video, RED)
        with watching(client, session) as watcher:
            watcher.do("step", frames=4)
            watcher.until_frame(3)
            watcher.do("add", expression=BLUE)
        before, masks = client.get(f"/v1/sessions/{session}").json(), masks_of(client, session)
    with serving(tmp_path) as client:
        after = client.get(f"/v1/sessions/{session}").json()
        ignored = ("fps", "size", "estimate")
        assert {k: v for k, v in after.items() if k not in ignored} == {
            k: v for k, v in before.items() if k not in ignored
        }
        assert masks_of(client, session) == masks
        with watching(client, session) as watcher:
            watcher.do("correct", track=0, frame=2, points=[[26, 40, 1]])
            watcher.until_frame(3)
            watcher.do("step")
            watcher.until_frame(4)
            assert len(watcher.frames[-1].header["tracks"]) == 2


@contextmanager
def real_server(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``refervos serve`` in a process of its own; yields the process and its address."""
    command = [sys.executable, "-m", "refervos", "serve", "--port", "0", "--folder", str(folder), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_killed_server_has_lost_at_most_two_seconds_of_three_sessions(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    long = drawn_video(tmp_path_factory.mktemp("long"), 400)
    shown: list[dict[int, tuple[float, np.ndarray]]] = [{}, {}, {}]
    with real_server(tmp_path) as (process, address), connect(address) as server:
        video = server.upload(long)
        sessions = [server.open([RED], video=video) for _ in range(3)]

        def follow(k: int) -> None:
            try:
                for segmentation in sessions[k].stream():
                    shown[k][segmentation.frame_index] = (time.monotonic(), segmentation.masks)
            except Exception:  # the server is killed
                return

        threads = [threading.Thread(target=follow, args=(k,)) for k in range(3)]
        for thread in threads:
            thread.start()
        begin = time.monotonic()
        while time.monotonic() - begin < 120 and not (
            all(each for each in shown)
            and all(each[max(each)][0] - each[min(each)][0] > 3.5 for each in map(dict, shown))
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        killed = time.monotonic()
        process.wait()
        for thread in threads:
            thread.join(30)
    names = [session.id for session in sessions]
    with real_server(tmp_path) as (_, address), connect(address) as server:
        for k, name in enumerate(names):
            session = server.attach(name)
            reached = session.state["frame"]
            last = max(shown[k])
            assert reached is not None
            if reached < last:  # frames after the one where it goes on were shown at most two seconds before
                assert killed - shown[k][reached + 1][0] <= 2.0
            masks = httpx.get(f"{address}v1/sessions/{name}/masks", params={"to": reached + 1}).text.splitlines()
            assert [json.loads(line)["frame"] for line in masks] == list(range(reached + 1))
            following = session.step()
            assert following is not None
            assert following.frame_index == reached + 1
            if reached + 1 in shown[k]:
                assert np.array_equal(following.masks, shown[k][reached + 1][1])
            session.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def children() -> int:
    return sum(len(each.read_text().split()) for each in Path("/proc/self/task").glob("*/children"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_abandoned_sessions_are_saved_and_leave_nothing_behind(tmp_path: Path, video: Path, count: int) -> None:
    with serving(tmp_path, Limits(sessions=4, idle=3600)) as client:
        registry = client.app.state.server.sessions  # type: ignore[attr-defined]
        for session in (open_session(client, video, RED),):  # what is made once
            client.get(f"/v1/sessions/{session}")
        names = [session]
        free_all(registry)
        gc.collect()
        threads, files, processes = threading.active_count(), open_files(), children()
        for k in range(count):
            names.append(open_session(client, video, RED))
            if k % 3 == 0:
                with watching(client, names[-1]) as watcher:
                    watcher.do("step")
                    watcher.until_frame(0)
            if k % 2:
                free_all(registry)
        free_all(registry)
        assert registry.open_sessions == []
        gc.collect()
        assert threading.active_count() <= threads
        assert open_files() <= files
        assert children() <= processes
        assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]
        assert client.get(f"/v1/sessions/{names[1]}").json()["frame"] == 0  # saved, and opened again
        for name in names:
            client.delete(f"/v1/sessions/{name}")
        assert os.listdir(tmp_path / "sessions") == []


def free_all(registry: Any) -> None:
    """Let all sessions be idle for too long."""
    for session in registry.open_sessions:
        session.used -= 7200
    registry.free_idle()


def test_a_session_that_is_watched_is_not_freed(tmp_path: Path, video: Path) -> None:
    with serving(tmp_path) as client:
        registry = client.app.state.server.sessions  # type: ignore[attr-defined]
        session = open_session(client, video, RED)
        with watching(client, session):
            free_all(registry)
            assert len(registry.open_sessions) == 1
        free_all(registry)
        assert registry.open_sessions == []


def test_more_sessions_than_allowed_are_refused_until_one_is_closed(tmp_path: Path, video: Path) -> None:
    with serving(tmp_path, Limits(sessions=1)) as client:
        first = open_session(client, video, RED)
        assert client.get("/ready").status_code == 503
        refused = client.post("/v1/sessions", json={"source": {"webcam": True}})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["code"] == "too-many-sessions"
        client.delete(f"/v1/sessions/{first}")
        assert client.post("/v1/sessions", json={"source": {"webcam": True}}).status_code == 201


def test_a_temporary_server_leaves_no_file(tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with serving() as client:
        client.get(f"/v1/sessions/{open_session(client, video, RED)}/file")
        assert os.listdir(tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_uploader_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(1000)
        assert len(os.listdir(tmp_path)) == 1
        raise RuntimeError("the client has gone")

    with pytest.raises(RuntimeError):
        asyncio.run(VideoStore(tmp_path, Limits()).receive(broken(), None))
    assert os.listdir(tmp_path) == []
