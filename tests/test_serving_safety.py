"""Attacks on the server: each is answered by one sentence, the server lives, and other sessions notice nothing."""

from __future__ import annotations

import http.server
import json
import os
import random
import string
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from refervos.serving.alerts import WebhookRules
from refervos.serving.guard import AccessRules
from refervos.serving.limits import Limits
from refervos.serving.source_rules import SourceRules
from served import ORIGIN, Watcher, drawn_video, open_session, serving, upload, watching
from video_files import write_video

TOKEN = "correct-horse-battery-staple"
RED = "the red circle"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_video(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    limits = Limits(sessions=50, upload_bytes=200_000, side=400, duration=20.0, message_bytes=100_000)
    with serving(tmp_path_factory.mktemp("server"), limits) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("guarded"), access=AccessRules(token=TOKEN)) as client:
        yield client


def sentence(answer: Any, *statuses: int) -> str:
    """Check that an answer is a problem of one sentence without a path or a traceback, and return the sentence."""
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "code"}
    detail: str = problem["detail"]
    assert detail.rstrip().endswith((".", ")"))
    assert "\n" not in detail
    assert "Traceback" not in detail
    assert "/tmp" not in detail
    assert "refervos-" not in detail
    return detail


# Who may use the server.


@pytest.mark.parametrize("path", ["/v1/limits", "/v1/models", "/metrics", "/openapi.json", "/v1/sessions/x"])
def test_every_route_needs_the_token(guarded: TestClient, path: str) -> None:
    assert "token" in sentence(guarded.get(path), 401)
    assert "token" in sentence(guarded.get(path, headers={"Authorization": "Bearer wrong"}), 401)
    assert guarded.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code in (200, 404)


def test_health_needs_no_token(guarded: TestClient) -> None:
    assert guarded.get("/health").json()["status"] == "ok"
    assert guarded.get("/ready").json() == {"ready": True}


def test_a_login_keeps_the_token_as_a_cookie_that_scripts_cannot_read(guarded: TestClient) -> None:
    sentence(guarded.post("/v1/login", json={"token": "wrong"}), 401)
    answer = guarded.post("/v1/login", json={"token": TOKEN})
    assert answer.status_code == 204
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "SameSite=strict" in answer.headers["set-cookie"]
    assert guarded.get("/v1/limits").status_code == 200
    guarded.cookies.clear()
    assert guarded.get("/v1/limits").status_code == 401


def test_a_websocket_needs_the_token_first(guarded: TestClient, video: Path) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    guarded.headers.update(bearer)
    session = open_session(guarded, video, RED)
    del guarded.headers["Authorization"]
    address = f"/v1/sessions/{session}/ws"
    for first in ('{"token": "wrong"}', "{", '{"n": 1, "do": "play"}', "[" * 1000):
        with guarded.websocket_connect(address, headers={"host": "localhost"}) as socket:
            socket.send_text(first)
            assert socket.receive() == {"type": "websocket.close", "code": 4401, "reason": "wrong-token"}
    with guarded.websocket_connect(address, headers={"host": "localhost"}) as socket:
        socket.send_text(json.dumps({"token": TOKEN}))
        assert socket.receive_json()["event"] == "state"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "localhost@evil"])
def test_a_foreign_host_is_refused(client: TestClient, host: str) -> None:
    assert "Host" in sentence(client.get("/v1/limits", headers={"Host": host}), 421)
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(f"/v1/sessions/{'0' * 32}/ws", headers={"host": host}),
    ):
        pass


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1", "[::1]:8765"])
def test_names_of_this_machine_are_accepted(client: TestClient, host: str) -> None:
    assert client.get("/v1/limits", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost.evil.example", "http://localhost:1"]
)
def test_a_foreign_origin_is_refused(client: TestClient, origin: str) -> None:
    headers = {"Origin": origin}
    assert "another server" in sentence(client.post("/v1/sessions", json={}, headers=headers), 403)
    sentence(client.delete(f"/v1/videos/{'0' * 32}", headers=headers), 403)
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(f"/v1/sessions/{'0' * 32}/ws", headers={"host": "localhost", **headers}),
    ):
        pass


