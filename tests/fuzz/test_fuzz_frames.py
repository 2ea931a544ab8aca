"""Spoilt frames: images, folders of images, videos, and arrays given to a session."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import refervos
from judge import POSIX, command, fresh, inputs, judge
from refervos import load
from refervos.prompts import Prompt
from spoil import Draw, odd_image, one_of, spoil_bytes, spoil_folder, spoil_name, spoil_place
from test_fuzz_models import write_samwise
from video_files import numbered_frame, rotate, write_video

pytestmark = [POSIX, pytest.mark.usefixtures("one_thread")]

IMAGES = ("png", "jpg", "webp", "gif", "bmp", "tif", "avif", "jp2", "ppm")
VIDEOS = ("mp4", "mov", "mkv", "webm", "avi", "gif", "ts")
SOURCES = ("folder", "still", "pages", "video")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a small model with text prompts."""
    write_samwise(tmp_path_factory.mktemp("model") / "model")
    return load(tmp_path_factory.getbasetemp() / "model0" / "model", device="cpu")


@pytest.fixture(autouse=True)
def _loaded(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the command line use the loaded model, as only frames are tested."""
    monkeypatch.setattr(refervos, "load", lambda *_, **__: model)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a small source, written once per kind and suffix."""
    root = tmp_path_factory.mktemp("good")

    def source(kind: str, suffix: str) -> Path:
        path = root / kind / (f"a.{suffix}" if kind != "folder" else suffix)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            _make(kind, suffix, path)
        return path

    return source


def _make(kind: str, suffix: str, path: Path) -> None:
    images = [Image.fromarray(numbered_frame(index, 64, 48)) for index in range(3)]
    if kind == "folder":
        path.mkdir()
        for index, image in enumerate(images):
            image.save(path / f"{index:03d}.{suffix}")
    elif kind == "video":
        sound = {"mp4": "aac", "mov": "aac", "mkv": "aac", "avi": "mp2", "ts": "mp2"}.get(suffix)
        write_video(path, 4, audio=sound)
        if suffix == "mov":
            rotate(path, 90)
    elif kind == "pages":
        images[0].save(path, save_all=True, append_images=images[1:])
    else:
        images[0].save(path)


PAGES = ("tif", "webp", "gif", "png", "avif")
SUFFIXES = {"folder": IMAGES, "still": IMAGES, "pages": PAGES, "video": VIDEOS}


def spoil_frames(draw: Draw, path: Path) -> tuple[Path, str]:
    """Change a source and return its path and a description."""
    if path.is_dir():
        return path, "; ".join(spoil_folder(draw, path) for _ in range(one_of(draw, 1, 1, 2)))
    kind = one_of(draw, "bytes", "bytes", "bytes", "bytes", "suffix", "image", "place", "name")
    if kind == "bytes":
        path.write_bytes(spoil_bytes(draw, path.read_bytes()))
    elif kind == "image":
        path.write_bytes(odd_image(draw))
    elif kind == "suffix":
        suffix = one_of(
            draw, *IMAGES, *VIDEOS, "m3u8", "txt", "eps", "pdf", "svg", "heic", "exr", "ffconcat", "sdp", ""
        )
        path = path.rename(path.with_name(f"a.{suffix}".rstrip(".")))
        return path, f"suffix .{suffix}"
    elif kind == "place":
        return path, spoil_place(draw, path)
    else:
        done = spoil_name(draw, path)
        return one_of(draw, *sorted(path.parent.iterdir())), done
    return path, kind


def options(draw: Draw) -> list[object]:
    """Draw options of ``segment`` for reading frames and writing results."""
    chosen: list[object] = []
    for output in one_of(draw, ["rle"], ["overlay"], ["overlay", "masks", "rle"], ["binary", "cutout"]):
        chosen += ["--save", output]
    chosen += one_of(draw, [], [], ["--start", one_of(draw, 0, 1, 3, 10**6, 10**18)])
    chosen += one_of(draw, [], [], ["--frames", one_of(draw, 1, 2, 10**12)])
    chosen += one_of(draw, [], [], ["--clip", one_of(draw, 1, 3, 10**6)])
    chosen += one_of(draw, [], [], ["--on-cut", "forget"], ["--on-repeat", "reuse"], ["--borders", "frame"])
    chosen += one_of(draw, [], [], [], ["--deinterlace"], ["--late", "drop"], ["--late", "queue"], ["--live"])
    return [*chosen, "--no-reconnect", "--quiet"]


@pytest.mark.parametrize("kind", SOURCES)
@inputs(8)
@given(data=st.data())
def test_spoilt_frames_are_segmented_or_refused_in_one_sentence(
    kind: str, good: Callable[[str, str], Path], tmp_path: Path, data: st.DataObject
) -> None:
    draw: Draw = data.draw
    source, folder = good(kind, one_of(draw, *SUFFIXES[kind])), fresh(tmp_path)
    folder.mkdir()
    path = folder / source.name
    shutil.copytree(source, path) if source.is_dir() else shutil.copyfile(source, path)
    path, done = spoil_frames(draw, path)
    arguments = ["segment", path, "the red circle", "--out", tmp_path / "out", *options(draw)]
    about = f"{source.suffix or source.name} {kind}: {done}; {' '.join(map(str, arguments))}"
    judge(command(*arguments), folder, out=tmp_path / "out", about=about)


# What programs hand over.


def odd_array(draw: Draw) -> Any:
    """Draw a value that is rarely a valid frame."""
    shape = one_of(
        draw,
        *((48, 64, 3), (48, 64), (1, 1, 3), (3, 48, 64), (48, 64, 4), (48, 64, 1), (0, 64, 3), (48, 0), (2, 48, 64, 3)),
        *((48,), (), (1, 5000, 3), (5000, 1), (48, 64, 2), (17, 31, 3)),
    )
    kind = one_of(draw, np.uint8, np.uint8, np.uint8, np.float32, np.int64, bool, np.uint16, object, "U1", complex)
    array: Any = np.zeros(shape, kind)
    form = one_of(draw, "array", "array", "tensor", "transposed", "list", "image", "other", "read-only")
    if form == "tensor" and kind not in (object, "U1"):
        return one_of(draw, torch.from_numpy(array), torch.from_numpy(array).to("meta"))
    if form == "transposed":
        return array[::-1].T
    if form == "list":
        return array.tolist()
    if form == "image":
        return Image.new(one_of(draw, "RGB", "L", "P", "RGBA", "1", "I;16"), (64, 48))
    if form == "other":
        return one_of(draw, None, 0, "frame.png", b"", io.BytesIO(), [], {})
    if form == "read-only":
        array.flags.writeable = False
    return array


def odd_prompt(draw: Draw) -> dict[str, Any]:
    """Draw the arguments of a prompt."""
    numbers = st.one_of(st.integers(-5, 70), st.floats(), st.sampled_from([10**30, "3", None, True, [1]]))
    words = st.one_of(st.text(max_size=20), st.sampled_from(["the red circle", "\ud800", "", 3, None]))
    masks = st.sampled_from(
        [
            np.ones((48, 64), bool),
            np.zeros((48, 64), bool),
            np.ones((3, 3), bool),
            np.full((48, 64), 0.5),
            np.full((48, 64), np.nan),
            np.ones((48, 64), object),
            torch.ones(48, 64),
            [[True, False]],
            [[1], [1, 2]],
            None,
            "mask",
        ]
    )
    fields = {
        "expression": words,
        "verbs": st.one_of(st.none(), st.lists(words, max_size=3), words),
        "points": st.one_of(st.none(), st.lists(st.lists(numbers, max_size=3), max_size=4), numbers),
        "labels": st.one_of(st.none(), st.lists(numbers, max_size=4), numbers),
        "box": st.one_of(st.none(), st.lists(numbers, max_size=5), numbers),
        "mask": masks,
    }
    chosen = draw(st.sets(st.sampled_from(sorted(fields)), min_size=1, max_size=3))
    return {name: draw(fields[name]) for name in sorted(chosen)}


@inputs(20)
@given(data=st.data())
def test_odd_prompts_and_arrays_are_segmented_or_refused_in_one_sentence(
    model: Any, tmp_path: Path, data: st.DataObject
) -> None:
    draw: Draw = data.draw
    prompt, frame = odd_prompt(draw), odd_array(draw)
    later = one_of(draw, odd_array(draw), np.zeros((48, 64, 3), np.uint8))
    correction = {name: value for name, value in odd_prompt(draw).items() if name not in ("expression", "verbs")}
    folder = fresh(tmp_path)
    folder.mkdir()

    def use() -> None:
        session = model.open([Prompt(**prompt)])
        for image in (frame, later):
            prediction = session.step(image)
            assert prediction.masks.dtype == bool
            assert prediction.masks.ndim == 3
            assert np.isfinite(prediction.presence).all()
        session.correct(0, **correction)
        session.undo(0)

    judge(use, folder, about=f"{prompt!r:.500}; {frame!r:.200}; {later!r:.200}; {correction!r:.500}")
