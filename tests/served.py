"""A server for tests: the application with the miniature, drawn videos, and a viewer that acknowledges frames."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi.testclient import TestClient

import refervos
from refervos.serving.application import create_app
from refervos.serving.guard import AccessRules
from refervos.serving.limits import Limits
from refervos.serving.server import ServerSettings
from refervos.serving.wire import ReceivedFrame, decode_frame
from video_files import write_video

ORIGIN = "http://localhost"


@functools.cache
def miniature() -> Any:
    return refervos.load(device="cpu")


def drawn_frames(count: int = 12) -> list[np.ndarray]:
    """A red disc that moves to the right, and a blue box that moves to the left."""
    rows, columns = np.mgrid[:96, :128]
    frames = []
    for k in range(count):
        image = np.full((96, 128, 3), 200, np.uint8)
        image[(rows - 40) ** 2 + (columns - 20 - 3 * k) ** 2 < 150] = (220, 30, 30)
        image[60:80, 90 - 3 * k : 110 - 3 * k] = (30, 60, 220)
        frames.append(image)
    return frames


def drawn_video(folder: Path, count: int = 12) -> Path:
    return write_video(folder / "drawn.mp4", count, width=128, height=96, images=drawn_frames(count))


@contextmanager
def serving(folder: Path | None = None, limits: Limits | None = None, **settings: Any) -> Iterator[TestClient]:
    """The application, running."""
    model = settings.pop("model", None) or miniature()
    chosen = ServerSettings(folder=folder, limits=limits or Limits(), **settings)
    with TestClient(create_app({"miniature": model}, chosen), base_url=ORIGIN, raise_server_exceptions=False) as client:
        yield client


def upload(client: TestClient, path: Path) -> str:
    answer = client.post("/v1/videos", params={"name": path.name}, content=path.read_bytes())
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def open_session(client: TestClient, path: Path, *expressions: str) -> str:
    """Open a session about a video, which is uploaded once."""
    known = client.__dict__.setdefault("uploaded", {})
    if path not in known:
        known[path] = upload(client, path)
    content = {"source": {"video": known[path]}, "expressions": list(expressions)}
    answer = client.post("/v1/sessions", json=content)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


class Watcher:
    """A viewer of a session."""

    def __init__(self, socket: Any, *, acknowledges: bool = True) -> None:
        self.socket, self.acknowledges = socket, acknowledges
        self.frames: list[ReceivedFrame] = []
        self.events: list[dict[str, Any]] = []
        self.count = 0
        self.sent = 0  # events that came before the newest command was sent
        self.seen: dict[str, int] = {}  # position after the last event returned, by kind

    @property
    def indices(self) -> list[int]:
        return [frame.header["frame"] for frame in self.frames]

    def receive(self) -> None:
        message = self.socket.receive()
        if message["type"] == "websocket.close":
            raise ConnectionError(message)
        if message.get("bytes") is not None:
            self.frames.append(decode_frame(message["bytes"]))
            if self.acknowledges:
                self.socket.send_text(json.dumps({"do": "ack", "frame": self.indices[-1]}))
        else:
            self.events.append(json.loads(message["text"]))

    def until(self, wanted: Callable[[Watcher], bool]) -> None:
        while not wanted(self):
            self.receive()

    def until_event(self, kind: str) -> dict[str, Any]:
        """Receive until an event of a kind that came after the newest command was sent, and was not returned before.

        The event that a command causes may overtake the reply to it.
        """
        while True:
            for number in range(max(self.sent, self.seen.get(kind, 0)), len(self.events)):
                if self.events[number].get("event") == kind:
                    self.seen[kind] = number + 1
                    return self.events[number]
            self.receive()

    def until_frame(self, index: int) -> None:
        """Receive until the newest frame is this one and all is quiet."""
        self.until(lambda w: bool(w.frames) and w.indices[-1] == index)

    def reply(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a command and return the whole reply."""
        self.count += 1
        self.sent = len(self.events)
        self.socket.send_text(json.dumps({"n": self.count, "do": do, **fields}))
        self.until(lambda w: bool(w.events) and any(each.get("n") == self.count for each in w.events))
        return next(each for each in self.events if each.get("n") == self.count)

    def do(self, do: str, **fields: Any) -> dict[str, Any]:
        """Send a command that succeeds."""
        answer = self.reply(do, **fields)
        assert "ok" in answer, answer
        result: dict[str, Any] = answer["ok"]
        return result


@contextmanager
def watching(client: TestClient, session: str, **options: Any) -> Iterator[Watcher]:
    with client.websocket_connect(f"/v1/sessions/{session}/ws", headers={"host": "localhost"}) as socket:
        watcher = Watcher(socket, **options)
        watcher.receive()
        assert watcher.events[0]["event"] == "state"
        watcher.sent = 1
        yield watcher


def with_token(token: str) -> AccessRules:
    return AccessRules(token=token)