def test_the_own_origin_and_an_allowed_one_are_accepted(tmp_path: Path) -> None:
    rules = AccessRules(origins=frozenset({"https://studio.example"}))
    with serving(tmp_path, access=rules) as client:
        for origin in (ORIGIN, "https://studio.example"):
            assert client.get("/v1/limits", headers={"Origin": origin}).status_code == 200


def test_every_answer_binds_the_browser(client: TestClient) -> None:
    for path in ("/health", "/v1/limits", "/nothing", f"/v1/videos/{'0' * 32}"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


# Uploads.


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "..\\..\\windows\\x.mp4", "/etc/shadow", "a\x00b.mp4", "\u202egpm.mp4", "x" * 499]
)
def test_a_name_never_becomes_a_path(client: TestClient, video: Path, name: str) -> None:
    answer = client.post("/v1/videos", params={"name": name}, content=video.read_bytes())
    assert answer.status_code == 201, answer.text
    shown = answer.json()["name"]
    assert not set(shown) & set("/\\\x00\u202e")
    assert len(shown) <= 120
    assert client.delete(f"/v1/videos/{answer.json()['id']}").status_code == 204


@pytest.mark.parametrize(
    "path",
    [
        "/v1/videos/..%2f..%2fetc%2fpasswd",
        "/v1/videos/%2e%2e/file",
        "/v1/sessions/..%2f..%2f",
        "/v1/jobs/x/files/..%2f..%2fsession.json",
        "/../../etc/passwd",
        f"/v1/videos/{'g' * 32}/file",
    ],
)
def test_a_path_in_an_address_leads_nowhere(client: TestClient, path: str) -> None:
    sentence(client.get(path), 404)


def folders(client: TestClient) -> set[str]:
    store = client.app.state.server.videos._folder  # type: ignore[attr-defined]
    return set(os.listdir(store))


def malformed(video: Path, folder: Path) -> dict[str, bytes]:
    """Files that are no videos, or break decoders."""
    content = video.read_bytes()
    return {
        "text": b"hello",
        "empty": b"",
        "zeros": bytes(10_000),
        "noise": random.Random(0).randbytes(10_000),
        "half": content[: len(content) // 2],
        "head": content[:40],
        "playlist": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        "html": b"<html><script>alert(1)</script></html>",
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "flipped": bytes(byte ^ (255 if k % 97 == 0 else 0) for k, byte in enumerate(content)),
    }


@pytest.mark.parametrize("kind", sorted(malformed(Path(__file__), Path())))
def test_a_malformed_upload_is_one_sentence_and_leaves_nothing(client: TestClient, video: Path, kind: str) -> None:
    before = folders(client)
    content = malformed(video, video.parent)[kind]
    detail = sentence(client.post("/v1/videos", params={"name": f"{kind}.mp4"}, content=content), 422)
    assert "etc" not in detail
    assert folders(client) == before


def test_an_upload_beyond_the_limits_is_refused_and_leaves_nothing(client: TestClient, tmp_path: Path) -> None:
    before = folders(client)
    assert "larger" in sentence(client.post("/v1/videos", content=bytes(200_001)), 413)

    def pieces() -> Iterator[bytes]:  # without a length
        for _ in range(5):
            yield bytes(50_000)

    assert "larger" in sentence(client.post("/v1/videos", content=pieces()), 413)
    wide = write_video(tmp_path / "wide.mp4", 2, width=420, height=16)
    assert "420 x 16" in sentence(client.post("/v1/videos", content=wide.read_bytes()), 422)
    long = write_video(tmp_path / "long.mp4", 50, fps=2, width=32, height=32)
    assert "50 frames" in sentence(client.post("/v1/videos", content=long.read_bytes()), 413)
    assert folders(client) == before


def test_a_full_storage_is_said(tmp_path: Path, video: Path) -> None:
    with serving(tmp_path, Limits(storage_bytes=int(1.5 * video.stat().st_size))) as client:
        upload(client, video)
        assert "storage" in sentence(client.post("/v1/videos", content=video.read_bytes()), 507)


def test_a_decoder_that_needs_too_much_is_killed(tmp_path: Path, video: Path) -> None:
    with serving(tmp_path, Limits(decode_bytes=150 * 2**20)) as client:
        assert "limits of memory and time" in sentence(client.post("/v1/videos", content=video.read_bytes()), 422)


# Sources.


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "concat:/etc/passwd|/etc/shadow",
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:22/",
        "rtsp://user:secret@192.168.0.1/stream",
        "gopher://localhost/",
        "data:text/plain,hello",
        "pipe:0",
        "subfile,,start,0,end,0,,:/etc/passwd",
        "tcp://localhost:22",
        "udp://239.0.0.1:1234",
        "http://user:secret@",
        "/etc/passwd",
        "camera:0",
        "",
    ],
)
def test_an_address_that_is_not_allowed_is_refused_without_its_password(client: TestClient, url: str) -> None:
    detail = sentence(client.post("/v1/sessions", json={"source": {"url": url}}), 403, 422)
    assert "secret" not in detail


