"""The studio in headless Chromium, from the upload to the export, as a user goes through it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from browser_tools import CHROMIUM, MODULES, needs_chromium, needs_npm_packages
from studio_server import FRAMES, Camera, clip, running_studio

pytest.importorskip("fastapi")
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect

pytestmark = needs_chromium

PATIENCE = 120_000  # milliseconds; the machines of CI are slow and busy
WEBCAM = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def camera() -> Iterator[Camera]:
    camera = Camera()
    yield camera
    camera.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def address(folder: Path, camera: Camera) -> Iterator[str]:
    options = ["--allow-sources", camera.host, "--allow-files", str(folder), "--limit", "sessions=40"]
    options += ["--allow-webhook", "http://127.0.0.1:9/secret"]  # where nobody listens
    with running_studio(folder / "server", *options) as address:
        yield address


@pytest.fixture(scope="module")
def video(folder: Path) -> Path:
    return clip(folder / "clip.mp4")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *WEBCAM])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    yield from open_page(browser)


second_page = page


def open_page(browser: Any, **options: Any) -> Iterator[Any]:
    """Open a page that collects its errors, and check at the end that there were none."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True, **options)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.errors = errors
    yield page
    context.close()
    assert not errors


def forget_refused_requests(page: Any) -> None:
    """Forget what Chromium reports by itself about requests that the server refused."""
    page.errors[:] = [error for error in page.errors if "Failed to load resource" not in error]


def upload(page: Any, address: str, video: Path) -> None:
    page.goto(address)
    expect(page.locator("#limits")).to_contain_text("Up to")  # the limits are shown before an upload begins
    page.set_input_files("#file", video)
    expect(page.locator("#studio")).to_be_visible()


def ask(page: Any, sentence: str) -> None:
    page.fill("#sentence", sentence)
    page.press("#sentence", "Enter")


def ask_about(page: Any, question: str) -> None:
    page.fill("#conversation-question", question)
    page.press("#conversation-question", "Enter")


def finished(page: Any) -> None:
    expect(page.locator("#status")).to_contain_text("are done")


def tracks(page: Any) -> Any:
    return page.locator("#tracks li")


def go_to(page: Any, frame: int) -> None:
    page.keyboard.press("Escape")  # leaves the text field
    page.keyboard.press("ArrowLeft")  # pauses
    page.keyboard.press("Home")
    on_frame(page, 0)
    for k in range(1, frame + 1):
        page.keyboard.press("ArrowRight")
        on_frame(page, k)


def on_frame(page: Any, frame: int) -> None:
    expect(page.locator("#stage-canvas")).to_have_attribute("data-frame", str(frame))


def painted(page: Any, *ids: int) -> None:
    """Wait until masks of exactly these tracks are painted."""
    expect(page.locator("#stage-canvas")).to_have_attribute("data-masks", " ".join(map(str, ids)))


def colour_at(page: Any, x: float, y: float) -> list[int]:
    """Return the pixel of the mask layer at a place of the frame, from 0 to 1."""
    script = """([x, y]) => {
        const canvas = document.querySelector("#stage-canvas");
        const [u, v] = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
        return [...canvas.getContext("2d").getImageData(u, v, 1, 1).data];
    }"""
    found: list[int] = page.evaluate(script, [x, y])
    return found


def click_at(page: Any, x: float, y: float, **options: Any) -> None:
    box = page.locator("#stage-canvas").bounding_box()
    page.locator("#stage-canvas").click(position={"x": x * box["width"], "y": y * box["height"]}, **options)


CIRCLE, SQUARE = (0.27, 0.35), (0.73, 0.65)


