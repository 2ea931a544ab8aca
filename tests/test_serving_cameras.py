"""Network cameras of the server: they go away and come back, and their passwords are in no answer and no file."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("fastapi")

from refervos.serving.source_rules import SourceRules
from refervos.worlds import draw_scene
from served import serving, watching
from studio_server import SCENE, SIZE, Camera

RED = "the red circle"
SYSTEM_PYTHON = shutil.which("python3", path="/usr/bin:/bin") or "python3"
SERVER = Path(__file__).with_name("rtsp_server.py")
LOGIN = "viewer:hunter2"


def opened(client: Any, url: str) -> str:
    answer = client.post("/v1/sessions", json={"source": {"url": url}, "expressions": [RED]})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def test_a_camera_goes_away_and_comes_back(tmp_path: Path) -> None:
    camera = Camera()
    try:
        with serving(tmp_path, sources=SourceRules(hosts=frozenset({camera.host}))) as client:
            session = opened(client, camera.url)
            with watching(client, session) as watcher:
                watcher.do("play")
                watcher.until(lambda w: len(w.frames) >= 2)
                camera.unplug()
                camera.plug_in_later(1.0)  # the server tries again until then
                outage = watcher.until_event("outage")
                seen = len(watcher.frames)
                watcher.until(lambda w: len(w.frames) >= seen + 2)
                state = client.get(f"/v1/sessions/{session}").json()
        assert (outage["count"], state["running"], state["ended"]) == (1, True, False)
        kept = [(event["frame"], event["time"]) for event in state["events"] if event["kind"] == "outage"]
        assert kept == [(outage["frame"], outage["time"])]
        assert watcher.indices == sorted(set(watcher.indices))  # numbered on
        times = [frame.header["time"] for frame in watcher.frames]
        assert times == sorted(times)
        after = next(frame for frame in watcher.frames if frame.header["frame"] > outage["frame"])
        before = [frame for frame in watcher.frames if frame.header["frame"] < outage["frame"]][-1]
        assert after.header["time"] - before.header["time"] >= 0.8  # the outage of a second is part of the time
        assert watcher.frames[-1].masks.any()
    finally:
        camera.close()


def has_rtsp_server() -> bool:
    """Whether the system's Python has GStreamer's RTSP server; only looked for in tests that are marked slow."""
    script = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    return subprocess.run([SYSTEM_PYTHON, "-c", script], capture_output=True).returncode == 0


@contextmanager
def rtsp(folder: Path, port: int) -> Iterator[None]:
    """Serve the pictures of a folder; killed at the end."""
    server = subprocess.Popen(
        [SYSTEM_PYTHON, str(SERVER), str(folder), str(port), LOGIN], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        if server.stdout.readline().strip() != "ready":
            pytest.skip("GStreamer lacks a plugin for the RTSP server")
        yield
    finally:
        server.kill()
        server.communicate()


@pytest.mark.slow
def test_an_rtsp_camera_with_a_password_goes_away_and_comes_back(tmp_path: Path) -> None:
    if not has_rtsp_server():
        pytest.skip("the system's Python lacks GStreamer's RTSP server (gir1.2-gst-rtsp-server-1.0)")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k, image in enumerate(draw_scene(SCENE, 60, SIZE).frames):
        Image.fromarray(image).save(pictures / f"{k:05d}.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    port = int(host.split(":")[1])
    folder = tmp_path / "server"
    answers = []
    with serving(folder, sources=SourceRules(hosts=frozenset({host}))) as client:
        with rtsp(pictures, port):
            wrong = opened(client, f"rtsp://viewer:wrong-secret@{host}/stream")
            with watching(client, wrong) as watcher:
                watcher.do("play")
                problem = watcher.until_event("problem")["problem"]
            assert "wrong-secret" not in json.dumps(problem)
            session = opened(client, f"rtsp://{LOGIN}@{host}/stream")
        with watching(client, session) as watcher:
            with rtsp(pictures, port):
                watcher.do("play")
                watcher.until(lambda w: len(w.frames) >= 2)
            with rtsp(pictures, port):
                watcher.until_event("outage")
                seen = len(watcher.frames)
                watcher.until(lambda w: len(w.frames) >= seen + 2)
            answers = [client.get(f"/v1/sessions/{session}").text, json.dumps(watcher.events)]
        assert watcher.frames[-1].masks.any()
    assert not [text for text in answers if "hunter2" in text]
    assert not [path for path in folder.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