def test_cameras_and_files_need_permission(client: TestClient, tmp_path: Path) -> None:
    sentence(client.post("/v1/sessions", json={"source": {"camera": "0"}}), 403)
    sentence(client.post("/v1/videos", json={"path": "/etc/passwd"}), 403)
    sentence(client.post("/v1/videos", json={"path": str(tmp_path / "missing")}), 403)
    sentence(client.post("/v1/videos", json={"sample": "../../etc"}), 404)
    sentence(client.post("/v1/videos", json={"sample": None}), 422)


def test_only_files_in_an_allowed_folder_are_opened(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    allowed, secret = drawn_video(inside, 3), drawn_video(outside, 3)
    (inside / "link.mp4").symlink_to(secret)
    with serving(tmp_path / "server", sources=SourceRules(files=(inside,), cameras=True)) as client:
        answer = client.post("/v1/videos", json={"path": str(allowed)})
        assert answer.status_code == 201
        assert answer.json()["name"] == "drawn.mp4"
        for path in (secret, inside / "link.mp4", inside / ".." / "outside" / "drawn.mp4", inside, "\x00", "~"):
            detail = sentence(client.post("/v1/videos", json={"path": str(path)}), 403)
            assert detail == sentence(client.post("/v1/videos", json={"path": "/nothing"}), 403)
        client.delete(f"/v1/videos/{answer.json()['id']}")
        assert allowed.exists()  # only the server's own link is deleted
        for device in ("../../etc/passwd", "0;ls", "-1", "99999"):
            sentence(client.post("/v1/sessions", json={"source": {"camera": device}}), 403)


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes = b"") -> Iterator[tuple[str, list[str]]]:
    """An HTTP server; yields its address and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("kind", ["redirect", "playlist"])
def test_an_allowed_host_cannot_lead_elsewhere(tmp_path: Path, video: Path, kind: str) -> None:
    with answering(200, {}, video.read_bytes()) as (private, asked):
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{private}/x.ts\n#EXT-X-ENDLIST\n".encode()
        there = {"redirect": (302, {"Location": f"{private}/x.mp4"}, b""), "playlist": (200, {}, playlist)}[kind]
        with answering(*there) as (public, _):
            host = public.removeprefix("http://")
            rules = SourceRules(hosts=frozenset({host}))
            with serving(tmp_path, Limits(camera_wait=0.1), sources=rules) as client:
                session = client.post("/v1/sessions", json={"source": {"url": f"{public}/cam.m3u8"}}).json()
                with watching(client, session["id"]) as watcher:
                    watcher.do("play")
                    problem = watcher.until_event("problem")["problem"]
                    assert "cannot be opened" in problem["detail"]
        assert asked == []


def test_a_password_of_a_camera_is_nowhere(tmp_path: Path, video: Path, caplog: pytest.LogCaptureFixture) -> None:
    with answering(200, {}, video.read_bytes()) as (address, _):
        host = address.removeprefix("http://")
        rules = SourceRules(hosts=frozenset({host}))
        with serving(tmp_path / "server", sources=rules) as client:
            url = f"http://user:hunter2@{host}/clip.mp4?key=hunter2"
            answer = client.post("/v1/sessions", json={"source": {"url": url}, "expressions": [RED]})
            assert answer.status_code == 201, answer.text
            session = answer.json()["id"]
            assert answer.json()["source"] == {"url": f"http://{host}"}
            with watching(client, session) as watcher:
                watcher.do("step", frames=2)
                watcher.until_frame(1)
                assert "hunter2" not in json.dumps(watcher.events)
            shown = [client.get(f"/v1/sessions/{session}").text, client.get("/metrics").text]
            content = client.get(f"/v1/sessions/{session}/file").content
        written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        assert not any(b"hunter2" in each for each in [content, *written])
        assert "hunter2" not in "".join(shown) + caplog.text


@pytest.mark.parametrize(
    "address",
    [
        "http://evil.example/",
        "http://hooks.example/other",
        "http://hooks.example/a/../other",
        "http://hooks.example@evil.example/a",
        "http://hooks.example:81/a",
        "file:///a",
        "http://169.254.169.254/",
    ],
)
def test_a_webhook_goes_only_where_the_operator_allows(tmp_path: Path, video: Path, address: str) -> None:
    rules = WebhookRules(("http://hooks.example/a",))
    assert rules.find("http://hooks.example/a/b") == "http://hooks.example/a/b"
    with pytest.raises(Exception, match="not allowed"):
        rules.find(address)


# Messages.


def fuzzed_messages(count: int) -> Iterator[str | bytes]:
    """Messages that are almost commands."""
    draw = random.Random(7)
    names = ["add", "drop", "set_prompt", "rename", "show", "correct", "undo", "play", "pause", "step", "seek", "range"]
    names += ["alert", "clear_alerts", "record", "ack", "__init__", "close", "save", "follow", "_begin", "submit"]
    fields = ["track", "frame", "points", "box", "expression", "label", "visible", "speed", "frames", "in", "out", "n"]
    values: list[Any] = [None, True, -1, 0, 1, 2**31, 2**63, 1e308, 0.5, "", "a", "x" * 3000, [], {}, [[1, 2, 1]]]
    values += [[[0, 0, 2]], [0, 0, 1, 1], [1, 1, 0, 0], "\ud800", "\x00", {"a": [1]}, [[["b"]]], 10**30]
    for k in range(count):
        kind = draw.randrange(8)
        if kind == 0:
            yield draw.randbytes(draw.randrange(1, 200))
        elif kind == 1:
            yield "".join(draw.choices(string.printable, k=draw.randrange(1, 100)))
        elif kind == 2:
            yield "[" * draw.randrange(1, 5000)
        else:
            message = {name: draw.choice(values) for name in draw.sample(fields, draw.randrange(6))}
            if kind > 3:
                message["n"] = k + 1000
            if message.get("n") != 1:
                yield json.dumps({"do": draw.choice(names), **message})


def survive_messages(client: TestClient, video: Path, count: int) -> None:
    """Send fuzzed messages to one session while another one runs."""
    quiet = open_session(client, video, RED)
    session = open_session(client, video, RED)
    with watching(client, quiet) as other, watching(client, session) as watcher:
        other.do("step", frames=4)
        other.until_frame(3)
        for k, message in enumerate(fuzzed_messages(count)):
            if isinstance(message, bytes):
                watcher.socket.send_bytes(message)
            else:
                watcher.socket.send_text(message)
            if k % 20 == 19:  # the queue of commands is limited
                check_alive(watcher)
        check_alive(watcher)
        watcher.do("drop", track=0) if 0 in tracks_of(client, session) else None
        for problem in [each["problem"] for each in watcher.events if "problem" in each]:
            assert problem["detail"].endswith(".")
            assert "\n" not in problem["detail"]
            assert problem["code"] != "internal", problem
        other.frames.clear()
        other.do("step", frames=3)
        other.until_frame(6)
        assert other.indices == [4, 5, 6]
        assert not any("problem" in each for each in other.events)
    assert client.get("/health").status_code == 200


def tracks_of(client: TestClient, session: str) -> set[int]:
    return {track["id"] for track in client.get(f"/v1/sessions/{session}").json()["tracks"]}


def check_alive(watcher: Watcher) -> None:
    watcher.do("pause")


def test_fuzzed_messages_are_answered_and_no_other_session_notices(client: TestClient, video: Path) -> None:
    survive_messages(client, video, 120)


@pytest.mark.slow
def test_a_thousand_fuzzed_messages(client: TestClient, video: Path) -> None:
    survive_messages(client, video, 1000)


def test_a_message_that_is_too_large_ends_the_connection_only(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        watcher.socket.send_bytes(bytes(100_001))
        with pytest.raises(ConnectionError, match="1009"):
            watcher.until(lambda _: False)
    with watching(client, session) as watcher:
        watcher.do("step")


def test_an_unknown_session_is_said_and_the_connection_ends(client: TestClient) -> None:
    with client.websocket_connect(f"/v1/sessions/{'0' * 32}/ws", headers={"host": "localhost"}) as socket:
        assert socket.receive_json()["problem"]["code"] == "unknown-session"
        assert socket.receive()["code"] == 4404


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/v1/sessions", b"{"),
        ("POST", "/v1/sessions", b"[" * 50_000),
        ("POST", "/v1/sessions", b'{"source": {"video": 7}}'),
        ("POST", "/v1/sessions", b'{"source": {"webcam": true}, "extra": 1}'),
        ("POST", "/v1/sessions", b'{"source": {"webcam": true}, "model": "gpt"}'),
        ("POST", "/v1/sessions", json.dumps({"source": {"webcam": True}, "expressions": ["a"] * 17}).encode()),
        ("POST", "/v1/jobs", b'{"video": "x", "expressions": ["a"], "outputs": ["exe"]}'),
        ("POST", "/v1/jobs", b'{"video": "x", "expressions": ["a"]}'),
        ("POST", "/v1/login", b"null"),
        ("PUT", "/v1/limits", b""),
    ],
)
def test_a_malformed_request_is_one_sentence(client: TestClient, method: str, path: str, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    sentence(client.request(method, path, content=content, headers=headers), 400, 404, 405, 422)


def test_json_that_is_too_long_is_refused(client: TestClient) -> None:
    content = json.dumps({"source": {"webcam": True}, "expressions": ["a" * 1_100_000]}).encode()
    headers = {"Content-Type": "application/json"}
    assert "too long" in sentence(client.post("/v1/sessions", content=content, headers=headers), 413)

    def pieces() -> Iterator[bytes]:  # without a length
        for k in range(0, len(content), 100_000):
            yield content[k : k + 100_000]

    sentence(client.post("/v1/sessions", content=pieces(), headers=headers), 400, 413)


def test_a_failure_of_the_server_tells_nothing(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(client.app.state.server.videos, "get", fail)  # type: ignore[attr-defined]
    detail = sentence(client.get(f"/v1/videos/{'0' * 32}"), 500)
    assert "hunter2" not in detail


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::refervos.errors.UnknownWordsWarning")  # as the command does
def test_a_thousand_calls_made_from_the_openapi_document(client: TestClient) -> None:
    import hypothesis
    import schemathesis

    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, headers={"host": "localhost"})
    operations: list[Any] = [operation.ok() for operation in cast(Any, schema.get_all_operations())]
    each = 1000 // len(operations) + 1
    calls = 0
    for operation in operations:
        if operation.path.endswith("/ws"):
            continue

        @hypothesis.settings(
            max_examples=each, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.given(case=operation.as_strategy())
        def call(case: Any) -> None:
            nonlocal calls
            calls += 1
            headers = {name: value for name, value in (case.headers or {}).items() if name.lower() != "host"}
            answer = case.call(headers={**headers, "host": "localhost"})
            assert answer.status_code < 500 or answer.status_code in (501, 503, 507), answer.text
            if answer.status_code >= 400:
                assert answer.json()["detail"].endswith(".")

        call()
    assert calls >= 500
    assert client.get("/health").status_code == 200
