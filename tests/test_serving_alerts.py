"""Alerts: a sentence's presence above or below a threshold for some frames, shown, written and posted."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from refervos.serving.alerts import Alert, WebhookRules, WebhookSender
from served import drawn_video, open_session, serving, watching


def raised(alert: Alert, *presences: float) -> list[int]:
    return [k for k, presence in enumerate(presences) if alert.update(presence)]


def test_an_event_is_raised_once_when_the_condition_has_held_for_some_frames() -> None:
    assert raised(Alert(0, 0.5, "above", 3), 0.9, 0.9, 0.2, 0.9, 0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9) == [5, 10]
    assert raised(Alert(0, 0.5, "below", 2), 0.9, 0.2, 0.2, 0.2) == [2]
    assert raised(Alert(0, 0.5, "above", 1), 0.5, 0.51) == [1]


class Hooks:
    """A webhook's receiver, which keeps what is posted; ``/moved`` redirects."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, Any]] = []
        self.came = threading.Event()
        hooks = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hooks.posted.append((self.path, json.loads(body)))
                self.send_response(307 if self.path == "/moved" else 204)
                self.send_header("Location", "/private")
                self.end_headers()
                hooks.came.set()

            def log_message(self, *_: Any) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Hooks:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_an_alert_is_shown_written_and_posted(tmp_path: Path) -> None:
    video = drawn_video(tmp_path, 8)
    with Hooks() as hooks, serving(tmp_path / "server", webhooks=WebhookRules((hooks.address,))) as client:
        session = open_session(client, video, "the red circle")
        rule = {"track": 0, "threshold": 0.0, "when": "above", "frames": 3}
        refused = client.post(f"/v1/sessions/{session}/alerts", json={**rule, "webhook": "http://10.0.0.1/"})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden-webhook")
        assert client.post(f"/v1/sessions/{session}/alerts", json={**rule, "track": 5}).status_code == 422
        for malformed in ("http://[x", True, -1, 1):  # the last is the position of a second address
            answer = client.post(f"/v1/sessions/{session}/alerts", json={**rule, "webhook": malformed})
            assert answer.status_code in (403, 422), malformed
        address = f"{hooks.address}/alert?key=hunter2"
        assert client.post(f"/v1/sessions/{session}/alerts", json={**rule, "webhook": address}).status_code == 201
        with watching(client, session) as watcher:
            watcher.do("play")
            shown = watcher.until_event("alert")
            watcher.until_event("end")
            assert "hunter2" not in json.dumps(watcher.events)
        assert (shown["frame"], shown["track"], shown["expression"]) == (2, 0, "the red circle")
        state = client.get(f"/v1/sessions/{session}").json()
        assert [event["frame"] for event in state["events"] if event["kind"] == "alert"] == [2]
        assert state["alerts"][0]["webhook"] is True
        (written,) = client.get(f"/v1/sessions/{session}/alerts").text.splitlines()
        assert {"event": "alert", **json.loads(written)} == shown
        assert hooks.came.wait(30)
        assert hooks.posted == [("/alert?key=hunter2", json.loads(written))]


def test_a_webhook_is_chosen_by_its_position_without_knowing_its_address(tmp_path: Path) -> None:
    video = drawn_video(tmp_path, 2)
    with Hooks() as hooks, serving(tmp_path / "server", webhooks=WebhookRules((f"{hooks.address}/secret",))) as client:
        assert client.get("/v1/limits").json()["allowed"]["webhooks"] == [hooks.address]
        session = open_session(client, video, "the red circle")
        rule = {"track": 0, "threshold": 0.0, "webhook": 0}
        assert client.post(f"/v1/sessions/{session}/alerts", json=rule).status_code == 201
        with watching(client, session) as watcher:
            watcher.do("step")
            assert hooks.came.wait(30)
        assert [path for path, _ in hooks.posted] == ["/secret"]


def test_alerts_are_removed_one_by_one_by_track_or_all(tmp_path: Path) -> None:
    with serving(tmp_path / "server") as client:
        session = open_session(client, drawn_video(tmp_path, 2), "the red circle", "the blue box")
        with watching(client, session) as watcher:
            for track, frames in ((0, 1), (0, 2), (1, 3), (1, 4), (0, 5)):
                watcher.do("alert", track=track, frames=frames)

            def kept() -> list[int]:
                return [alert["frames"] for alert in client.get(f"/v1/sessions/{session}").json()["alerts"]]

            watcher.do("clear_alerts", alert=1)
            assert kept() == [1, 3, 4, 5]
            assert watcher.reply("clear_alerts", alert=4)["problem"]["code"] == "unknown-alert"
            watcher.do("clear_alerts", track=1)
            assert kept() == [1, 5]
            watcher.do("clear_alerts")
            assert kept() == []


def test_a_webhook_that_redirects_is_not_followed() -> None:
    with Hooks() as hooks:
        sender = WebhookSender()
        sender.send(f"{hooks.address}/moved", {"frame": 1})
        sender.close()
        assert [path for path, _ in hooks.posted] == ["/moved"]
        assert sender.failed == 1


def test_a_webhook_that_is_away_fails_without_stopping_anything() -> None:
    sender = WebhookSender()
    sender.send("http://127.0.0.1:9/", {"frame": 1})
    sender.close()
    assert sender.failed == 1
