"""The Python client against a real server: the methods of ``Session``, with the same masks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
import uvicorn

from refervos.client import Connection, ServerError, connect
from refervos.errors import VideoError
from refervos.serving.application import create_app
from refervos.serving.guard import AccessRules
from refervos.serving.limits import Limits
from refervos.serving.server import ServerSettings
from refervos.video import read_video
from served import drawn_frames, drawn_video, miniature

RED, BLUE = "the red circle", "the blue box"
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_video(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server on a free port, with a token."""
    import socket

    settings = ServerSettings(
        folder=tmp_path_factory.mktemp("server"), limits=Limits(sessions=50), access=AccessRules(token=TOKEN)
    )
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    server = uvicorn.Server(uvicorn.Config(create_app({"miniature": miniature()}, settings), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def server(address: str) -> Iterator[Connection]:
    with connect(f"{address}/#token={TOKEN}") as connection:
        yield connection


def test_a_remote_session_has_the_masks_of_a_local_one(server: Connection, video: Path) -> None:
    local = miniature().open([RED])
    with server.open(RED, video=video) as remote:
        for k, image in enumerate(read_video(video)[:6]):
            expected, got = local.step(image), remote.step()
            assert got is not None
            assert got.frame_index == k
            assert np.array_equal(got.masks, expected.masks)
            assert np.allclose(got.presence, expected.presence, atol=1e-4)
            if k == 2:
                assert remote.add(BLUE) == local.add(BLUE)
            if k == 3:
                prompt: dict[str, Any] = {"points": [[29, 40], [90, 70]], "labels": [1, 0]}
                assert np.array_equal(remote.correct(0, **prompt).masks, local.correct(0, **prompt).masks)
                undone = local.undo(0)
                assert undone is not None
                assert np.array_equal(remote.undo(0).masks, undone.masks)
                remote.set_prompt(1, "the blue square")
                local.set_prompt(1, "the blue square")
        assert remote.expressions == local.expressions
        remote.drop(0)
        following = remote.step()
        assert following is not None
        assert following.track_ids == (1,)
        assert [each.frame_index for each in remote.stream()] == list(range(7, 12))
        assert remote.step() is None


def test_frames_of_the_caller_are_segmented_on_the_server(server: Connection) -> None:
    with server.open([RED]) as remote:
        for k, image in enumerate(drawn_frames(3)):
            got = remote.step(image)
            assert got is not None
            assert got.frame_index == k
            assert got.masks.shape == (1, *image.shape[:2])


def test_a_session_is_left_attached_to_saved_and_restored(server: Connection, video: Path, tmp_path: Path) -> None:
    with server.open([RED], video=video) as remote:
        remote.step()
        name = remote.id
    with server.attach(name) as again:
        following = again.step()
        assert following is not None
        assert following.frame_index == 1
        again.save(tmp_path / "saved.refervos")
        restored = server.restore(tmp_path / "saved.refervos")
        a, b = again.step(), restored.step()
        assert a is not None
        assert b is not None
        assert np.array_equal(a.masks, b.masks)
        restored.delete()
        again.delete()
    with pytest.raises(ServerError, match="there is no session"):
        server.attach(name)


def test_masks_are_exported_and_alerts_are_set(server: Connection, video: Path, tmp_path: Path) -> None:
    with server.open([RED], video=video) as remote:
        with pytest.raises(ServerError, match="wrote no file"):
            remote.export(tmp_path / "none.jsonl", "rle")
        remote.alert(0, 0.0, frames=2)
        for _ in range(3):
            remote.step()
        remote.export(tmp_path / "masks.jsonl", "rle", frames=(1, None), tracks=[0])
        lines = [json.loads(line) for line in (tmp_path / "masks.jsonl").read_text().splitlines()]
        assert [line["frame"] for line in lines] == [1, 2]
        state = server.request("GET", f"/v1/sessions/{remote.id}")
        assert [event["frame"] for event in state["events"] if event["kind"] == "alert"] == [1]
        with pytest.raises(ServerError, match="only live sources"):
            remote.record()
        with pytest.raises(ServerError, match="not allowed"):
            remote.alert(0, webhook="http://10.0.0.1/")
    with server.open([RED]) as live:
        live.record()
        live.step(drawn_frames(1)[0])
        live.export(tmp_path / "live.mp4")
        assert len(read_video(tmp_path / "live.mp4")) == 1


def test_what_is_wrong_is_one_sentence(server: Connection, address: str, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="token") as refused:
        connect(address)
    assert refused.value.code == "wrong-token"
    with pytest.raises(ServerError, match="cannot be reached"):
        connect("http://127.0.0.1:9")
    with pytest.raises(VideoError, match="cannot be read"):
        server.upload(tmp_path / "missing.mp4")
    (tmp_path / "text.mp4").write_text("hello")
    with pytest.raises(ServerError, match=r"has no video|cannot be read"):
        server.upload(tmp_path / "text.mp4")
    with pytest.raises(ServerError, match="not allowed"):
        server.open([RED], camera=0)
    with server.open() as remote, pytest.raises(ServerError, match="there is no track 3"):
        remote.drop(3)
    with pytest.raises(ServerError, match="not found"):
        server.download("/nothing", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_example_of_the_page_runs(
    address: str, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drawn.mp4").write_bytes(video.read_bytes())
    exec(compile(example.replace("http://127.0.0.1:8765", f"{address}/#token={TOKEN}"), "serving.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[0].startswith("1 [")
    assert (tmp_path / "drawn.refervos").stat().st_size > 1000
