"""What the studio's page relies on in the server: earlier sentences, colours, clicks of corrections, the page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from studio_server import clip

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

import refervos
from refervos.serving.application import create_app
from refervos.serving.server import ServerSettings
from refervos.serving.source_rules import SourceRules
from refervos.studio import PAGE, samples

FRAMES = 5


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = ServerSettings(page=PAGE, sources=SourceRules(files=(tmp_path_factory.mktemp("files"),)))
    app = create_app({"miniature": refervos.load(device="cpu")}, settings, samples())
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def video(client: TestClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    content = clip(tmp_path_factory.mktemp("video") / "clip.mp4", FRAMES).read_bytes()
    return str(client.post("/v1/videos", content=content).json()["id"])


class Talk:
    """A WebSocket whose frames are acknowledged."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.n = socket, 0
        self.state: dict[str, Any] = {}

    def receive(self) -> dict[str, Any]:
        message = self.socket.receive()
        if message.get("bytes") is not None:
            length = int.from_bytes(message["bytes"][:4], "little")
            header = json.loads(message["bytes"][4 : 4 + length])
            self.socket.send_json({"do": "ack", "frame": header["frame"]})
            return {}
        content: dict[str, Any] = json.loads(message["text"])
        if content.get("event") == "state":
            self.state = content
        return content

    def do(self, command: str, **parameters: Any) -> Any:
        self.n += 1
        self.socket.send_json({"n": self.n, "do": command, **parameters})
        while (reply := self.receive()).get("n") != self.n:
            pass
        return reply.get("ok", reply.get("problem"))

    def step_to_second(self) -> None:
        """Segment two frames."""
        self.do("step", frames=2)
        while self.state.get("frame") != 1:
            self.receive()

    def finish(self) -> None:
        while self.state["frame"] != FRAMES - 1:
            self.receive()


def opened(client: TestClient, video: str, *expressions: str) -> str:
    answer = client.post("/v1/sessions", json={"source": {"video": video}, "expressions": list(expressions)})
    return str(answer.json()["id"])


def masks_of(client: TestClient, session: str) -> list[dict[str, Any]]:
    lines = client.get(f"/v1/sessions/{session}/masks").text.splitlines()
    return [json.loads(line) for line in lines]


def test_a_sentence_added_from_the_start_is_as_if_it_had_been_there(client: TestClient, video: str) -> None:
    first, second = "the red circle", "the yellow square"
    together, later = opened(client, video, first, second), opened(client, video, first)
    with client.websocket_connect(f"ws://localhost/v1/sessions/{together}/ws") as socket:
        talk = Talk(socket)
        talk.do("play")
        talk.finish()
    with client.websocket_connect(f"ws://localhost/v1/sessions/{later}/ws") as socket:
        talk = Talk(socket)
        talk.do("play")
        talk.finish()
        alone = masks_of(client, later)
        assert talk.do("add", expression=second, frame=0) == {"track": 1}
        talk.finish()
    assert masks_of(client, later) == masks_of(client, together)
    assert [line["tracks"][0]["id"] for line in alone] == [0] * FRAMES


def test_a_sentence_added_from_a_frame_on_begins_there(client: TestClient, video: str) -> None:
    session = opened(client, video, "the red circle")
    with client.websocket_connect(f"ws://localhost/v1/sessions/{session}/ws") as socket:
        talk = Talk(socket)
        talk.do("play")
        talk.finish()
        talk.do("add", expression="the yellow square", frame=3)
        talk.finish()
    tracks = [[track["id"] for track in line["tracks"]] for line in masks_of(client, session)]
    assert tracks == [[0], [0], [0], [0, 1], [0, 1]]


def test_sentences_are_in_the_state_with_their_frames(client: TestClient, video: str) -> None:
    session = opened(client, video, "the red circle")
    with client.websocket_connect(f"ws://localhost/v1/sessions/{session}/ws") as socket:
        talk = Talk(socket)
        talk.step_to_second()
        talk.do("set_prompt", track=0, expression="the red disc")
        (track,) = client.get(f"/v1/sessions/{session}").json()["tracks"]
    assert track["prompts"] == [[0, "the red circle"], [2, "the red disc"]]


def test_colours_and_clicks_are_in_the_state(client: TestClient, video: str) -> None:
    session = opened(client, video, "the red circle")
    with client.websocket_connect(f"ws://localhost/v1/sessions/{session}/ws") as socket:
        talk = Talk(socket)
        talk.step_to_second()
        talk.do("show", track=0, visible=True, colour=[1, 2, 3])
        talk.do("correct", track=0, frame=1, points=[[60.5, 50, 1]])
        state = client.get(f"/v1/sessions/{session}").json()
    assert state["tracks"][0]["colour"] == [1, 2, 3]
    (event,) = state["events"]
    assert (event["kind"], event["frame"], event["points"]) == ("correction", 1, [[60.5, 50, 1]])
    assert event["time"] == pytest.approx(1 / 15, abs=1e-3)


def test_the_page_knows_which_sources_are_allowed(client: TestClient) -> None:
    allowed = client.get("/v1/limits").json()["allowed"]
    assert allowed == {"files": True, "cameras": False, "urls": False, "webhooks": []}


def test_the_page_and_its_gallery_are_served_with_a_strict_policy(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "unsafe" not in page.headers["content-security-policy"]
    for sample in client.get("/v1/samples").json():
        assert client.get(f"/{sample['poster']}").headers["content-type"] == "image/jpeg"
        answer = client.post("/v1/videos", json={"sample": sample["id"]})
        assert answer.status_code == 201
        assert answer.json()["playable"]
    assert Path(PAGE / "main.js").read_text() == client.get("/main.js").text


def test_a_step_to_a_frame_is_asked_for_twice_and_made_once(client: TestClient, video: str) -> None:
    session = opened(client, video, "the red circle")
    with client.websocket_connect(f"ws://localhost/v1/sessions/{session}/ws") as socket:
        talk = Talk(socket)
        assert talk.do("step", to=1) == {"frame": 1}
        assert talk.do("step", to=1) == {"frame": 1}
        while talk.state.get("until", 1) is not None:
            talk.receive()
        assert talk.state["frame"] == 1
        talk.do("step", to=3)
        assert (talk.state["until"], talk.state["running"]) == (3, False)  # said before the reply
        talk.do("pause")
        assert talk.state["until"] is None  # nothing follows until another command


class Recorder:
    """A viewer that keeps the events that it is sent."""

    has_room, sends_frames = True, False

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def silent_for(self) -> float:
        return 0.0

    def offer_event(self, event: dict[str, Any]) -> None:
        self.events.append(event)


def test_the_state_for_a_new_viewer_is_not_older_than_the_changes_that_it_is_sent(
    client: TestClient, video: str
) -> None:
    served = client.app.state.server.sessions.get(opened(client, video, "the red circle"))  # type: ignore[attr-defined]
    begun, release = threading.Event(), threading.Event()
    viewer: Any = Recorder()

    def rename() -> None:
        begun.set()
        assert release.wait(60)
        served.rename(0, "Mars")

    renamed = served.submit(rename)
    assert begun.wait(60)
    served.watch(viewer)  # while the session is at work
    release.set()
    renamed.result(60)
    served.submit(lambda: None).result(60)
    served.unwatch(viewer)
    assert [event["tracks"][0]["label"] for event in viewer.events] == ["Mars", "Mars"]
