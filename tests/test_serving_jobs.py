"""Jobs and exports: formats that read back to the same masks, ranges, effects, progress and cancellation."""

from __future__ import annotations

import csv
import io
import json
import shutil
import struct
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from refervos.serving.jobs import Job, JobQueue, Purpose
from refervos.serving.limits import Limits
from refervos.serving.mask_record import decode_counts
from refervos.serving.problems import Problem
from refervos.serving.webcam import PushedFeed
from refervos.video import open_source, read_video
from served import Watcher, drawn_frames, drawn_video, miniature, open_session, serving, upload, watching

RED, BLUE = "the red circle", "the blue box"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_video(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("server")) as client:
        yield client


@pytest.fixture(scope="module")
def session(client: TestClient, video: Path) -> str:
    """A session with masks of frames 0 to 7."""
    session = open_session(client, video, RED, BLUE)
    with watching(client, session) as watcher:
        watcher.do("step", frames=8)
        watcher.until_frame(7)
        watcher.do("rename", track=1, label="=box")
        watcher.do("correct", track=0, frame=7, points=[[41, 40, 1]])
    return session


def finished(client: TestClient, job: str) -> dict[str, Any]:
    """Follow a job by its event stream to its end."""
    states = [
        json.loads(line.removeprefix("data: "))
        for line in client.get(f"/v1/jobs/{job}/events").text.splitlines()
        if line.startswith("data: ")
    ]
    assert [state["done"] for state in states] == sorted(state["done"] for state in states)
    last: dict[str, Any] = states[-1]
    return last


def exported(client: TestClient, session: str, **request: Any) -> bytes:
    answer = client.post(f"/v1/sessions/{session}/exports", json=request)
    assert answer.status_code == 202, answer.text
    state = finished(client, answer.json()["job"])
    assert state["status"] == "done", state
    (name,) = state["files"]
    return client.get(f"/v1/jobs/{state['id']}/files/{name}").content


def masks_of(client: TestClient, session: str) -> dict[int, dict[int, np.ndarray]]:
    found = {}
    for text in client.get(f"/v1/sessions/{session}/masks").text.splitlines():
        line = json.loads(text)
        found[line["frame"]] = {t["id"]: decode_counts(t["counts"], *line["size"]) for t in line["tracks"]}
    return found


def test_run_lengths_read_back_to_the_same_masks(client: TestClient, session: str) -> None:
    lines = [json.loads(line) for line in exported(client, session, format="rle", range=[2, 5]).splitlines()]
    assert sorted({line["frame"] for line in lines}) == [2, 3, 4, 5]
    masks = masks_of(client, session)
    for line in lines:
        assert np.array_equal(decode_counts(line["counts"], *line["size"]), masks[line["frame"]][line["track"]])
    assert {line["expression"] for line in lines} == {RED, "=box"}


def test_pictures_come_as_a_zip(client: TestClient, session: str) -> None:
    masks = masks_of(client, session)
    with zipfile.ZipFile(io.BytesIO(exported(client, session, format="png", tracks=[0], range=[0, 3]))) as archive:
        names = sorted(archive.namelist())
        assert len(names) == 4
        for k, name in enumerate(names):
            assert np.array_equal(np.asarray(Image.open(archive.open(name))) > 0, masks[k][0])
    with zipfile.ZipFile(io.BytesIO(exported(client, session, format="cutout", range=[0, 1]))) as archive:
        first = np.asarray(Image.open(archive.open(sorted(archive.namelist())[0])))
        assert np.array_equal(first[..., 3] == 255, masks[0][0])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("ytvis", "annotations.json"),
        ("ytvos", "train/meta.json"),
        ("coco", "annotations/instances_all.json"),
        ("cvat", "annotations.xml"),
        ("labelme", "labels.txt"),
        ("anylabeling", "labels.txt"),
    ],
)
def test_exports_for_other_tools_come_as_a_zip(client: TestClient, session: str, kind: str, name: str) -> None:
    with zipfile.ZipFile(io.BytesIO(exported(client, session, format=kind, range=[0, 3]))) as archive:
        assert b"the red circle" in archive.read(name)