def test_a_video_is_uploaded_segmented_corrected_exported_and_reopened(
    page: Any, address: str, video: Path, tmp_path: Path
) -> None:
    upload(page, address, video)
    expect(page.locator("#video-facts")).to_contain_text(f"{FRAMES} frames")
    expect(page.locator("#status")).to_contain_text("on this machine")  # an estimate before the start
    assert re.search(r"\?session=\w{8}", page.url)

    page.fill("#sentence", "the red circle")
    page.click("#another")
    expect(tracks(page)).to_have_count(1)
    ask(page, "the yellow square")
    expect(tracks(page)).to_have_count(2)
    painted(page, 0, 1)  # masks appear as they are computed
    finished(page)

    go_to(page, 3)
    painted(page, 0, 1)
    assert colour_at(page, *CIRCLE)[3] > 0
    assert colour_at(page, *SQUARE)[3] > 0
    assert colour_at(page, 0.5, 0.05)[3] == 0
    expect(page.locator("#stage-canvas")).to_have_attribute("aria-label", re.compile("the red circle: visible, \\d+ %"))

    # The selected sentence is the last one. Its object is clicked away, then the click is taken back.
    expect(page.locator("#undo")).to_be_disabled()
    click_at(page, *SQUARE, modifiers=["Shift"])
    expect(page.locator("#undo")).to_be_enabled()
    expect(page.locator(".event.correction")).to_contain_text("the yellow square")
    expect(page.locator("#stage-marks .remove")).to_have_count(1)
    page.keyboard.press("z")
    expect(page.locator("#undo")).to_be_disabled()
    expect(page.locator("#events")).to_be_hidden()
    finished(page)
    painted(page, 0, 1)

    # A click on the other object moves the sentence to it.
    click_at(page, *CIRCLE)
    expect(page.locator(".event.correction")).to_be_visible()
    finished(page)

    page.get_by_role("button", name="Drop the yellow square").click()
    expect(tracks(page)).to_have_count(1)
    painted(page, 0)

    exported = export(page, "COCO run lengths", tmp_path)
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    assert len({line.get("frame", line.get("frame_index")) for line in lines}) == FRAMES
    page.get_by_role("button", name="Close").click()

    before = masks_of(page)
    page.reload()
    expect(tracks(page)).to_have_count(1)
    finished(page)
    painted(page, 0)
    go_to(page, 3)
    painted(page, 0)

    page.keyboard.press("e")
    with page.expect_download() as download:
        page.click("#export-session")
    saved = tmp_path / "saved.refervos"
    download.value.save_as(saved)
    old = page.url
    page.goto(address)
    page.set_input_files("#source-saved", saved)
    expect(tracks(page)).to_have_count(1)
    assert page.url != old
    finished(page)
    assert masks_of(page) == before


def export(page: Any, name: str, folder: Path) -> Path:
    """Export in a format and return the first file."""
    page.keyboard.press("e")
    page.get_by_label(name).check()
    page.click("#export-start")
    expect(page.locator("#export-status")).to_have_text("Ready.")
    with page.expect_download() as download:
        page.locator("#export-files a").first.click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def masks_of(page: Any) -> str:
    """Return all masks of the session on view, as the server has them."""
    script = "async (id) => (await fetch(`/v1/sessions/${id}/masks`)).text()"
    text: str = page.evaluate(script, page.url.split("session=")[1])
    assert text.count("\n") == FRAMES
    return text


def test_two_browsers_see_the_same_session_and_a_closed_tab_stops_nothing(
    browser: Any, page: Any, address: str, video: Path
) -> None:
    upload(page, address, video)
    ask(page, "the red circle")
    painted(page, 0)
    other = browser.new_context().new_page()
    other.goto(page.url)
    expect(tracks(other)).to_have_count(1)
    other.context.close()  # in mid run

    for visitor in open_page(browser):
        visitor.goto(page.url)
        finished(visitor)
        visitor.get_by_role("button", name="Show the red circle").click()
        expect(page.get_by_role("button", name="Show the red circle")).to_have_attribute("aria-pressed", "false")
    finished(page)


