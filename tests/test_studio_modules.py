"""The modules of the studio's page that need no browser, in Node, and the types of all of them."""

from __future__ import annotations

import ast
import base64
import re
import shlex
import subprocess
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from browser_tools import BROWSER, MODULES, PAGE, needs_node, needs_npm_packages, run_modules

pytest.importorskip("fastapi")

from refervos.serving.wire import TrackMask, encode_frame, run_lengths


@needs_npm_packages
def test_the_types_of_all_modules_are_right() -> None:
    checked = subprocess.run(
        [str(MODULES / ".bin" / "tsc"), "--project", str(BROWSER / "tsconfig.json")], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout


def test_the_page_has_no_inline_script_or_style_and_names_no_other_host() -> None:
    html = (PAGE / "index.html").read_text()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", html)
    for file in [*PAGE.glob("*.js"), *PAGE.glob("*.css"), PAGE / "index.html"]:
        addresses = re.findall(r"https?://[^\s\"'`)]+", file.read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, file


def random_masks(count: int, height: int, width: int) -> np.ndarray:
    masks = np.random.default_rng(3).random((count, height, width)) > 0.6
    masks[0] = False
    masks[1] = True
    masks[2, :, 3:7] = True
    return masks


@needs_node
def test_masks_of_a_message_are_those_that_the_server_encoded() -> None:
    masks = random_masks(4, 23, 31)
    header = {"frame": 7, "time": 0.28, "sent": 1.5, "w": 31, "h": 23, "fps": 12.5}
    message = encode_frame(
        header, [TrackMask(k, k / 10, mask) for k, mask in enumerate(masks)], b"\xff\xd8jpeg\xff\xd9"
    )
    script = """
        import { decodeFrame, fillRuns } from "./messages.js";
        const bytes = Buffer.from(given, "base64");
        const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
        const { masks, fps, picture } = decodeFrame(buffer);
        const pixels = masks.tracks.map(({ runs }) => {
            const filled = new Uint32Array(masks.width * masks.height);
            fillRuns(runs, masks.width, masks.height, filled, 9);
            return [...filled];
        });
        answer({ frame: masks.frame, time: masks.time, fps, picture: picture.size, pixels,
                 presence: masks.tracks.map(({ presence }) => presence) });
    """
    found = run_modules(script, base64.b64encode(message).decode())
    assert (found["frame"], found["time"], found["fps"], found["picture"]) == (7, 0.28, 12.5, 8)
    assert found["presence"] == [0, 0.1, 0.2, 0.3]
    np.testing.assert_array_equal(np.array(found["pixels"]).reshape(masks.shape), masks * 9)


@needs_node
def test_cocos_compressed_counts_are_decoded_as_by_pycocotools() -> None:
    masks = random_masks(6, 40, 57)
    counts = [coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode() for mask in masks]
    script = 'import { decodeCoco } from "./messages.js"; answer(given.map((text) => [...decodeCoco(text)]));'
    for runs, mask in zip(run_modules(script, counts), masks, strict=True):
        assert runs == run_lengths(mask).tolist()


@needs_node
@pytest.mark.parametrize("pts", [None, [0.0, 0.04, 0.08, 0.2, 0.24]], ids=["constant", "variable"])
def test_each_frame_is_known_by_its_presentation_time(pts: list[float] | None) -> None:
    script = """
        import { FrameTimes } from "./frame_times.js";
        const times = new FrameTimes(given);
        const frames = [...Array(times.count).keys()];
        answer(frames.map((k) => [times.frameAt(times.timeOf(k)), times.timeOf(k), times.insideOf(k)]));
    """
    video = {"fps": 25, "frame_count": 5, "duration": 0.2, "pts": pts}
    starts = pts or [k / 25 for k in range(5)]
    found = run_modules(script, video)
    assert [frame for frame, _, _ in found] == list(range(5))
    assert [start for _, start, _ in found] == pytest.approx(starts)
    for k, (_, start, inside) in enumerate(found):
        assert start < inside < (starts[k + 1] if k < 4 else start + 0.04)


PLAYING = {
    "shown": 10,
    "newest": 30,
    "computing": True,
    "fps": 12,
    "frameRate": 24,
    "speed": 1,
    "wentBack": False,
    "held": False,
}


@needs_node
@pytest.mark.parametrize(
    ("changed", "move", "rate"),
    [
        ({"computing": False, "newest": 10}, "play", 1),
        ({}, "play", 0.5),  # at the speed of the model
        ({"newest": 60}, "play", 1),  # more than a second ahead
        ({"newest": 11}, "hold", 0),
        ({"newest": 13, "held": True}, "hold", 0),  # waits for a few frames before it goes on
        ({"newest": 14, "held": True}, "play", 0.5),
        ({"fps": 2}, "follow", 0),
        ({"fps": 2, "wentBack": True}, "play", 0.1),  # from where the user went, as slowly as browsers can
        ({"fps": 100}, "play", 1),
        ({"fps": 100, "speed": 2, "newest": 100}, "play", 2),
    ],
)
def test_a_recording_plays_as_fast_as_its_masks_arrive(changed: dict[str, Any], move: str, rate: float) -> None:
    found = run_modules('import { pace } from "./pacing.js"; answer(pace(given));', {**PLAYING, **changed})
    assert found == {"move": move, "rate": rate}


STATE = {
    "model": "miniature",
    "source": {"kind": "video", "name": 'my "clip" isn\'t.mp4'},
    "live": False,
    "frame_count": 125,
    "range": [10, 79],
    "tracks": [
        {"id": 0, "expression": "the red disc", "prompts": [[10, "the red circle"], [30, "the red disc"]]},
        {"id": 3, "expression": "the bird's nest", "prompts": [[40, "the bird's nest"]]},
    ],
    "events": [
        {"kind": "cut", "frame": 5, "track": None},
        {"kind": "correction", "frame": 42, "track": 3, "points": [[280.5, 115, 1], [3, 4, 0]], "box": None},
        {"kind": "correction", "frame": 50, "track": 0, "points": [], "box": [1, 2, 30, 40]},
    ],
}


@needs_node
def test_a_session_as_python_makes_the_same_calls() -> None:
    program = run_modules('import { asPython } from "./snippets.js"; answer(asPython(given));', STATE)
    calls: list[tuple[Any, ...]] = []

    class Frame:
        def __init__(self, index: int) -> None:
            self.index, self.image = index, index

    class Result:
        presence = np.zeros(2)
        masks = np.zeros((2, 4, 4), bool)

    class Session:
        def add(self, expression: str) -> int:
            calls.append(("add", expression))
            return len(calls)

        def set_prompt(self, track: int, expression: str) -> None:
            calls.append(("set_prompt", track, expression))

        def step(self, image: int) -> Result:
            calls.append(("step", image))
            return Result()

        def correct(self, track: int, **given: Any) -> Result:
            calls.append(("correct", track, given))
            return Result()

    class Model:
        def open(self) -> Session:
            return Session()

    class Refervos:
        def load(self, name: str) -> Model:
            calls.append(("load", name))
            return Model()

        def open_source(self, path: str, start: int, stop: int) -> list[Frame]:
            calls.append(("open", path, start, stop))
            return [Frame(k) for k in range(start, stop)]

    tree = ast.parse(program)
    assert isinstance(tree.body[0], ast.Import)
    del tree.body[0]
    exec(compile(tree, "program", "exec"), {"refervos": Refervos(), "print": lambda *_: None})
    steps = [call for call in calls if call[0] == "step"]
    assert [image for _, image in steps] == list(range(10, 80))
    others = [call for call in calls if call[0] != "step"]
    circle, nest = calls.index(("add", "the red circle")) + 1, calls.index(("add", "the bird's nest")) + 1
    assert others == [
        ("load", "miniature"),
        ("add", "the red circle"),
        ("open", 'my "clip" isn\'t.mp4', 10, 80),
        ("set_prompt", circle, "the red disc"),
        ("add", "the bird's nest"),
        ("correct", nest, {"points": [(280.5, 115), (3, 4)], "labels": [1, 0]}),
        ("correct", circle, {"box": (1, 2, 30, 40)}),
    ]
    assert calls[calls.index(("set_prompt", circle, "the red disc")) + 1] == ("step", 30)
    assert calls[calls.index(("add", "the bird's nest")) + 1] == ("step", 40)


@needs_node
def test_a_session_as_a_command_is_quoted_and_says_what_it_leaves_out() -> None:
    command = run_modules('import { asCommand } from "./snippets.js"; answer(asCommand(given));', STATE)
    assert shlex.split(command["text"]) == [
        *("refervos", "segment", 'my "clip" isn\'t.mp4', "the red disc", "the bird's nest", "--model", "miniature"),
        *("--start", "10", "--frames", "70", "--save", "overlay", "--out", "result"),
    ]
    assert "corrections" in command["left"]
    assert "changed" in command["left"]
    plain = {**STATE, "events": [], "tracks": [{**STATE["tracks"][0], "prompts": [[10, "the red disc"]]}]}  # type: ignore[index]
    script = 'import { asCommand } from "./snippets.js"; answer(asCommand(given).left);'
    assert run_modules(script, plain) is None


@needs_node
def test_masks_are_fetched_once_and_those_computed_again_are_not_overwritten() -> None:
    script = """
        import { MaskStore } from "./mask_store.js";
        const asked = [];
        let release;
        const gate = new Promise((resolve) => (release = resolve));
        const store = new MaskStore(async (from, to) => {
            asked.push([from, to]);
            if (asked.length === 2) await gate;
            return [{ frame: from, old: true }];
        }, () => {});
        await store.want(105, 150);
        const fetched = store.get(100).old;
        const again = store.want(205, 220);
        await store.want(206, 220);
        store.forgetFrom(200);
        store.put({ frame: 200, old: false });
        release();
        await again;
        answer({ asked, fetched, kept: store.get(200).old, forgotten: store.get(100) !== undefined });
    """
    assert run_modules(script) == {"asked": [[100, 151], [200, 221]], "fetched": True, "kept": False, "forgotten": True}


FAKE_SOCKETS = """
globalThis.location = { href: "http://localhost/", protocol: "http:" };
globalThis.sockets = [];
globalThis.WebSocket = class extends EventTarget {
    static CONNECTING = 0;
    static OPEN = 1;
    readyState = 0;
    sent = [];
    constructor() {
        super();
        sockets.push(this);
    }
    send(text) {
        this.sent.push(JSON.parse(text));
    }
    close() {
        this.readyState = 3;
    }
    open() {
        this.readyState = 1;
        this.dispatchEvent(new Event("open"));
    }
    lose() {
        this.close();
        this.dispatchEvent(Object.assign(new Event("close"), { code: 1006 }));
    }
    receive(message) {
        this.dispatchEvent(Object.assign(new Event("message"), { data: JSON.stringify(message) }));
    }
};
"""
"""WebSockets that open, answer and close when the script says so."""

SERVED = {
    "id": "s",
    "model": "miniature",
    "source": {"webcam": True},
    "live": False,
    "frame": 0,
    "frame_count": 30,
    "running": False,
    "ended": False,
    "until": None,
    "range": [0, 29],
    "events": [],
    "alerts": [],
    "tracks": [{"id": 0, "expression": "it", "colour": [1, 2, 3], "visible": True, "prompts": [], "presence": []}],
}
"""A state as the server sends it."""


def run_session(script: str) -> Any:
    """Run a script with a ``session`` of ``SERVED``, its ``socket``, and ``pause``, which lets promises go on."""
    prelude = """
        import { Session } from "./session.js";
        import { readState } from "./server_state.js";
        const pause = () => new Promise((resolve) => setTimeout(resolve));
        const notices = [];
        const session = new Session(readState(given, null));
        session.addEventListener("notice", ({ detail }) => notices.push(detail));
        const [socket] = sockets;
        const state = (changes) => socket.receive({ event: "state", ...given, ...changes });
    """
    return run_modules(FAKE_SOCKETS + prelude + script, SERVED)


@needs_node
def test_commands_wait_for_the_connection_that_is_being_made() -> None:
    script = """
        const done = session.do("add", { expression: "it" });
        await pause();
        const before = socket.sent.length;
        socket.open();
        await pause();
        socket.receive({ n: 1, ok: { track: 0 } });
        answer({ before, sent: socket.sent, result: await done, notices });
    """
    assert run_session(script) == {
        "before": 0,
        "sent": [{"n": 1, "do": "add", "expression": "it"}],
        "result": {"track": 0},
        "notices": [],
    }


@needs_node
def test_commands_without_a_connection_say_so() -> None:
    script = """
        const waiting = session.do("add", { expression: "it" });
        await pause();
        socket.lose();
        const results = [await waiting, await session.do("play")];
        session.close();
        answer({ results: results.map((result) => result === undefined), notices, sent: socket.sent });
    """
    found = run_session(script)
    assert (found["results"], found["sent"]) == ([True, True], [])
    assert found["notices"] == [
        "The connection was lost before the server answered.",
        "There is no connection to the server just now.",
    ]


@needs_node
def test_a_command_is_chosen_after_those_before_it_have_been_answered() -> None:
    script = """
        socket.open();
        const toggle = () => session.decide(() => ["show", { visible: !session.state.tracks[0].visible }]);
        const first = toggle();
        const second = toggle();
        await pause();
        const early = socket.sent.length;
        state({ tracks: [{ ...given.tracks[0], visible: false }] });
        socket.receive({ n: 1, ok: {} });
        await first;
        await pause();
        socket.receive({ n: 2, ok: {} });
        await second;
        answer({ early, visible: socket.sent.map(({ visible }) => visible) });
    """
    assert run_session(script) == {"early": 1, "visible": [False, True]}


@needs_node
def test_whether_a_frame_will_have_masks_is_known_while_a_step_is_on_its_way() -> None:
    script = """
        socket.open();
        const found = {};
        found.nothing = await session.reach(1);
        session.do("step", { to: 2 });
        session.reach(1).then((reached) => (found.stepped = reached));
        session.reach(2).then((reached) => (found.paused = reached));
        await pause();
        found.early = Object.keys(found);
        state({ until: 2 });
        socket.receive({ n: 1, ok: { frame: 2 } });
        await pause();
        found.underway = Object.keys(found).length;
        state({ until: 2, frame: 1 });
        await pause();
        state({ frame: 1 });
        await pause();
        answer(found);
    """
    assert run_session(script) == {
        "nothing": False,
        "early": ["nothing"],
        "underway": 2,
        "stepped": True,
        "paused": False,  # because nothing computes it any more
    }


@needs_node
def test_masks_are_asked_for_again_if_frames_were_computed_in_the_meantime() -> None:
    script = """
        import { MaskStore } from "./mask_store.js";
        let release;
        const gate = new Promise((resolve) => (release = resolve));
        let changes = 0;
        const store = new MaskStore(async (from) => {
            await gate;
            return [{ frame: from }];
        }, () => changes++);
        const outdated = store.want(0, 50);
        store.forgetFrom(20);
        release();
        await outdated;
        const after = [changes, store.get(0) !== undefined];
        await store.want(0, 30);
        await store.want(7, 30); // has no masks on the server: it is not asked for over and over
        answer([...after, changes, store.get(0) !== undefined]);
    """
    assert run_modules(script) == [1, False, 2, True]