def test_the_overlay_has_the_effects(client: TestClient, session: str, video: Path, tmp_path: Path) -> None:
    effects = [{"kind": "cutout", "background": [0, 255, 0]}]
    path = tmp_path / "overlay.mp4"
    path.write_bytes(exported(client, session, format="overlay", effects=effects, tracks=[0]))
    frames = read_video(path)
    assert len(frames) == 8  # those with masks
    masks = masks_of(client, session)
    for k, frame in enumerate(frames.astype(int)):
        outside = ~masks[k][0]
        assert np.abs(frame[outside] - (0, 255, 0)).mean() < 12
    path.write_bytes(exported(client, session, format="overlay", range=[0, 2]))
    assert len(read_video(path)) == 3


def test_the_table_of_events_is_safe_for_spreadsheets(client: TestClient, session: str) -> None:
    rows = list(csv.DictReader(io.StringIO(exported(client, session, format="events").decode())))
    assert {"frame", "time", "event", "track", "expression"} == set(rows[0])
    assert ("7", "correction", "0") in [(row["frame"], row["event"], row["track"]) for row in rows]
    assert not any(row["expression"].startswith("=") for row in rows)


def test_a_job_segments_a_whole_video_like_a_plain_session(client: TestClient, video: Path) -> None:
    request = {"video": upload(client, video), "expressions": [RED, BLUE], "outputs": ["overlay", "rle"]}
    answer = client.post("/v1/jobs", json=request)
    assert answer.status_code == 202, answer.text
    state = finished(client, answer.json()["job"])
    assert (state["status"], state["done"], state["total"]) == ("done", 12, 12)
    assert state["files"] == ["overlay.mp4", "masks.jsonl"]
    text = client.get(f"/v1/jobs/{state['id']}/files/masks.jsonl").text
    lines = [json.loads(line) for line in text.splitlines()]
    plain = miniature().open([RED, BLUE])
    for k, segmentation in enumerate(plain.stream(read_video(video))):
        for line in lines[2 * k : 2 * k + 2]:
            expected = segmentation.masks[line["track"]]
            assert np.array_equal(decode_counts(line["counts"], *line["size"]), expected)
    assert client.delete(f"/v1/jobs/{state['id']}").status_code == 204
    assert client.get(f"/v1/jobs/{state['id']}").status_code == 404


def test_what_cannot_be_written_is_said(client: TestClient, session: str) -> None:
    unknown = client.post(f"/v1/sessions/{session}/exports", json={"format": "rle", "tracks": [9]})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown-track")
    live = client.post("/v1/sessions", json={"source": {"webcam": True}}).json()["id"]
    nothing = client.post(f"/v1/sessions/{live}/exports", json={"format": "rle"})
    assert (nothing.status_code, nothing.json()["code"]) == (409, "not-recorded")
    wrong = {"format": "overlay", "effects": [{"kind": "blur", "strength": 3}]}
    assert client.post(f"/v1/sessions/{session}/exports", json=wrong).status_code == 422
    assert client.get("/v1/jobs/none/events").status_code == 404


def test_a_live_session_exports_its_masks_and_the_pictures_that_were_recorded(
    client: TestClient, tmp_path: Path
) -> None:
    live = client.post("/v1/sessions", json={"source": {"webcam": True}, "expressions": [RED]}).json()["id"]
    images = drawn_frames(6)
    with watching(client, live) as watcher:
        watcher.do("play")
        for k, image in enumerate(images):
            if k in (2, 5):
                watcher.do("record", on=k == 2)
            push_picture(watcher, image, 1000 + 100 * k)
            watcher.until_frame(k)
    state = client.get(f"/v1/sessions/{live}").json()
    assert (state["recording"], state["recorded"]) == (False, [[2, 4]])

    lines = [json.loads(line) for line in exported(client, live, format="rle").splitlines()]
    assert [line["frame"] for line in lines] == list(range(6))
    masks = masks_of(client, live)
    assert all(np.array_equal(decode_counts(line["counts"], *line["size"]), masks[line["frame"]][0]) for line in lines)

    path = tmp_path / "overlay.mp4"
    path.write_bytes(exported(client, live, format="overlay", effects=[{"kind": "outline"}]))
    with open_source(str(path)) as source:
        frames = list(source)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2], abs=1e-3)
    for frame, image in zip(frames, images[2:5], strict=True):
        assert np.abs(frame.image.astype(int) - image).mean() < 10
    path.write_bytes(exported(client, live, format="overlay", range=[3, 9]))
    assert len(read_video(path)) == 2

    refused = client.post(f"/v1/sessions/{live}/exports", json={"format": "cutout", "range": [0, 1]})
    assert (refused.status_code, refused.json()["code"]) == (409, "not-recorded")
    assert "Record" in refused.json()["detail"]


