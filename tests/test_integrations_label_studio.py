"""Label Studio: brush masks and rectangles as its SDK reads them, and the backend that it calls."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import refervos
from difficult_masks import EXPRESSIONS, HEIGHT, INDICES, TIMES, WIDTH, difficult_video, visible_masks
from refervos.errors import DataError
from refervos.integrations.label_studio.label_config import read_label_config
from refervos.integrations.label_studio.results import brush_results, brush_run_lengths, video_results
from refervos.integrations.run_lengths import Box
from refervos.segmentation import Segmentation
from refervos.video import Frame
from video_files import box_masks, numbered_frame, segmentation, write_video

EXAMPLE = Path(__file__).parents[1] / "examples" / "data" / "shapes.mp4"


def brush_config(*sentences: str) -> str:
    labels = "".join(f"<Label value='{sentence}'/>" for sentence in sentences)
    return f"<View><Image name='img' value='$image'/><BrushLabels name='tag' toName='img'>{labels}</BrushLabels></View>"


def video_config(*sentences: str, rate: str = "") -> str:
    labels = "".join(f"<Label value='{sentence}'/>" for sentence in sentences)
    return (
        f"<View><Labels name='names' toName='film'>{labels}</Labels>"
        f"<Video name='film' value='$video'{rate}/><VideoRectangle name='box' toName='film'/></View>"
    )


def decoded(run_lengths: list[int], height: int, width: int) -> np.ndarray:
    """Decode run lengths as the rle-pack format is defined."""
    bits = "".join(f"{byte:08b}" for byte in run_lengths)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        repeated = read(1)
        length = read(sizes[read(2)]) + 1
        values += [read(word)] * length if repeated else [read(word) for _ in range(length)]
    pixels = np.array(values).reshape(height, width, 4)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0] == 255


# Results


@pytest.mark.parametrize("overlapping", [False, True])
def test_brush_masks_are_equal_to_the_pixel(overlapping: bool) -> None:
    video = difficult_video(overlapping=overlapping)
    found = {}
    for frame, result in video:
        for brush in brush_results(result, from_name="tag", to_name="img"):
            assert (brush["original_width"], brush["original_height"]) == (WIDTH, HEIGHT)
            track = int(brush["id"].removeprefix("track-"))
            assert brush["value"]["brushlabels"] == [EXPRESSIONS[track]]
            assert brush["score"] == pytest.approx(0.9)
            found[frame.index, track] = decoded(brush["value"]["rle"], HEIGHT, WIDTH)
    expected = visible_masks(video)
    assert sorted(found) == sorted(expected)
    for key, mask in expected.items():
        np.testing.assert_array_equal(found[key], mask)


def test_long_runs_of_brush_masks_are_split() -> None:
    mask = np.zeros((300, 400), bool)  # 480,000 values, more than seven runs of 65,536
    mask[299, 399] = True
    np.testing.assert_array_equal(decoded(brush_run_lengths(mask), 300, 400), mask)


def test_the_sdk_of_label_studio_reads_the_masks_and_accepts_the_results() -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk needs NumPy 2.2")
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(brush_config("the ring and its shadow", "東京タワーの前を歩く人 🦊"))
    names = ("the ring and its shadow", "東京タワーの前を歩く人 🦊")
    for _, result in difficult_video(overlapping=True):
        kept = [k for k, expression in enumerate(result.expressions) if expression in names]
        result = Segmentation(
            result.frame_index,
            tuple(result.track_ids[k] for k in kept),
            tuple(result.expressions[k] for k in kept),
            result.masks[kept],
            result.presence[kept],
            result.switched[kept],
        )
        results = brush_results(result, from_name="tag", to_name="img")
        assert interface.validate_prediction({"model_version": "1", "score": 0.5, "result": results})
        for each in results:
            k = result.track_ids.index(int(each["id"].removeprefix("track-")))
            mask = brush.decode_rle(each["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)[..., 3] > 0
            np.testing.assert_array_equal(mask, result.masks[k])
            assert (
                each["value"]["rle"]
                == brush.mask2rle(result.masks[k].astype(np.uint8) * 255)[: len(each["value"]["rle"])]
            )


def test_the_sdk_of_label_studio_accepts_the_rectangles() -> None:
    pytest.importorskip("label_studio_sdk", reason="label-studio-sdk needs NumPy 2.2")
    from label_studio_sdk.label_interface import LabelInterface

    names = [text for text in EXPRESSIONS.values() if "<" not in text]
    video = [
        (frame, replace(result, expressions=(names[0],) * len(result.track_ids))) for frame, result in difficult_video()
    ]
    results = video_results(video, from_name="box", to_name="film")
    assert results
    interface = LabelInterface(video_config(*names))
    assert interface.validate_prediction({"model_version": "1", "score": 0.5, "result": results})
    results[0]["from_name"] = "something else"
    assert not interface.validate_prediction({"model_version": "1", "score": 0.5, "result": results})


def test_rectangles_have_the_boxes_and_times_of_the_frames() -> None:
    video = difficult_video()
    masks = visible_masks(video)
    results = video_results(video, frame_rate=100.0)
    assert [result["value"]["labels"] for result in results] == [[EXPRESSIONS[4]], [EXPRESSIONS[9]], [EXPRESSIONS[7]]]
    for result in results:
        track = int(result["id"].split("-")[1])
        sequence = result["value"]["sequence"]
        indices = [INDICES[TIMES.index(each["time"])] for each in sequence]
        assert indices == [index for index in INDICES if (index, track) in masks]
        assert [each["frame"] for each in sequence] == [round(each["time"] * 100) + 1 for each in sequence]
        for index, each in zip(indices, sequence, strict=True):
            box = Box.around(masks[index, track])
            corners = (
                each["x"] * WIDTH / 100,
                each["y"] * HEIGHT / 100,
                (each["x"] + each["width"]) * WIDTH / 100,
                (each["y"] + each["height"]) * HEIGHT / 100,
            )
            assert corners == pytest.approx((box.left, box.top, box.right, box.bottom))
        assert (result["value"]["framesCount"], result["value"]["duration"]) == (126, 1.26)


def test_rectangles_end_where_the_object_is_not_visible_or_was_dropped() -> None:
    seen = [True, True, False, True, True, True]
    pairs = []
    for k, here in enumerate(seen):
        masks = box_masks(64, 48, 2)
        masks[0] &= here
        ids = (0, 1) if k < 4 else (0,)
        pairs.append((Frame(k, numbered_frame(k)), segmentation(k, masks[: len(ids)], ids=ids)))
    first, second = video_results(pairs)
    assert [(each["frame"], each["enabled"]) for each in first["value"]["sequence"]] == [
        (1, True),
        (2, False),
        (4, True),
        (5, True),
        (6, True),
    ]
    assert [(each["frame"], each["enabled"]) for each in second["value"]["sequence"]] == [
        (1, True),
        (2, True),
        (3, True),
        (4, False),
    ]


def test_frames_with_one_number_in_label_studio_count_once() -> None:
    pairs = [(Frame(k, numbered_frame(k), k / 50), segmentation(k, box_masks(64, 48))) for k in range(6)]
    (result,) = video_results(pairs, frame_rate=25)
    assert [each["frame"] for each in result["value"]["sequence"]] == [1, 2, 3, 4]
    (result,) = video_results(pairs, frame_rate=50, duration=0.12)
    assert [each["frame"] for each in result["value"]["sequence"]] == [1, 2, 3, 4, 5, 6]
    assert (result["value"]["framesCount"], result["value"]["duration"]) == (6, 0.12)


# The labelling configuration


def test_the_labels_of_a_configuration_are_the_sentences() -> None:
    config = read_label_config(brush_config("the red circle", " the dog &amp; the cat ", "the red circle", ""))
    assert (config.kind, config.from_name, config.to_name, config.field) == ("image", "tag", "img", "image")
    assert config.sentences == ("the red circle", "the dog & the cat")
    config = read_label_config(video_config("the dog", rate=" frameRate='$fps'"))
    assert (config.kind, config.from_name, config.to_name, config.field) == ("video", "box", "film", "video")
    assert config.frame_rate({"fps": "12.5"}) == 12.5
    assert read_label_config(video_config("the dog")).frame_rate({}) == 24
    assert read_label_config(video_config("the dog", rate=" frameRate='30'")).frame_rate({}) == 30
    for value in ("fast", -1, None, "nan", [1]):
        with pytest.raises(DataError, match="must be a positive number"):
            config.frame_rate({"fps": value})


@pytest.mark.parametrize(
    "text",
    [
        "<View/>",
        "<View><Image name='img' value='$image'/></View>",
        brush_config(),
        brush_config("the dog").replace("toName='img'", "toName='other'"),
        brush_config("the dog").replace("$image", "fixed.png"),
        "<View><Text name='t' value='$t'/><Choices name='c' toName='t'><Choice value='x'/></Choices></View>",
    ],
)
def test_a_configuration_without_sentences_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="has no sentences to follow; give it <BrushLabels>"):
        read_label_config(text)


@pytest.mark.parametrize(
    "text",
    ["", "<View>", "\x00", "<!DOCTYPE a [<!ENTITY b 'c'>]><View>&b;</View>", "x" * 1_000_001],
)
def test_what_is_no_configuration_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="the labelling configuration"):
        read_label_config(text)


# The backend


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    (folder / "upload/1").mkdir(parents=True)
    with refervos.open_source(EXAMPLE, stop=1) as source:
        Image.fromarray(next(iter(source)).image).save(folder / "upload/1/rötes bild.png")
    write_video(folder / "upload/1/film.mp4", 5, fps=10)
    (folder.parent / "secret.png").write_bytes((folder / "upload/1/rötes bild.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def client(media: Path) -> Any:
    pytest.importorskip("fastapi", reason="the extra 'labelstudio' installs it")
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from refervos.integrations.label_studio.backend import label_studio_router

    app = FastAPI()
    app.include_router(
        label_studio_router(refervos.load("miniature", device="cpu"), media, version="tiny", max_frames=5),
        prefix="/ls",
    )
    return TestClient(app)


def ask(client: Any, config: str, *data: dict[str, Any]) -> Any:
    tasks = [{"id": k, "data": each} for k, each in enumerate(data)]
    return client.post("/ls/predict", json={"tasks": tasks, "label_config": config, "project": "1.2", "params": {}})


IMAGE = "/data/upload/1/r%C3%B6tes%20bild.png"


def test_the_backend_answers_the_calls_of_label_studio(client: Any) -> None:
    assert client.get("/ls/health").json() == {"status": "UP", "model_class": "Samwise"}
    setup = {"project": "1.2", "schema": brush_config("the red circle"), "extra_params": None}
    assert client.post("/ls/setup", json=setup).json() == {"model_version": "tiny"}
    assert client.post("/ls/setup", json={"project": "1.2"}).json() == {"model_version": "tiny"}
    assert client.post("/ls/webhook", json={"action": "ANNOTATION_CREATED"}).status_code == 201


@pytest.mark.parametrize(
    "address", [IMAGE, "http://localhost:8080" + IMAGE, "/data/local-files/?d=upload/1/r%C3%B6tes%20bild.png"]
)
def test_predictions_for_an_image_are_the_masks_of_a_session(client: Any, media: Path, address: str) -> None:
    answer = ask(client, brush_config("the red circle", "the blue star"), {"image": address})
    assert answer.status_code == 200
    (prediction,) = answer.json()["results"]
    assert prediction["model_version"] == "tiny"
    image = np.asarray(Image.open(media / "upload/1/rötes bild.png"))
    result = refervos.load("miniature", device="cpu").open(["the red circle", "the blue star"]).step(image)
    expected = {text: mask for text, mask in zip(result.expressions, result.masks, strict=True) if mask.any()}
    found = {each["value"]["brushlabels"][0]: decoded(each["value"]["rle"], 320, 480) for each in prediction["result"]}
    assert "the red circle" in expected
    assert sorted(found) == sorted(expected)
    for text, mask in expected.items():
        np.testing.assert_array_equal(found[text], mask)
    assert {(each["from_name"], each["to_name"]) for each in prediction["result"]} == {("tag", "img")}
    assert 0 < prediction["score"] <= 1


def test_predictions_for_a_video_are_rectangles(client: Any) -> None:
    data = {"video": "/data/upload/1/film.mp4", "fps": 10}
    answer = ask(client, video_config("the red square", rate=" frameRate='$fps'"), data, data)
    assert answer.status_code == 200
    first, second = answer.json()["results"]
    assert first == second  # each task has a session of its own
    for each in first["result"]:
        assert each["type"] == "videorectangle"
        assert {keyframe["frame"] for keyframe in each["value"]["sequence"]} <= {1, 2, 3, 4, 5}
    assert json.dumps(first)


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/1/none.png",
        "/data/../secret.png",
        "/data/%2e%2e/secret.png",
        "/data/local-files/?d=../secret.png",
        "/data/local-files/?d=/etc/hostname",
        "/data//etc/hostname",
        "/etc/hostname",
        "file:///etc/hostname",
        "https://example.com/picture.png",
        "s3://bucket/picture.png",
        "/data/upload/1",
        "/data/\x00",
        "http://[",
        "",
    ],
)
def test_nothing_outside_of_the_folder_of_media_is_read(client: Any, address: str) -> None:
    answer = ask(client, brush_config("the red circle"), {"image": address})
    assert answer.status_code == 422
    assert "is no file in the folder of media" in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "must have a list 'tasks' and a text 'label_config'"),
        ({"tasks": {}, "label_config": brush_config("a dog")}, "must have a list 'tasks'"),
        ({"tasks": [], "label_config": "<View/>"}, "has no sentences to follow"),
        ({"tasks": [5], "label_config": brush_config("a dog")}, "address of its image in data.image"),
        ({"tasks": [{"data": {"image": 5}}], "label_config": brush_config("a dog")}, "address of its image"),
        ({"tasks": [{"data": {"image": IMAGE}}], "label_config": brush_config("word " * 600)}, "600|words|tokens"),
        (
            {
                "tasks": [{"data": {"video": IMAGE}}],
                "label_config": video_config("the red square", rate=" frameRate='0'"),
            },
            "positive",
        ),
    ],
)
def test_bad_requests_get_one_sentence(client: Any, body: dict[str, Any], words: str) -> None:
    answer = client.post("/ls/predict", json=body)
    assert answer.status_code == 422
    assert re.search(words, answer.json()["detail"])


def test_a_configuration_is_checked_when_a_project_connects(client: Any) -> None:
    answer = client.post("/ls/setup", json={"schema": "<View/>"})
    assert answer.status_code == 422
    assert "has no sentences to follow" in answer.json()["detail"]
    assert client.post("/ls/setup", json={"schema": brush_config("word " * 600)}).status_code == 422


def test_a_video_that_is_too_long_is_refused(client: Any, media: Path) -> None:
    write_video(media / "upload/1/long.mp4", 6, fps=10)
    answer = ask(client, video_config("the red square"), {"video": "/data/upload/1/long.mp4"})
    assert answer.status_code == 422
    assert "has more than 5 frames" in answer.json()["detail"]


def test_a_second_prediction_at_the_same_time_is_told_to_wait(media: Path) -> None:
    from refervos.integrations.label_studio.backend import Backend, BusyError

    class Asking:
        """A model whose session asks the backend again."""

        def open(self, sentences: Any) -> Any:
            with pytest.raises(BusyError, match="another prediction is being computed"):
                backend.predict(request)
            return refervos.load("miniature", device="cpu").open(sentences)

    backend = Backend(Asking(), media, "tiny", 5)
    request = {"tasks": [{"data": {"image": IMAGE}}], "label_config": brush_config("the red circle")}
    assert len(backend.predict(request)["results"]) == 1
    assert len(backend.predict(request)["results"]) == 1  # free again


# In the server


def test_the_server_has_the_backend_behind_its_token(media: Path) -> None:
    pytest.importorskip("fastapi", reason="the extra 'studio' installs it")
    from fastapi.testclient import TestClient

    from refervos.serving.application import ServerSettings, create_app
    from refervos.serving.guard import AccessRules

    model = refervos.load("miniature", device="cpu")
    rules = AccessRules(token="sesame", hosts=frozenset({"testserver"}), origins=frozenset())
    with TestClient(create_app({"miniature": model}, ServerSettings(access=rules))) as without:
        assert without.get("/label-studio/health", headers={"Authorization": "Bearer sesame"}).status_code == 404
    settings = ServerSettings(access=rules, label_studio=media)
    with TestClient(create_app({"miniature": model}, settings)) as server:
        for path in ("/label-studio/health", "/label-studio/predict"):
            assert server.request("GET" if "health" in path else "POST", path).status_code == 401
        assert server.get("/label-studio/health", auth=("anyone", "guess")).status_code == 401
        assert server.get("/label-studio/health", headers={"Authorization": "Basic !"}).status_code == 401
        assert server.get("/label-studio/health", auth=("anyone", "sesame")).json()["status"] == "UP"
        body = {"tasks": [{"data": {"image": IMAGE}}], "label_config": brush_config("the red circle")}
        answer = server.post("/label-studio/predict", json=body, auth=("anyone", "sesame"))
        assert answer.json()["results"][0]["result"][0]["value"]["brushlabels"] == ["the red circle"]
