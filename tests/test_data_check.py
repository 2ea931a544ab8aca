"""``refervos data check`` counts the contents of a data set and reports missing and damaged files."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from data_sets import SMALL_DATA_SETS
from layouts import (
    drawn_videos,
    write_a2d_sentences,
    write_jhmdb_sentences,
    write_long_rvos,
    write_mevis,
    write_ref_davis17,
    write_ref_youtube_vos,
    write_revos,
)
from refervos.cli.entry import app
from refervos.data import frames
from refervos.data.catalogue import BENCHMARKS
from refervos.data.check import check_dataset
from refervos.errors import ConfigError, DataError
from refervos.video import Source, open_source


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def test_all_present_splits_are_counted(tmp_path: Path) -> None:
    write_mevis(tmp_path, "valid_u")
    write_mevis(tmp_path, "valid", videos=3, frames=4)
    result = run("mevis", tmp_path)
    assert result.exit_code == 0
    objects = sum(
        len({target for expression in one.expressions for target in expression.targets})
        for one in drawn_videos("valid_u")
    )
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines == [
        f"mevis in {tmp_path}",
        f"valid_u 2 videos, 12 frames, 8 expressions, {objects} objects (6 with a target, 2 without)",
        "valid 3 videos, 12 frames, 12 expressions (12 not public)",
        "train not found",
        "test not found",
        "no problems; every frame and mask was decoded",
    ]


def test_a_single_split_can_be_checked(tmp_path: Path) -> None:
    write_mevis(tmp_path, "valid_u")
    write_mevis(tmp_path, "train")
    shutil.rmtree(tmp_path / "train/JPEGImages")
    assert run("mevis", tmp_path, "--split", "valid_u").exit_code == 0
    assert run("mevis", tmp_path).exit_code == 1


def test_json_output_lists_every_problem_and_text_output_twenty(tmp_path: Path) -> None:
    write_mevis(tmp_path, frames=30, videos=1)
    images = sorted((tmp_path / "valid_u/JPEGImages/valid_u00").iterdir())
    for frame in images[3:]:
        frame.unlink()
    shown = run("mevis", tmp_path)
    assert shown.exit_code == 1
    assert shown.stdout.count("is missing") == 20
    assert "and 7 more" in shown.stdout
    found = json.loads(run("mevis", tmp_path, "--json").stdout)
    assert found["problems"] == [f"{frame} is missing." for frame in images[3:]]
    assert found["splits"][0]["expressions"] == 4


def test_a_data_set_without_readable_expressions_exits_with_code_2(tmp_path: Path) -> None:
    write_mevis(tmp_path)
    (tmp_path / "valid_u/meta_expressions.json").write_text("{")
    result = run("mevis", tmp_path)
    assert result.exit_code == 2
    assert "could not be read" in result.stdout
    assert "meta_expressions.json" in result.stdout
    with pytest.raises(DataError, match=r"contains no split of MeViS; expected valid_u"):
        check_dataset("mevis", tmp_path / "valid_u")
    with pytest.raises(DataError, match="nowhere"):
        check_dataset("mevis", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="mevis, ref-youtube-vos"):
        check_dataset("mvis", tmp_path)


def test_fast_checks_that_files_exist_and_decodes_nothing(tmp_path: Path) -> None:
    write_ref_youtube_vos(tmp_path)
    (tmp_path / "train/JPEGImages/train00/00010.jpg").write_text("no")
    (tmp_path / "train/Annotations/train00/00010.png").write_text("no")
    fast = run("ref-youtube-vos", tmp_path, "--fast")
    assert fast.exit_code == 0
    assert "frames and masks were not decoded" in fast.stdout
    slow = run("ref-youtube-vos", tmp_path)
    assert slow.exit_code == 1
    assert "00010.jpg" in slow.stdout
    assert "00010.png" in slow.stdout
    (tmp_path / "train/Annotations/train00/00010.png").unlink()
    assert "00010.png is missing" in run("ref-youtube-vos", tmp_path, "--fast").stdout


def test_a_mask_of_another_size_than_its_frame_is_reported(tmp_path: Path) -> None:
    write_jhmdb_sentences(tmp_path / "jhmdb")
    for frame in (tmp_path / "jhmdb/Rename_Images/wave/jhmdb00").iterdir():
        Image.new("RGB", (50, 40)).save(frame)
    problems = check_dataset("jhmdb-sentences", tmp_path / "jhmdb").problems
    assert len(problems) == 3
    assert all("jhmdb00" in problem and "64x48" in problem and "50x40" in problem for problem in problems)

    other = write_a2d_sentences(tmp_path / "other", size=(64, 96))
    write_a2d_sentences(tmp_path / "a2d")
    shutil.copy(other / "Release/clips320H/test00.mp4", tmp_path / "a2d/Release/clips320H/test00.mp4")
    problems = check_dataset("a2d-sentences", tmp_path / "a2d", "test").problems
    assert problems
    assert all("test00.mp4" in problem and "96x64" in problem for problem in problems)


def test_a_mask_for_a_missing_frame_is_reported(tmp_path: Path) -> None:
    longer = write_a2d_sentences(tmp_path / "longer")
    shorter = write_a2d_sentences(tmp_path / "shorter", frames=3)
    shutil.copy(shorter / "Release/clips320H/test01.mp4", longer / "Release/clips320H/test01.mp4")
    problems = check_dataset("a2d-sentences", longer, "test").problems
    assert problems
    assert all("test01" in problem and "has 3 frames" in problem for problem in problems)


def test_video_files_are_decoded_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads would compete for the one decoder and reopen a file for each frame."""
    write_a2d_sentences(tmp_path, videos=4)
    opened: list[int] = []

    def slowly(path: Path, **options: Any) -> Source:
        opened.append(threading.get_ident())
        time.sleep(0.05)
        return open_source(path, **options)

    monkeypatch.setattr(frames, "open_source", slowly)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert check_dataset("a2d-sentences", tmp_path, "test").splits[0].frames == 24
    assert len(opened) == 8  # to count the frames of a file, and to read them
    assert len(set(opened)) == 1


