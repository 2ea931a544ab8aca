"""Submissions are exactly as the servers require, or nothing is written."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import layouts
from predicted import nothing, write_masks
from refervos.cli.entry import app
from refervos.data.sample import Sample
from refervos.errors import ConfigError, EvaluationError, VideoError
from refervos.evaluation.datasets import Part
from refervos.evaluation.predictions import Predictions
from refervos.evaluation.submission import submit

WRITERS: dict[str, Callable[..., Path]] = {
    "mevis": layouts.write_mevis,
    "ref-youtube-vos": layouts.write_ref_youtube_vos,
}
FRAMES = {"mevis": [f"{n:05d}" for n in range(6)], "ref-youtube-vos": [f"{n:05d}" for n in range(0, 30, 5)]}
EXPRESSIONS = {"mevis": 4, "ref-youtube-vos": 2}


def checkered(sample: Sample, index: int) -> np.ndarray:
    """Return a mask that differs for every expression and frame."""
    mask = nothing(sample, index)
    mask.flat[int(sample.expression_id) :: index + 2] = True
    return mask


def part_of(name: str, folder: Path) -> Part:
    return Part(name, WRITERS[name](folder, "valid"), "valid")


def pack(masks: Path, part: Part, out: Path, **options: Any) -> list[str]:
    return submit(Predictions.open(masks), part.open(), out, **options)


@pytest.mark.parametrize("highest", [1, 255])
@pytest.mark.parametrize("name", WRITERS)
def test_the_zip_has_the_names_and_masks_that_the_server_expects(tmp_path: Path, name: str, highest: int) -> None:
    part = part_of(name, tmp_path / "data")
    samples = list(part.open().samples())
    write_masks(tmp_path / "masks", samples, checkered, highest)
    assert pack(tmp_path / "masks", part, tmp_path / "out" / "it.zip") == []
    top = "Annotations/" if name == "ref-youtube-vos" else ""
    videos = [video.id for video in layouts.drawn_videos("valid")]
    expected = [f"{top}{v}/{e}/{f}.png" for v in videos for e in range(EXPRESSIONS[name]) for f in FRAMES[name]]
    with zipfile.ZipFile(tmp_path / "out" / "it.zip") as archive:
        assert archive.namelist() == expected == sorted(expected)
        for sample in samples:
            for index, frame in enumerate(sample.video.frames.names):
                path = f"{top}{sample.video.id}/{sample.expression_id}/{frame}.png"
                with Image.open(io.BytesIO(archive.read(path))) as image:
                    assert image.mode == "L"
                    assert np.array_equal(np.asarray(image), checkered(sample, index) * np.uint8(255))


def test_the_same_masks_give_the_same_bytes(tmp_path: Path) -> None:
    opened = part_of("mevis", tmp_path / "data").open()
    backwards = replace(opened, videos=tuple((video, samples[::-1]) for video, samples in opened.videos[::-1]))
    for name, part, highest in (("a", opened, 255), ("b", backwards, 1)):
        write_masks(tmp_path / name, part.samples(), checkered, highest)
        submit(Predictions.open(tmp_path / name), part, tmp_path / f"{name}.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def remove(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def gray(path: Path) -> None:
    Image.fromarray(np.full((48, 64), 7, np.uint8)).save(path)


def small(path: Path) -> None:
    Image.fromarray(np.zeros((64, 48), np.uint8)).save(path)


@pytest.mark.parametrize(
    ("where", "damage", "message"),
    [
        ("valid00/2", remove, "valid00/2 is missing or has none of the 6 masks"),
        ("valid01/0/00003.png", Path.unlink, "valid01/0/00003.png is missing"),
        ("valid01/0/00003.png", gray, "00003.png is not binary"),
        ("valid01/0/00003.png", small, "00003.png is 48x64; the frames are 64x48"),
        ("valid01/0/00003.png", lambda path: path.write_bytes(b"\x89PNG"), "00003.png' is not an image"),
    ],
)
def test_a_wrong_mask_is_named_and_nothing_is_written(
    tmp_path: Path, where: str, damage: Callable[[Path], None], message: str
) -> None:
    part = part_of("mevis", tmp_path / "data")
    masks = write_masks(tmp_path / "masks", part.open().samples(), checkered)
    damage(masks / where)
    with pytest.raises(EvaluationError, match="nothing was written") as raised:
        pack(masks, part, tmp_path / "it.zip")
    assert message in str(raised.value)
    assert len(str(raised.value).splitlines()) == 2
    assert not list(tmp_path.glob("*it.zip*"))


def test_at_most_twenty_problems_are_listed(tmp_path: Path) -> None:
    part = part_of("mevis", tmp_path / "data")
    write_masks(tmp_path / "masks", part.open().samples(), checkered, highest=7)
    with pytest.raises(EvaluationError) as raised:
        pack(tmp_path / "masks", part, tmp_path / "it.zip")
    _, *lines = str(raised.value).splitlines()
    assert all("is not binary" in line for line in lines[:20])
    assert lines[20:] == ["  ... and 28 more."]


def test_folders_outside_the_split_are_left_out_and_returned(tmp_path: Path) -> None:
    part = part_of("mevis", tmp_path / "data")
    masks = write_masks(tmp_path / "masks", part.open().samples(), checkered)
    (masks / "elsewhere" / "0").mkdir(parents=True)
    (masks / "valid00" / "17").mkdir()
    assert pack(masks, part, tmp_path / "it.zip") == ["elsewhere", "valid00/17"]


def test_an_existing_zip_is_kept_unless_overwrite_is_set(tmp_path: Path) -> None:
    part = part_of("mevis", tmp_path / "data")
    masks = write_masks(tmp_path / "masks", part.open().samples(), checkered)
    (tmp_path / "it.zip").write_bytes(b"precious")
    with pytest.raises(VideoError, match=r"it\.zip"):
        pack(masks, part, tmp_path / "it.zip")
    assert (tmp_path / "it.zip").read_bytes() == b"precious"
    pack(masks, part, tmp_path / "it.zip", overwrite=True)
    assert zipfile.is_zipfile(tmp_path / "it.zip")


def test_the_command_packs_masks_and_refuses_other_benchmarks(tmp_path: Path) -> None:
    part = part_of("ref-youtube-vos", tmp_path / "data")
    write_masks(tmp_path / "theirs" / "Annotations", part.open().samples(), checkered)
    arguments = ["submit", "ref-youtube-vos", str(tmp_path / "theirs"), str(tmp_path / "it.zip"), "--quiet"]
    found = CliRunner().invoke(app, [*arguments, "--data", str(tmp_path / "data")])
    assert found.exit_code == 0, found.output
    assert "4 expressions about 2 videos" in found.output
    other = CliRunner().invoke(app, ["submit", "revos", *arguments[2:], "--data", str(tmp_path / "data")])
    assert isinstance(other.exception, ConfigError)
    assert "for 'revos'; the benchmarks with one are mevis, ref-youtube-vos" in str(other.exception)
