"""The Gradio example of contrib/space, with the real Gradio where it is installed."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path
from typing import Any

import av
import pytest

import refervos

gradio = pytest.importorskip("gradio", reason="Gradio has 50 packages: pip install 'gradio>=6,<7' to run these tests")

ROOT = Path(__file__).parents[1]
SPACE = ROOT / "contrib" / "space"
VIDEO = ROOT / "examples" / "data" / "shapes.mp4"


@pytest.fixture(scope="module")
def app() -> Any:
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model() -> Any:
    return refervos.load("miniature", device="cpu")


def test_a_video_is_segmented_and_its_files_are_deleted(app: Any, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "MOST_FRAMES", 12)
    run = app.segment_video(model, str(VIDEO), "the red circle\n\n the blue star ")
    overlay, masks, rows = next(run)
    with av.open(overlay) as container:
        assert sum(1 for _ in container.decode(video=0)) == 12
    lines = [json.loads(line) for line in Path(masks).read_text().splitlines()]
    assert [line["frame"] for line in lines[::2]] == list(range(12))
    assert rows == [["the red circle", "12 of 12"], ["the blue star", "0 of 12"]]
    assert list(run) == []
    assert not Path(overlay).exists()


@pytest.mark.parametrize(("video", "text"), [(None, "a dog"), (str(VIDEO), " \n")])
def test_missing_input_is_one_sentence(app: Any, model: Any, video: str | None, text: str) -> None:
    with pytest.raises(gradio.Error, match="Upload a video and write at least one sentence"):
        next(app.segment_video(model, video, text))


def test_a_broken_video_is_one_sentence(app: Any, model: Any, tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(gradio.Error, match=r"v\.mp4"):
        next(app.segment_video(model, str(tmp_path / "v.mp4"), "the red circle"))


def test_the_page_answers_over_its_api(app: Any, model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    client_of = pytest.importorskip("gradio_client")
    monkeypatch.setattr(app, "MOST_FRAMES", 6)
    shutil.copy(VIDEO, tmp_path / "shapes.mp4")
    monkeypatch.setattr(app, "EXAMPLE", tmp_path / "shapes.mp4")
    page = app.make_page(model)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        client = client_of.Client(address, verbose=False)
        video = client_of.handle_file(str(tmp_path / "shapes.mp4"))
        overlay, masks, table = client.predict(video, "the red circle", api_name="/segment")
    finally:
        page.close()
    assert Path(masks).read_text().count("\n") == 6
    assert table["data"] == [["the red circle", "6 of 6"]]
    assert overlay


def test_the_readme_of_the_space_names_a_tested_version() -> None:
    header = (SPACE / "README.md").read_text(encoding="utf-8").split("---")[1]
    (version,) = re.findall(r"^sdk_version: (\S+)$", header, re.MULTILINE)
    assert version == gradio.__version__
    assert "app_file: app.py" in header
