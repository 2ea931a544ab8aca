"""Comparison of two systems: the chosen expressions, the drawing and the labels."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import layouts
from predicted import nothing, perfect, write_masks
from refervos.cli.entry import app
from refervos.data.sample import Sample
from refervos.errors import ConfigError, EvaluationError
from refervos.evaluation.comparison import (
    choose_expressions,
    open_sides,
    panel_labels,
    part_from_masks,
    shared_part,
    sheet_titles,
)
from refervos.evaluation.contact_sheets import TINT
from refervos.evaluation.datasets import OpenPart, Part
from refervos.evaluation.expression_scores import save_json, score_expression
from refervos.evaluation.result_folder import ResultFolder, Settings


@pytest.fixture
def part(tmp_path: Path) -> Part:
    return Part("mevis", layouts.write_mevis(tmp_path / "data"))


def two_systems(tmp_path: Path, part: OpenPart) -> tuple[Path, Path]:
    """Write the masks of A, which are perfect, and of B, wrong for one expression and slightly off for another."""

    def worse(sample: Sample, index: int) -> np.ndarray:
        if sample.key == ("valid_u01", "2"):
            return nothing(sample, index)
        return np.roll(perfect(sample, index), int(sample.key == ("valid_u00", "0")), axis=1)

    a = write_masks(tmp_path / "ours", part.samples(), perfect)
    return a, write_masks(tmp_path / "theirs", part.samples(), worse)


def compare(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["compare", *(str(argument) for argument in arguments), "--quiet"])


def test_the_expressions_that_differ_most_are_chosen(tmp_path: Path, part: Part) -> None:
    opened = part.open()
    a, b = open_sides(*two_systems(tmp_path, opened))
    chosen = choose_expressions(opened, a, b, 2, show_progress=False)
    assert [sample.key for sample in chosen] == [("valid_u01", "2"), ("valid_u00", "0")]
    named = choose_expressions(opened, a, b, 2, ["valid_u00/3"], show_progress=False)
    assert [sample.key for sample in named] == [("valid_u00", "3")]
    with pytest.raises(ConfigError, match="no expression 'valid_u00/9'"):
        choose_expressions(opened, a, b, 2, ["valid_u00/9"], show_progress=False)


def result_path(folder: Path, sample: Sample) -> Path:
    """Return the path of a result and create its folder."""
    file = ResultFolder(folder).result(sample)
    file.parent.mkdir(parents=True, exist_ok=True)
    return file


def test_expressions_are_chosen_by_the_scores_of_eval_where_both_have_some(tmp_path: Path, part: Part) -> None:
    opened = part.open()
    a, b = open_sides(*two_systems(tmp_path, opened))
    for folder, quality in ((tmp_path / "ours", 0.1), (tmp_path / "theirs", 0.9)):
        for sample in opened.samples():
            j = quality if sample.key == ("valid_u01", "3") else 0.5
            result = score_expression(sample, a.predictions)
            assert result.scores is not None
            save_json(asdict(replace(result, scores=replace(result.scores, j=j, f=j))), result_path(folder, sample))
    assert [sample.key for sample in choose_expressions(opened, a, b, 1, show_progress=False)] == [("valid_u01", "3")]
    assert "A: ours 50.0, B: theirs 50.0" in sheet_titles(opened.videos[0][1][0], a, b)[1]


def test_a_sheet_labels_both_and_shows_the_ground_truth(tmp_path: Path, part: Part) -> None:
    opened = part.open()
    a, b = two_systems(tmp_path, opened)
    found = compare(a, b, "mevis", tmp_path / "data", "--out", tmp_path / "it.png", "--count", 1)
    assert found.exit_code == 0, found.output
    assert found.output.startswith("valid_u01/2: ")
    sample = next(sample for sample in opened.samples() if sample.key == ("valid_u01", "2"))
    assert panel_labels(sample, *open_sides(a, b)) == ["A: ours", "B: theirs", "ground truth"]
    assert sheet_titles(sample, *open_sides(a, b))[1].startswith("J&F: A: ours 100.0, B: theirs ")
    sheet = np.asarray(Image.open(tmp_path / "it.png"))
    height = layouts.drawn_videos("valid_u")[0].clip.frames.shape[1] * 4  # enlarged
    tinted = (sheet == TINT).all(axis=2).sum(axis=1)
    rows = np.flatnonzero(tinted)
    assert rows.size
    assert rows[-1] - rows[0] < height  # one of three rows: B's mask is empty, and the ground truth is an outline
    again = compare(a, b, "mevis", tmp_path / "data", "--out", tmp_path / "it.png")
    assert "it.png' exists already" in str(again.exception)


def test_a_video_shows_every_frame(tmp_path: Path, part: Part) -> None:
    a, b = two_systems(tmp_path, part.open())
    found = compare(a, b, "mevis", tmp_path / "data", "--out", tmp_path / "it.mp4")
    assert found.exit_code == 0, found.output
    with av.open(str(tmp_path / "it.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 6
    assert frames[0].shape[1] > 3 * 512
    too_many = compare(a, b, "mevis", tmp_path / "data", "--out", tmp_path / "two.mp4", "--count", 2)
    assert isinstance(too_many.exception, ConfigError)


def test_masks_can_be_compared_without_a_data_set(tmp_path: Path, part: Part) -> None:
    a, b = two_systems(tmp_path, part.open())
    found = compare(a, b, "--out", tmp_path / "it.png", "--count", 2)
    assert found.exit_code == 0, found.output
    assert [line.split(":")[0] for line in found.output.splitlines()[:2]] == ["valid_u01/2", "valid_u00/0"]
    alone = part_from_masks(open_sides(a, b)[0].predictions)
    assert {sample.key for sample in alone.samples()} == {sample.key for sample in part.open().samples()}


def test_the_data_set_is_read_from_the_settings_of_eval(tmp_path: Path, part: Part) -> None:
    a, b = two_systems(tmp_path, part.open())
    for folder, split in ((a, "valid_u"), (b, "valid_u")):
        Settings("m", part, {"dataset": "mevis", "split": split}).claim(ResultFolder(folder))
    assert shared_part(*open_sides(a, b)) == Part("mevis", tmp_path / "data", "valid_u")
    ResultFolder(b).settings.unlink()
    assert shared_part(*open_sides(a, b)) is None
    Settings("m", part, {"dataset": "mevis", "split": "train"}).claim(ResultFolder(b))
    with pytest.raises(
        EvaluationError, match=r"evaluated on split valid_u, .*theirs on train; compare results on the same data"
    ):
        shared_part(*open_sides(a, b))


def test_folders_of_equal_names_are_labelled_by_their_paths(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "masks").mkdir(parents=True)
    a, b = open_sides(tmp_path / "one" / "masks", tmp_path / "two" / "masks")
    assert a.label.endswith("one/masks")
    assert b.label.endswith("two/masks")
    with pytest.raises(EvaluationError, match="nowhere"):
        open_sides(tmp_path / "one", tmp_path / "nowhere")
    nothing_common = compare(tmp_path / "one", tmp_path / "two", "--out", tmp_path / "it.png")
    assert "nothing can be compared" in str(nothing_common.exception)
    assert "neither" in str(compare(tmp_path / "one", tmp_path / "two", "--out", tmp_path / "it.gif").exception)
