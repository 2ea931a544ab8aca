"""Expressions in any script, from the model to the overlay and the results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import refervos
from judge import POSIX, command, fresh, inputs, judge
from refervos import load
from spoil import TEXTS, Draw, one_of, spoil_bytes, spoil_place
from test_fuzz_models import write_refsam, write_samwise
from video_files import write_video

pytestmark = [POSIX, pytest.mark.usefixtures("one_thread")]

WRITERS = {"samwise": write_samwise, "refsam": write_refsam}


@pytest.fixture(scope="module", params=WRITERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a small model of each family with text prompts."""
    folder = tmp_path_factory.mktemp("model") / "model"
    WRITERS[request.param](folder)
    return load(folder, device="cpu")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a video of two frames."""
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4", 2)


EXPRESSIONS = st.one_of(
    st.text(max_size=30),
    st.sampled_from(TEXTS),
    st.text(st.characters(categories=("Cc", "Cf", "Cs", "Co", "Zs", "Mn")), min_size=1, max_size=12),
    st.text("aébגאعरे漢\u200d\u0301🐕🏽 ", min_size=1, max_size=40),
    st.builds(
        lambda word, count: word * count,
        st.sampled_from(["a", "red ", "漢", "👩\u200d🚀", "\u0301"]),
        st.integers(1, 4000),
    ),
    st.just("the red circle"),
)


@inputs(12)
@given(data=st.data())
def test_any_expression_is_segmented_or_refused_in_one_sentence(
    model: Any, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(refervos, "load", lambda *_, **__: model)
    draw: Draw = data.draw
    folder = fresh(tmp_path)
    folder.mkdir()
    # Command-line arguments have no null bytes, but may have bytes that are not text.
    sentences = [text.replace("\0", "") for text in draw(st.lists(EXPRESSIONS, min_size=1, max_size=3))]
    arguments: list[object] = ["segment", video, "--out", tmp_path / "out", "--quiet"]
    for output in one_of(draw, ["overlay", "rle"], ["masks", "cutout"], ["binary", "rle"]):
        arguments += ["--save", output]
    if one_of(draw, True, False, False):
        listed = folder / "sentences.txt"
        content = "\n".join(sentences).encode(one_of(draw, "utf-8", "utf-16", "utf-32"), "surrogatepass")
        listed.write_bytes(spoil_bytes(draw, content) if one_of(draw, True, False) else content)
        if one_of(draw, *[False] * 9, True):
            spoil_place(draw, listed)
        arguments += ["--sentences", listed]
        sentences = []
    if one_of(draw, True, False, False):
        arguments += ["--verb", one_of(draw, *sentences, "red", "", draw(EXPRESSIONS).replace("\0", ""))]
    if one_of(draw, True, False, False, False):
        arguments += one_of(
            draw, ["--point", draw(st.text("0123456789,.-einfa ", max_size=12))], ["--box", "1,2,30,40"]
        )

    def use() -> str:
        printed = command(*arguments, "--", *sentences)()
        rows = tmp_path / "out" / "masks.jsonl"
        if rows.exists() and sentences and "--point" not in arguments:
            written = [json.loads(row)["expression"] for row in rows.read_text().splitlines()]
            assert written == sentences * 2, f"written as {written}"
        return printed

    judge(use, folder, out=tmp_path / "out", about=f"{sentences!r:.300} {arguments}")