def test_a_frame_of_another_size_is_reported(tmp_path: Path) -> None:
    write_long_rvos(tmp_path)
    odd = tmp_path / "valid/JPEGImages/valid01/00004.jpg"
    Image.new("RGB", (50, 40)).save(odd)
    problems = check_dataset("long-rvos", tmp_path).problems
    assert len(problems) == 1
    assert str(odd) in problems[0]


def test_a_missing_foreground_of_revos_is_reported_once(tmp_path: Path) -> None:
    write_revos(tmp_path)
    (tmp_path / "mask_dict_foreground.json").unlink()
    problems = check_dataset("revos", tmp_path).problems
    assert len(problems) == 1
    assert "mask_dict_foreground.json" in problems[0]


def test_a_target_without_any_mask_pixel_is_listed_but_is_no_problem(tmp_path: Path) -> None:
    write_ref_davis17(tmp_path)
    assert check_dataset("ref-davis17", tmp_path).splits[0].invisible == ()
    for mask in (tmp_path / "DAVIS/Annotations_unsupervised/480p/blackswan").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(mask)
    result = run("ref-davis17", tmp_path)
    assert result.exit_code == 0
    assert "2 expressions have a target that no mask shows, such as val/blackswan/0" in result.stdout


def test_unlisted_images_and_folders_are_listed_but_are_no_problem(tmp_path: Path) -> None:
    write_revos(tmp_path)
    write_revos(tmp_path, "train")
    assert check_dataset("revos", tmp_path).unlisted == ()
    videos = tmp_path / "JPEGImages/UVO/all"
    shutil.copytree(videos / "valid00", videos / "unasked")
    shutil.copy(videos / "train00/00000.jpg", videos / "train00/00099.jpg")
    assert check_dataset("revos", tmp_path).unlisted == (str(videos / "train00/00099.jpg"), str(videos / "unasked"))
    result = run("revos", tmp_path)
    assert result.exit_code == 0
    assert "2 images and folders are not listed in the annotations" in result.stdout


@pytest.mark.parametrize("name", SMALL_DATA_SETS)
def test_an_undamaged_data_set_of_every_layout_has_no_problems(tmp_path: Path, name: str) -> None:
    split, write = SMALL_DATA_SETS[name]
    write(tmp_path)
    assert split in BENCHMARKS[name].splits_in(tmp_path)
    found = check_dataset(name, tmp_path, split)
    assert found.problems == ()
    assert found.expressions > 0


def test_without_a_terminal_no_progress_bar_is_printed(tmp_path: Path) -> None:
    write_mevis(tmp_path)
    assert run("mevis", tmp_path).stderr == ""
