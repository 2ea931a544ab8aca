"""Sessions of the server: the masks of a plain session, commands ahead of frames, and going back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from refervos.serving.limits import Limits
from refervos.serving.mask_record import MaskRecord
from refervos.serving.outputs import recorded_segmentation
from refervos.serving.wire import TrackMask
from refervos.video import read_video
from served import drawn_frames, drawn_video, miniature, open_session, serving, upload, watching

RED, BLUE = "the red circle", "the blue box"
LAST = 11


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_video(tmp_path_factory.mktemp("videos"))


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with serving(tmp_path_factory.mktemp("server"), Limits(sessions=100)) as client:
        yield client


def recorded(client: TestClient, session: str) -> dict[int, dict[int, np.ndarray]]:
    """Masks by frame and track, as the server keeps them."""
    found: dict[int, dict[int, np.ndarray]] = {}
    for line in client.get(f"/v1/sessions/{session}/masks").text.splitlines():
        import json

        segmentation = recorded_segmentation(json.loads(line), {})
        found[segmentation.frame_index] = dict(zip(segmentation.track_ids, segmentation.masks, strict=True))
    return found


def test_a_recording_gives_the_masks_of_a_plain_session(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED, BLUE)
    with watching(client, session) as watcher:
        watcher.do("play")
        watcher.until_event("end")
        plain = miniature().open([RED, BLUE])
        assert watcher.indices == list(range(LAST + 1))  # none is skipped
        kept = recorded(client, session)
        for image, frame in zip(read_video(video), watcher.frames, strict=True):
            expected = plain.step(image).masks
            assert np.array_equal(frame.masks, expected)
            assert np.array_equal(np.stack(list(kept[frame.header["frame"]].values())), expected)
    state = client.get(f"/v1/sessions/{session}").json()
    assert state["frame"] == LAST
    assert state["computed"] == [[0, LAST]]
    assert [track["expression"] for track in state["tracks"]] == [RED, BLUE]
    assert len(state["tracks"][0]["presence"]) == LAST + 1
    assert state["estimate"]["fps"] > 0


def test_sentences_are_added_renamed_hidden_and_dropped_while_it_runs(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        watcher.do("step", frames=3)
        watcher.until_frame(2)
        track = watcher.do("add", expression=BLUE)["track"]
        watcher.do("rename", track=track, label="box")
        watcher.do("show", track=track, visible=False)
        watcher.do("step", frames=2)
        watcher.until_frame(4)
        assert [len(frame.header["tracks"]) for frame in watcher.frames] == [1, 1, 1, 2, 2]
        watcher.do("drop", track=0)
        watcher.do("set_prompt", track=track, expression="the blue square")
        watcher.do("step")
        watcher.until_frame(5)
        assert [each["id"] for each in watcher.frames[-1].header["tracks"]] == [track]
        tracks = client.get(f"/v1/sessions/{session}").json()["tracks"]
        assert [(each["label"], each["expression"], each["visible"]) for each in tracks] == [
            ("box", "the blue square", False)
        ]
        assert all(0 not in masks for masks in recorded(client, session).values())
        assert watcher.do("add", expression=RED)["track"] == 2  # numbers are not reused


def corrected_by_hand(video: Path, frame: int, **prompt: Any) -> list[np.ndarray]:
    """Masks of a plain session that was corrected in a frame."""
    plain = miniature().open([RED])
    masks = []
    for k, image in enumerate(read_video(video)):
        masks.append(plain.step(image).masks[0])
        if k == frame:
            masks[-1] = plain.correct(0, **prompt).masks[0]
    return masks


def test_a_correction_of_an_earlier_frame_goes_back_and_on_again(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        watcher.do("play")
        watcher.until_event("end")
        before = recorded(client, session)
        watcher.frames.clear()
        watcher.do("correct", track=0, frame=4, points=[[85, 70, 1], [30, 40, 0]])
        watcher.until_frame(LAST)
        expected = corrected_by_hand(video, 4, points=[[85, 70], [30, 40]], labels=[1, 0])
        after = recorded(client, session)
        assert not np.array_equal(after[4][0], before[4][0])
        for k in range(LAST + 1):
            assert np.array_equal(after[k][0], expected[k]), k
        events = client.get(f"/v1/sessions/{session}").json()["events"]
        assert [(event["frame"], event["kind"]) for event in events if event["kind"] == "correction"] == [
            (4, "correction")
        ]

        watcher.frames.clear()
        watcher.do("undo", track=0)
        watcher.until_frame(LAST)
        undone = recorded(client, session)
        assert all(np.array_equal(undone[k][0], before[k][0]) for k in range(LAST + 1))
        assert watcher.reply("undo", track=0)["problem"]["code"] == "prompt"


@pytest.mark.parametrize("frame", [LAST, 4])
def test_a_session_at_its_end_is_there_again_after_a_correction(client: TestClient, video: Path, frame: int) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        watcher.do("play")
        watcher.until_event("end")
        watcher.do("correct", track=0, frame=frame, points=[[85, 70, 1]])
        if frame < LAST:
            watcher.until_event("end")
        assert client.get(f"/v1/sessions/{session}").json()["ended"]
        watcher.do("seek", frame=4)
        assert not client.get(f"/v1/sessions/{session}").json()["ended"]


def test_a_later_correction_is_repeated_when_the_session_goes_back_before_it(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        watcher.do("step", frames=8)
        watcher.until_frame(7)
        watcher.do("correct", track=0, frame=7, box=[60, 55, 90, 85])
        track = watcher.do("add", expression=BLUE)["track"]
        watcher.do("step", frames=2)
        watcher.until_frame(9)
        watcher.do("correct", track=0, frame=2, points=[[26, 40, 1]])
        watcher.until_frame(9)
        plain = miniature().open([RED])
        kept = recorded(client, session)
        for k, image in enumerate(read_video(video)[:10]):
            masks = plain.step(image).masks
            if k == 2:
                masks = plain.correct(0, points=[[26, 40]]).masks
            if k == 7:
                masks = plain.correct(0, box=[60, 55, 90, 85]).masks
                plain.add(BLUE)
            assert np.array_equal(np.stack(list(kept[k].values())), masks), k
        assert set(kept[8]) == {0, track}
        assert set(kept[7]) == {0}


def test_an_undo_in_the_frame_of_the_correction_restores_the_session(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        watcher.do("step", frames=3)
        watcher.until_frame(2)
        before = watcher.frames[-1].masks
        watcher.do("correct", track=0, frame=2, points=[[100, 70, 1]])
        assert not np.array_equal(watcher.frames[-1].masks, before)
        watcher.do("undo", track=0)
        assert np.array_equal(watcher.frames[-1].masks, before)


def test_seeking_back_forgets_nothing_and_seeking_ahead_skips(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        watcher.do("step", frames=4)
        watcher.until_frame(3)
        watcher.do("seek", frame=1)
        assert client.get(f"/v1/sessions/{session}").json()["frame"] == 1
        watcher.do("step")
        watcher.until_frame(2)
        watcher.do("seek", frame=8)
        watcher.frames.clear()
        watcher.do("step")
        watcher.until_frame(8)
        state = client.get(f"/v1/sessions/{session}").json()
        assert state["computed"] == [[0, 3], [8, 8]]


def test_only_the_range_is_segmented(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        watcher.do("range", **{"in": 3, "out": 6})
        watcher.do("play")
        watcher.until_event("end")
        assert watcher.indices == [3, 4, 5, 6]
        assert watcher.reply("range", **{"in": 6, "out": 3})["problem"]["code"] == "video"


def test_a_range_that_is_extended_goes_on_without_a_hole(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        watcher.do("range", **{"in": 0, "out": 3})
        watcher.do("play")
        watcher.until_event("end")
        watcher.do("play")  # nothing is left
        watcher.until_event("end")
        watcher.do("range", **{"in": 0, "out": 5})
        watcher.do("play")
        watcher.until_event("end")
        assert watcher.indices == [0, 1, 2, 3, 4, 5]


def test_a_frame_that_was_not_segmented_cannot_be_corrected(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        for frame in (0, 5):
            problem = watcher.reply("correct", track=0, frame=frame, points=[[1, 1, 1]])["problem"]
            assert problem["status"] == 422
            assert "has not been segmented yet" in problem["detail"]
        watcher.do("step")
        watcher.until_frame(0)
        problem = watcher.reply("correct", track=0, frame=0, points=[[1000, 1, 1]])["problem"]
        assert "1000" in problem["detail"]
        watcher.do("step")
        watcher.until_frame(1)


def test_a_viewer_gets_two_frames_until_it_acknowledges_and_a_recording_waits(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session, acknowledges=False) as watcher:
        watcher.do("play")
        watcher.until(lambda w: len(w.frames) == 2)
        for _ in range(5):
            watcher.reply("rename", track=0, label="red")  # a round trip through the session's queue
        assert watcher.indices == [0, 1]
        watcher.acknowledges = True
        watcher.socket.send_text('{"do": "ack", "frame": 1}')
        watcher.until_event("end")
        assert watcher.indices == list(range(LAST + 1))


def test_two_viewers_see_the_same_and_one_that_leaves_does_not_stop_the_other(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as first:
        with watching(client, session) as second:
            first.do("step", frames=2)
            first.until_frame(1)
            second.until_frame(1)
            assert all(np.array_equal(a.masks, b.masks) for a, b in zip(first.frames, second.frames, strict=True))
            second.do("add", expression=BLUE)
            first.until(lambda w: any(len(e.get("tracks", ())) == 2 for e in w.events))
            second.acknowledges = False  # closed in mid-run
            second.do("play")
        first.until_event("end")
        assert first.indices == list(range(LAST + 1))


def test_a_session_survives_a_closed_tab(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session, acknowledges=False) as watcher:
        watcher.do("play")
    with watching(client, session) as watcher:
        watcher.until(lambda w: any(e.get("event") == "end" or e.get("ended") for e in w.events))
    assert client.get(f"/v1/sessions/{session}").json()["computed"] == [[0, LAST]]


def test_the_state_says_where_a_command_was_wrong(client: TestClient, video: Path) -> None:
    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        assert watcher.reply("drop", track=7)["problem"]["detail"] == "there is no track 7; the tracks are [0]."
        assert watcher.reply("add", expression=" ".join(["a"] * 65))["problem"]["code"] == "prompt"
        assert watcher.reply("dance")["problem"]["code"] == "malformed"
        watcher.do("step")
        watcher.until_frame(0)


def test_a_webcam_sends_jpeg_and_gets_masks_of_the_newest_frame(client: TestClient) -> None:
    import io
    import struct

    from PIL import Image

    answer = client.post("/v1/sessions", json={"source": {"webcam": True}, "expressions": [RED]})
    with watching(client, answer.json()["id"]) as watcher:
        watcher.do("play")
        for k, image in enumerate(drawn_frames(3)):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "JPEG")
            watcher.socket.send_bytes(struct.pack("<d", 1000 + 40 * k) + content.getvalue())
            watcher.until_frame(k)
        header = watcher.frames[-1].header
        assert (header["w"], header["h"]) == (128, 96)
        assert header["time"] == pytest.approx(0.08)
        assert Image.open(io.BytesIO(watcher.frames[-1].jpeg)).size == (128, 96)
        watcher.socket.send_bytes(b"12345678not a picture")
        watcher.until(lambda w: any("problem" in each for each in w.events))
        assert "JPEG" in watcher.events[-1]["problem"]["detail"]
        assert watcher.reply("seek", frame=0)["problem"]["status"] == 422


def test_the_oldest_masks_of_a_live_source_are_forgotten(tmp_path: Path) -> None:
    record = MaskRecord(tmp_path / "masks.jsonl", 3)
    for frame in (0, 2, 3, 7, 9):
        record.append(frame, None, (4, 4), [TrackMask(0, 0.5, np.ones((4, 4), bool))])
    record.append(9, None, (4, 4), [TrackMask(0, 0.25, np.ones((4, 4), bool))])
    record.close()
    for each in (record, MaskRecord(tmp_path / "masks.jsonl", 3)):
        assert each.frames == [3, 7, 9]
        assert each.presence(0) == [(3, 0.5), (7, 0.5), (9, 0.25)]
    assert each.read(2) is None
    assert each.read(9) is not None
    each.close()


def test_a_refused_sentence_opens_no_session(client: TestClient, video: Path) -> None:
    known = len(client.app.state.server.sessions.open_sessions)  # type: ignore[attr-defined]
    content = {"source": {"video": upload(client, video)}, "expressions": [RED, " "]}
    assert client.post("/v1/sessions", json=content).status_code == 422
    assert len(client.app.state.server.sessions.open_sessions) == known  # type: ignore[attr-defined]


def test_a_preview_shows_effects_of_a_computed_frame(client: TestClient, video: Path) -> None:
    import io
    import json

    from PIL import Image

    session = open_session(client, video, RED)
    with watching(client, session) as watcher:
        watcher.do("step")
        watcher.until_frame(0)
        mask = watcher.frames[0].masks[0]
    effects = json.dumps([{"kind": "cutout", "background": [0, 255, 0]}])
    answer = client.get(f"/v1/sessions/{session}/frames/0.jpg", params={"effects": effects})
    shown = np.asarray(Image.open(io.BytesIO(answer.content))).astype(int)
    assert np.abs(shown[~mask] - (0, 255, 0)).mean() < 25
    assert client.get(f"/v1/sessions/{session}/frames/1.jpg").status_code == 404
    assert client.get(f"/v1/sessions/{session}/frames/0.jpg", params={"effects": "[1]"}).status_code == 422