def test_everything_can_be_done_by_keyboard(page: Any, address: str) -> None:
    sent: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda message: sent.append(str(message))))
    page.goto(address)
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#sentence")).to_be_focused()
    page.keyboard.type("the red circle")
    page.keyboard.press("Enter")
    painted(page, 0)
    page.keyboard.press("Escape")
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    go_to(page, 1)
    page.keyboard.press("c")
    expect(page.locator("#stage-marks .crosshair")).to_have_count(1)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+Enter")
    expect(page.locator(".event.correction")).to_contain_text("the red circle")
    page.keyboard.press("Escape")
    expect(page.locator("#stage-marks .crosshair")).to_have_count(0)
    page.keyboard.press("z")
    expect(page.locator(".event.correction")).to_have_count(0)
    page.keyboard.press("v")
    expect(page.get_by_role("button", name="Show the red circle")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("?")
    expect(page.locator("#keys-dialog")).to_be_visible()
    page.locator("#keys-enabled").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("v")  # single keys are commands no more
    page.keyboard.press("Home")
    on_frame(page, 0)
    assert len([message for message in sent if '"do":"show"' in message]) == 1


class Line:
    """The connection between a page and the server; a test can hold what the server sends.

    Args:
        page: The page, before it opens a session.
    """

    def __init__(self, page: Any) -> None:
        self.commands: list[dict[str, Any]] = []
        self._held: list[Any] | None = None
        page.route_web_socket(re.compile("/ws$"), self._connect)

    def _connect(self, socket: Any) -> None:
        server = socket.connect_to_server()

        def send(message: Any) -> None:
            if isinstance(message, str) and (command := json.loads(message))["do"] != "ack":
                self.commands.append(command)
            server.send(message)

        def receive(message: Any) -> None:
            if self._held is None:
                socket.send(message)
            else:
                self._held.append(message)

        self._socket = socket
        socket.on_message(send)
        server.on_message(receive)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold what the server sends, and pass it on at the end."""
        self._held = []
        yield
        messages, self._held = self._held, None
        for message in messages:
            self._socket.send(message)

    def sent(self, *names: str) -> list[dict[str, Any]]:
        """Return the commands of these names that the page has sent, without their numbers."""
        return [{k: v for k, v in each.items() if k != "n"} for each in self.commands if each["do"] in names]


@pytest.fixture
def line(page: Any) -> Line:
    return Line(page)


@pytest.fixture
def paused(page: Any, line: Line, address: str, video: Path) -> Iterator[Any]:
    """A page that is paused at the first frame, the only one with masks, of the red circle."""
    upload(page, address, video)
    page.fill("#sentence", "the red circle")
    page.click("#another")
    expect(tracks(page)).to_have_count(1)
    page.evaluate("refervosStudio.studio.session.do('step', { to: 0 })")
    painted(page, 0)
    page.keyboard.press("Escape")  # leaves the text field
    expect(page.locator("#status")).to_contain_text("Paused at frame 0;")
    line.commands.clear()
    yield page
    # Many tests have such a page; the session ends here, so that they stay below the limit.
    page.evaluate("fetch(`/v1/sessions/${refervosStudio.studio.session.id}`, { method: 'DELETE' })")


def press_at_once(page: Any, *keys: str) -> None:
    """Press keys one after another before anything else can happen in the page."""
    script = """(keys) => {
        for (const key of keys) {
            document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
        }
    }"""
    page.evaluate(script, list(keys))


def test_a_correction_before_the_masks_of_its_frame_waits_for_them(paused: Any, line: Line) -> None:
    with line.held():
        paused.keyboard.press("ArrowRight")
        on_frame(paused, 1)
        paused.keyboard.press("c")
        paused.keyboard.press("Enter")
        expect(paused.locator("#stage-marks .add")).to_have_count(1)
        expect(paused.locator("#undo")).to_be_enabled()
        expect(paused.locator(".event.correction")).to_have_count(0)
    expect(paused.locator(".event.correction")).to_contain_text("the red circle")
    expect(paused.locator("#stage-marks .add")).to_have_count(1)
    assert [command["frame"] for command in line.sent("correct")] == [1]
    paused.keyboard.press("z")
    expect(paused.locator("#stage-marks .add")).to_have_count(0)
    expect(paused.locator("#undo")).to_be_disabled()


def test_a_correction_that_waits_can_be_taken_back(paused: Any, line: Line) -> None:
    with line.held():
        paused.keyboard.press("ArrowRight")
        on_frame(paused, 1)
        press_at_once(paused, "c", "Enter", "z")
        expect(paused.locator("#undo")).to_be_disabled()
    painted(paused, 0)
    paused.keyboard.press("z")
    expect(paused.locator(".toast")).to_contain_text("There is no correction to undo.")
    assert line.sent("correct", "undo") == []


def test_a_correction_on_its_way_can_be_undone(paused: Any, line: Line) -> None:
    with line.held():
        press_at_once(paused, "c", "Enter")
        expect(paused.locator("#stage-marks .add")).to_have_count(1)
        press_at_once(paused, "z")
    expect(paused.locator("#undo")).to_be_disabled()
    expect(paused.locator("#stage-marks .add")).to_have_count(0)
    assert [command["do"] for command in line.sent("correct", "undo")] == ["correct", "undo"]


def test_a_correction_without_masks_to_come_says_so(paused: Any, line: Line) -> None:
    paused.keyboard.press("End")
    on_frame(paused, FRAMES - 1)
    press_at_once(paused, "c", "Enter")
    expect(paused.locator(".toast")).to_contain_text("This frame has no masks yet")
    expect(paused.locator("#stage-marks .add")).to_have_count(0)
    assert line.sent("correct") == []


def test_every_one_of_many_key_presses_counts(paused: Any, line: Line) -> None:
    press_at_once(paused, "ArrowRight", "ArrowRight", "ArrowRight")
    on_frame(paused, 3)
    painted(paused, 0)
    expect(paused.locator("#status")).to_contain_text("Paused at frame 3;")
    press_at_once(paused, "Home", "ArrowRight", "i", "o")
    on_frame(paused, 1)
    press_at_once(paused, "v", "v", "v")
    paused.evaluate("refervosStudio.studio.session.settled()")  # all commands have been answered
    eye = paused.get_by_role("button", name="Show the red circle")
    expect(eye).to_have_attribute("aria-pressed", "false")
    expect(paused.locator("#clear-range")).to_be_visible()
    assert [command["to"] for command in line.sent("step")] == [1, 2, 3]
    assert [(command["in"], command["out"]) for command in line.sent("range")] == [(1, FRAMES - 1), (1, 1)]
    assert [command["visible"] for command in line.sent("show")] == [False, True, False]


MISSED_FRAMES = """
const request = HTMLVideoElement.prototype.requestVideoFrameCallback;
HTMLVideoElement.prototype.requestVideoFrameCallback = function (callback) {
  return request.call(this, (...frame) => {
    if (window.missed) this.requestVideoFrameCallback(callback);
    else callback(...frame);
  });
};
"""
"""Leaves out callbacks of frames, as browsers do that are busy."""


def test_a_frame_is_reached_although_the_browser_does_not_report_it(page: Any, address: str, video: Path) -> None:
    page.add_init_script(MISSED_FRAMES)
    upload(page, address, video)
    on_frame(page, 0)
    page.evaluate("window.missed = true")
    go_to(page, 3)


def test_playing_that_has_not_begun_can_be_paused(paused: Any, line: Line) -> None:
    with line.held():
        press_at_once(paused, " ")
        expect(paused.get_by_role("button", name="Pause", exact=True)).to_be_visible()
        press_at_once(paused, " ")
        expect(paused.get_by_role("button", name="Play", exact=True)).to_be_visible()
    paused.evaluate("refervosStudio.studio.session.settled()")
    expect(paused.locator("#status")).to_contain_text("Paused at frame")
    assert [command["do"] for command in line.sent("play", "pause")] == ["play", "pause"]
    assert not paused.evaluate("refervosStudio.studio.view.playing")


def test_a_sentence_is_not_lost_while_the_one_before_is_on_its_way(page: Any, line: Line, address: str) -> None:
    page.goto(address)
    page.locator(".card").first.click()
    page.fill("#sentence", "the red circle")
    with line.held():
        page.click("#another")
        page.fill("#sentence", "the blue star")
        page.evaluate("document.querySelector('#ask').requestSubmit()")
        page.fill("#sentence", "the yellow square")
        page.keyboard.press("Escape")
    expect(tracks(page)).to_have_count(2)
    painted(page, 0, 1)
    expect(page.locator("#sentence")).to_have_value("the yellow square")
    assert [command["expression"] for command in line.sent("add")] == ["the red circle", "the blue star"]


def test_a_sentence_that_was_refused_is_in_the_field_again(page: Any, line: Line, address: str) -> None:
    page.goto(address)
    page.locator(".card").first.click()
    ask(page, "a " * 200)
    expect(page.locator(".toast")).to_contain_text("words")
    expect(page.locator("#sentence")).to_have_value(re.compile("^a a a"))
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()
    assert line.sent("play") == []


def test_the_crosshair_has_the_enter_key_until_another_button_is_reached(paused: Any, line: Line) -> None:
    paused.click("#forward")
    on_frame(paused, 1)
    painted(paused, 0)
    paused.keyboard.press("c")
    paused.keyboard.press("Enter")  # marks, and does not press the button again
    expect(paused.locator(".event.correction")).to_be_visible()
    assert [command["frame"] for command in line.sent("correct")] == [1]
    paused.keyboard.press("Tab")
    paused.keyboard.press("Enter")  # "One frame back"
    on_frame(paused, 0)
    assert len(line.sent("correct")) == 1


def test_a_webcam_is_segmented(page: Any, address: str) -> None:
    page.goto(address)
    page.click("#source-webcam")
    expect(page.locator("#stage-canvas")).to_have_attribute("data-frame", re.compile("^[1-9]"))  # before any sentence
    ask(page, "the green circle")
    painted(page, 0)
    first = int(page.locator("#stage-canvas").get_attribute("data-frame"))
    expect(page.locator("#stage-canvas")).not_to_have_attribute("data-frame", str(first))
    assert colour_at(page, 0.02, 0.02)[3] == 255  # the picture is painted on the canvas
    page.reload()  # the same tab goes on with its webcam
    painted(page, 0)
    expect(page.locator("#status")).to_contain_text("frames per second")


def record_and_export(page: Any, folder: Path) -> None:
    """Export a live source: without a recording the page says what is missing, with one there is a video."""
    page.keyboard.press("e")
    page.get_by_label("Video with the effect").check()
    page.click("#export-start")
    expect(page.locator("#export-status")).to_contain_text("press Record")
    forget_refused_requests(page)
    page.get_by_role("button", name="Close").click()
    record = page.get_by_role("button", name="Record")
    record.click()
    expect(record).to_have_attribute("aria-pressed", "true")
    first = int(page.locator("#stage-canvas").get_attribute("data-frame"))
    page.wait_for_function(
        "(first) => Number(document.querySelector('#stage-canvas').dataset.frame) > first + 1", arg=first
    )
    page.keyboard.press("r")
    expect(record).to_have_attribute("aria-pressed", "false")
    assert export(page, "Video with the effect", folder).stat().st_size > 1000
    page.get_by_role("button", name="Close").click()
    page.keyboard.press("e")
    page.get_by_text("Earlier exports").click()
    expect(page.locator("#export-earlier-list a")).to_have_text("overlay.mp4")
    page.get_by_role("button", name="Close").click()


def test_a_camera_goes_away_and_comes_back(page: Any, address: str, camera: Camera, tmp_path: Path) -> None:
    page.goto(address)
    page.click("#source-camera")
    page.get_by_label("Network addresses").fill(camera.url)
    page.get_by_label("What to look for").fill("the red circle")
    page.get_by_role("button", name="Connect").click()
    painted(page, 0)
    expect(page.get_by_label("Network addresses")).to_have_value("")  # it may contain a password
    page.get_by_label("When").select_option(label="the red circle")
    page.locator("#alert-form select[name=webhook]").select_option(label="http://127.0.0.1:9")
    page.get_by_role("button", name="Tell me").click()
    expect(page.locator("#alert-list")).to_contain_text("the red circle: above 50 % for 5 frames, posted")
    expect(page.locator(".event.alert").first).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name="Alerts so far").click()
    assert '"expression": "the red circle"' in Path(download.value.path()).read_text()
    page.get_by_role("button", name="Remove the alert").click()
    expect(page.locator("#alert-list li")).to_have_count(0)
    if MODULES.is_dir():
        check_accessibility(page)
    record_and_export(page, tmp_path)
    camera.unplug()
    try:
        expect(page.locator("#status")).to_contain_text("does not answer")
    finally:
        camera.plug_in()
    expect(page.locator("#status")).to_contain_text("frames per second")
    expect(page.locator(".event.outage").first).to_be_visible()


def test_the_page_that_was_asked_for_last_is_shown(page: Any, address: str, video: Path) -> None:
    upload(page, address, video)
    first = page.url
    last_request = page.evaluate("`/v1/videos/${refervosStudio.studio.session.state.video.id}`")
    page.goto(address)
    page.locator(".card").first.click()
    expect(page.locator("#studio")).to_be_visible()
    second = page.url
    held: list[Any] = []
    page.route(f"**/v1/sessions/{first.split('session=')[1]}", lambda route: held.append(route))
    go = "(url) => { history.pushState(null, '', url); dispatchEvent(new PopStateEvent('popstate')); }"
    with page.expect_request(f"**/v1/sessions/{first.split('session=')[1]}"):
        page.evaluate(go, first)
    page.evaluate(go, second)
    expect(page.locator("#video-name")).to_have_text("shapes.mp4")
    with page.expect_event("requestfinished", lambda request: request.url.endswith(last_request)):
        held[0].continue_()
    page.evaluate("fetch('/v1/limits').then((answer) => answer.text())")  # after which the first one would be shown
    expect(page.locator("#video-name")).to_have_text("shapes.mp4")


def test_an_export_is_cancelled_before_the_server_has_named_it(paused: Any) -> None:
    held: list[Any] = []

    def hold(route: Any) -> None:
        if route.request.method == "POST":
            held.append(route)
        else:
            route.continue_()

    paused.route("**/exports", hold)
    paused.keyboard.press("e")
    with paused.expect_request(lambda request: request.method == "POST" and "/exports" in request.url):
        paused.click("#export-start")
    paused.click("#export-cancel")
    expect(paused.locator("#export-status")).to_have_text("Cancelling")
    with paused.expect_request(lambda request: request.method == "DELETE" and "/v1/jobs/" in request.url):
        held[0].continue_()
    expect(paused.locator("#export-status")).to_have_text("Cancelled.")
    expect(paused.locator("#export-start")).to_be_enabled()


def test_problems_are_sentences(page: Any, address: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    page.goto(address)
    page.set_input_files("#file", broken)
    expect(page.locator("#start-problem")).to_contain_text(re.compile(r"\w.*\."))
    expect(page.locator("#drop")).to_be_visible()
    page.goto(f"{address}?session={'0' * 32}")
    expect(page.locator("#start-problem")).to_contain_text(re.compile(r"\w.*\."))
    forget_refused_requests(page)


ANSWER = """data: {"text": "It is "}

data: {"text": "the red circle", "track": 0, "colour": [255, 106, 0]}

data: {"text": " <b>only</b>."}

data: {"done": true, "unknown_words": ["zebra", "moves"]}

"""


EARLIER = {
    "question": "What moves?",
    "parts": [{"text": "It is ", "track": None, "colour": None}, {"text": "it", "track": 0, "colour": [255, 106, 0]}],
    "unknown_words": ["moves"],
    "problem": None,
}


def imitate_conversation(page: Any, earlier: list[dict[str, Any]]) -> None:
    """Imitate a model that answers questions, and the questions that were asked before."""
    models = [{"name": "miniature", "title": "", "closed_vocabulary": [], "conversation": True}]
    page.route("**/v1/models", lambda route: route.fulfill(json=models))

    def answer(route: Any) -> None:
        if route.request.method == "GET":
            route.fulfill(json=earlier)
        else:
            route.fulfill(body=ANSWER, content_type="text/event-stream")

    page.route("**/questions", answer)


def test_a_page_that_is_loaded_again_shows_the_conversation(page: Any, address: str, video: Path) -> None:
    earlier: list[dict[str, Any]] = []
    imitate_conversation(page, earlier)
    upload(page, address, video)
    expect(page.locator("#conversation")).to_be_visible()
    earlier += [EARLIER, {**EARLIER, "question": "And now?", "parts": [], "unknown_words": [], "problem": "It broke."}]
    page.reload()
    expect(page.locator(".question")).to_have_text(["What moves?", "And now?"])
    answers = ["It is itThe model does not know moves: this answer is a guess.", "It broke."]
    expect(page.locator(".answer")).to_have_text(answers)
    expect(page.locator(".answer .phrase")).to_have_css("border-bottom-color", "rgb(255, 106, 0)")
    ask_about(page, "What else?")
    expect(page.locator(".question")).to_have_text(["What moves?", "And now?", "What else?"])
    expect(page.locator(".answer").last).to_contain_text("It is the red circle")


def test_phrases_of_an_answer_have_the_colours_of_their_masks(page: Any, address: str, video: Path) -> None:
    # The answers of the server are imitated: that of a model would change with its weights.
    imitate_conversation(page, [])
    upload(page, address, video)
    ask_about(page, "What moves?")
    note = "The model does not know zebra, moves: this answer is a guess."
    expect(page.locator(".answer")).to_have_text(f"It is the red circle <b>only</b>.{note}")
    phrase = page.locator(".answer .phrase")
    expect(phrase).to_have_text("the red circle")
    expect(phrase).to_have_css("border-bottom-color", "rgb(255, 106, 0)")


@pytest.mark.slow
def test_the_conversation_model_of_the_package_answers_beside_the_video(browser: Any, tmp_path: Path) -> None:
    with running_studio(tmp_path / "server", "--model", "videoglamm-miniature") as address:
        for page in open_page(browser):
            upload(page, address, clip(tmp_path / "clip.mp4"))
            ask_about(page, "What is happening here?")
            phrases = page.locator(".answer .phrase")
            expect(phrases.first).to_be_visible()
            finished(page)  # the answer, and the masks of its phrases in every frame
            names = phrases.all_inner_texts()
            expect(tracks(page)).to_have_count(len(names))
            for number, name in enumerate(names):
                expect(tracks(page).nth(number)).to_contain_text(name)
            go_to(page, 1)
            expect(page.locator("#stage-canvas")).to_have_attribute("data-masks", re.compile(r"\d"))
            ask_about(page, "Is there a zebra?")
            expect(page.locator(".answer .hint")).to_contain_text("The model does not know zebra")
            ask_about(page, "What is happening here?")  # of a video that has been segmented, from the first frame on
            expect(page.locator(".answer")).to_have_count(3)
            finished(page)
            answers = page.locator(".answer").all_text_contents()
            page.reload()
            expect(page.locator(".answer")).to_have_text(answers)


@pytest.mark.slow
def test_a_recording_that_browsers_cannot_play_is_shown_frame_by_frame(page: Any, address: str, tmp_path: Path) -> None:
    upload(page, address, clip(tmp_path / "clip.avi", 6))
    expect(page.locator("#video")).to_be_hidden()
    ask(page, "the red circle")
    finished(page)
    go_to(page, 3)
    painted(page, 0)
    assert colour_at(page, 0.02, 0.02)[3] == 255  # the picture is painted on the canvas


@needs_npm_packages
@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
def test_axe_finds_nothing(browser: Any, address: str, scheme: str) -> None:
    for page in open_page(browser, color_scheme=scheme):
        page.goto(address)
        expect(page.locator(".card").first).to_be_visible()
        check_accessibility(page)
        page.locator(".card").first.click()
        ask(page, "the red circle")
        painted(page, 0)
        check_accessibility(page)
        page.keyboard.press("Escape")
        page.set_viewport_size({"width": 390, "height": 844})
        check_accessibility(page)
        if scheme == "light":
            page.set_viewport_size({"width": 1280, "height": 800})
            for button in ("#export", "#keys", "#copy-python", "#tracks button[aria-label^=Edit]"):
                page.click(button)
                expect(page.locator("dialog[open]")).to_be_visible()
                check_accessibility(page)
                page.keyboard.press("Escape")
            page.goto(address)
            for button in ("#source-camera", "#source-path"):
                page.click(button)
                expect(page.locator("dialog[open]")).to_be_visible()
                check_accessibility(page)
                page.keyboard.press("Escape")


def check_accessibility(page: Any) -> None:
    """Run axe-core on the page; its rules are those of WCAG 2.2 A and AA."""
    page.evaluate((MODULES / "axe-core" / "axe.min.js").read_text())
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("(tags) => axe.run({ runOnly: { type: 'tag', values: tags } })", rules)
    assert len(found["passes"]) > 20
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == []


@pytest.mark.slow
def test_a_wall_shows_several_cameras_with_one_sentence(page: Any, address: str, camera: Camera) -> None:
    page.goto(address)
    page.click("#source-camera")
    page.get_by_label("Network addresses").fill(f"{camera.url}\n{camera.url}?second")
    page.get_by_label("What to look for").fill("the red circle")
    page.get_by_role("button", name="Connect").click()
    tiles = page.locator("#tiles canvas")
    expect(tiles).to_have_count(2)
    for k in range(2):
        expect(tiles.nth(k)).to_have_attribute("aria-label", re.compile("the red circle: visible"))
    page.get_by_role("button", name="Set for all cameras").click()
    expect(page.locator("#wall-alerts li").first).to_contain_text("the red circle")
    page.get_by_label("Object to find in all cameras").fill("the yellow square")
    page.get_by_role("button", name="Look for it").click()
    for k in range(2):
        expect(tiles.nth(k)).to_have_attribute("aria-label", re.compile("the yellow square"))
    if MODULES.is_dir():
        check_accessibility(page)


LATE_MODELS = """
const fetched = window.fetch;
window.fetch = async (address, ...rest) => {
  if (String(address).includes("/v1/models")) await new Promise((resolve) => setTimeout(resolve, 700));
  return fetched(address, ...rest);
};
"""
"""Delays the list of models, so that a right token follows a wrong one before it has come."""


@pytest.mark.slow
def test_a_token_opens_the_page_and_does_not_stay_in_the_address(browser: Any, tmp_path: Path) -> None:
    token = "a-token-for-this-test-only"
    (tmp_path / "token").write_text(token)
    with running_studio(tmp_path / "server", "--token-file", str(tmp_path / "token")) as address:
        for page in open_page(browser):
            page.goto(address)  # as printed, with the token
            expect(page.locator(".card").first).to_be_visible()
            assert token not in page.url
            page.locator(".card").first.click()
            expect(page.locator("#stage-canvas")).to_have_attribute("data-frame", "0")  # the video element, too
        for page in open_page(browser):
            page.add_init_script(LATE_MODELS)
            page.goto(address.split("#")[0])
            page.fill("#token", "something-else-entirely")
            page.press("#token", "Enter")
            expect(page.locator("#token-problem")).to_contain_text("token")
            page.fill("#token", token)
            page.press("#token", "Enter")
            expect(page.locator(".card").first).to_be_visible()
            forget_refused_requests(page)