def push_picture(watcher: Watcher, image: np.ndarray, milliseconds: float) -> None:
    """Send a frame as a browser's webcam does."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=95)
    watcher.socket.send_bytes(struct.pack("<d", milliseconds) + content.getvalue())


def test_recording_stops_at_its_limit_and_only_live_sources_are_recorded(tmp_path: Path, video: Path) -> None:
    with serving(tmp_path, Limits(recording_bytes=3000)) as client:
        live = client.post("/v1/sessions", json={"source": {"webcam": True}, "expressions": [RED]}).json()["id"]
        with watching(client, live) as watcher:
            watcher.do("record", on=True)
            watcher.do("play")
            for k, image in enumerate(drawn_frames(4)):
                push_picture(watcher, image, 1000 + 100 * k)
                watcher.until_frame(k)
            problems = [event["problem"]["code"] for event in watcher.events if "problem" in event]
        assert problems == ["recording-full"]
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.jpg")) <= 3000
        assert not client.get(f"/v1/sessions/{live}").json()["recording"]
        with watching(client, open_session(client, video, RED)) as watcher:
            assert watcher.reply("record", on=True)["problem"]["code"] == "video"


def test_a_webcam_that_is_opened_again_is_numbered_on(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        live = client.post("/v1/sessions", json={"source": {"webcam": True}, "expressions": [RED]}).json()["id"]
        with watching(client, live) as watcher:
            watcher.do("play")
            for k, image in enumerate(drawn_frames(2)):
                push_picture(watcher, image, 1000 + 100 * k)
                watcher.until_frame(k)
    with serving(tmp_path) as client:
        with watching(client, live) as watcher:
            watcher.do("play")
            push_picture(watcher, drawn_frames(1)[0], 1000)
            watcher.until(lambda w: bool(w.frames))
        lines = [json.loads(line) for line in client.get(f"/v1/sessions/{live}/masks").text.splitlines()]
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert lines[0]["time"] < lines[1]["time"] < lines[2]["time"]


def test_only_the_viewer_that_sends_the_frames_can_be_lost(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        live = client.post("/v1/sessions", json={"source": {"webcam": True}, "expressions": [RED]}).json()["id"]
        feed = client.app.state.server.sessions.get(live).feed  # type: ignore[attr-defined]
        with watching(client, live) as watcher:
            watcher.do("play")
            push_picture(watcher, drawn_frames(1)[0], 1000)
            watcher.until_frame(0)
            with watching(client, live) as other:
                other.do("rename", track=0, label="red")
            assert feed.outages == 0
        assert feed.outages == 1


def test_the_times_of_a_webcam_ascend_even_if_its_browser_counts_anew(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(drawn_frames(1)[0]).save(content, "JPEG")
    feed = PushedFeed(Limits(), lambda: None)
    times: list[float] = []
    clocks = [5000.0, 5040.0, 10.0, 50.0, float("nan"), 60.0, 1e300, 70.0, -5.0]
    for k, milliseconds in enumerate(clocks):
        if k == 2:
            feed.disconnected()  # the page is loaded again
        feed.push(struct.pack("<d", milliseconds) + content.getvalue())
        frame = feed.take()
        assert frame is not None
        assert frame.time is not None
        assert frame.after_gap == (k == 2)
        times.append(frame.time)
    assert times[:2] == pytest.approx([0, 0.04])
    assert times[3] - times[2] == pytest.approx(0.04)
    assert times == sorted(times)
    assert times[-1] < 10


def test_jobs_and_their_results_are_listed_again_after_a_restart(tmp_path: Path, video: Path) -> None:
    with serving(tmp_path) as client:
        session = open_session(client, video, RED)
        with watching(client, session) as watcher:
            watcher.do("step", frames=2)
            watcher.until_frame(1)
        first = exported(client, session, format="rle")
        exported(client, session, format="events")
        request = {"video": upload(client, video), "expressions": [RED], "outputs": ["rle"], "range": [0, 1]}
        whole = finished(client, client.post("/v1/jobs", json=request).json()["job"])
        before = client.get(f"/v1/sessions/{session}/exports").json()
        assert [job["outputs"] for job in before] == [["events"], ["rle"]]
    with serving(tmp_path) as client:
        assert client.get(f"/v1/sessions/{session}/exports").json() == before
        assert client.get(f"/v1/videos/{request['video']}/jobs").json() == [whole]
        assert client.get(f"/v1/jobs/{before[1]['id']}/files/masks.jsonl").content == first
        assert client.delete(f"/v1/jobs/{whole['id']}").status_code == 204
        assert client.get(f"/v1/videos/{request['video']}/jobs").json() == []
    with serving(tmp_path) as client:
        assert client.get(f"/v1/jobs/{whole['id']}").status_code == 404


def test_jobs_that_a_restart_interrupted_say_so_and_leave_no_files(tmp_path: Path) -> None:
    folder, begun = tmp_path / "jobs", threading.Event()

    def work(job: Job) -> list[Path]:
        (job.folder / "part").write_bytes(b"x")
        begun.set()
        while True:
            threading.Event().wait(0.01)
            job.advance()

    queue = JobQueue(folder, Limits())
    names = [queue.submit(work, 5, Purpose(video="v", outputs=("rle",))).id for _ in range(2)]
    assert begun.wait(30)
    killed = tmp_path / "killed"
    shutil.copytree(folder, killed)  # as kill -9 leaves it
    queue.close()
    (killed / "damaged.json").write_text("{")
    (folder / "stray").mkdir()
    for each in (folder, killed):
        queue = JobQueue(each, Limits())
        assert {job.id for job in queue.of(video="v")} == set(names)
        for name in names:
            state = queue.get(name).describe()
            assert (state["status"], state["problem"]["code"], state["files"]) == ("interrupted", "interrupted", [])
        assert {path.name for path in each.iterdir()} == {f"{name}.json" for name in names}
        queue.remove(names[0])
        queue.close()
        assert {path.name for path in each.iterdir()} == {f"{names[1]}.json"}


def run_until(queue: JobQueue, job: Job) -> None:
    while not job.over:
        threading.Event().wait(0.01)  # bounded by the timeout of the tests


def test_a_job_is_cancelled_between_two_frames_and_leaves_nothing(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path / "jobs", Limits(jobs=2))
    begun, go = threading.Event(), threading.Event()

    def work(job: Job) -> list[Path]:
        (job.folder / "part").write_bytes(b"x")
        begun.set()
        assert go.wait(30)
        job.advance()
        raise AssertionError("it goes on after it was cancelled")

    job = queue.submit(work)
    assert begun.wait(30)
    waiting = [queue.submit(work) for _ in range(2)]
    with pytest.raises(Problem, match="2 jobs wait"):
        queue.submit(work)
    queue.remove(waiting[0].id)
    assert waiting[0].status == "cancelled"
    queue.remove(waiting[1].id)
    queue.remove(job.id)
    go.set()
    run_until(queue, job)
    assert job.status == "cancelled"
    queue.close()
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_failed_job_says_why_and_the_next_one_runs(tmp_path: Path) -> None:
    queue = JobQueue(tmp_path / "jobs", Limits())

    def fail(job: Job) -> list[Path]:
        raise RuntimeError("secret")

    failed = queue.submit(fail)
    run_until(queue, failed)
    assert failed.describe()["problem"]["code"] == "internal"
    assert "secret" not in json.dumps(failed.describe())
    done = queue.submit(lambda job: [])
    run_until(queue, done)
    assert done.status == "done"
    queue.close()
