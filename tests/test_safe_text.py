"""Names and texts from inputs are harmless on terminals, in reports and in tables."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import layouts
import layouts_images
from refervos.cli.entry import app
from refervos.data.files import Problems
from refervos.data.layouts.json_lines import read_json_lines
from refervos.errors import DataError
from refervos.evaluation.datasets import Part
from refervos.evaluation.scoring import score
from refervos.safe_text import one_line, printable, table_cell

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\x00\x7f\r\u202e\u2028half \ud83d"


ORDINARY = [
    "a dog",
    "Ein Hund, größer",
    "犬がいる",
    "\u06a9\u062a\u0627\u0628\u200c\u0647\u0627",  # Persian joins letters with a zero-width character
    "\U0001f469\u200d\U0001f467 walks",
    "line\nline",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert printable(text) == text
    assert table_cell(text) == text


def test_control_characters_are_escaped() -> None:
    text = printable(f"a{ESCAPES}b")
    assert text == "a\\x1b]0;title\\x07\\x1b[2J\\x9b31m\\x00\\x7f\\r\\u202e\\u2028half \\ud83db"
    assert text.isprintable()


def test_a_long_text_is_cut() -> None:
    assert printable("abcdefgh", 6) == "abc..."
    assert one_line(" a\tb\r\n\nc d ", 6) == "a b..."
    assert len(str(DataError("x" * 10**6))) < 2_010


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "  =cmd|'/C calc'!A0", "\r@x"])
def test_text_that_looks_like_a_formula_is_quoted(text: str) -> None:
    assert table_cell(text) == f"'{printable(text)}"
    assert table_cell(f"a{text}") == f"a{printable(text)}"


@pytest.mark.parametrize("value", [-1.5, None, True, 0])
def test_numbers_stay_numbers(value: Any) -> None:
    assert table_cell(value) is value


def write(root: Path, **line: str) -> Path:
    clip = layouts_images.own_clip(1)
    layouts_images.write_frames(root / "v", clip)
    Image.fromarray(clip.masks[0, 0]).save(root / "mask.png")
    record = {"video": "v", "masks": ["mask.png"], "expression": "it", **line}
    (root / "expressions.jsonl").write_text(json.dumps(record))
    return root


def test_expressions_and_kinds_are_escaped_on_terminals_in_reports_and_in_tables(tmp_path: Path) -> None:
    evil = "=HYPERLINK(1)\x1b[31m|<script>"
    write(tmp_path / "set", expression=evil, kind=evil)
    (tmp_path / "answers").mkdir()
    ran = CliRunner().invoke(
        app, ["score", str(tmp_path / "answers"), "json-lines", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
    )
    assert ran.exit_code == 0, ran.output
    assert "\x1b" not in ran.stdout
    assert "\\x1b[31m\\|<script>" in ran.stdout
    for file in (tmp_path / "out").iterdir():
        assert "\x1b" not in file.read_text()
    assert "<script>" not in (tmp_path / "out" / "report.html").read_text()
    with (tmp_path / "out" / "expressions.csv").open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert row["expression"] == row["kind"] == "'=HYPERLINK(1)\\x1b[31m|<script>"


def test_ids_that_begin_like_formulas_are_quoted(tmp_path: Path) -> None:
    write(tmp_path / "set", video_id="=a", expression_id="-1", expression="a | b")
    (tmp_path / "answers").mkdir()
    summary = score(tmp_path / "answers", Part("json-lines", tmp_path / "set"), show_progress=False).summary
    (row,) = csv.DictReader(io.StringIO(summary.csv()))
    assert (row["video"], row["expression_id"]) == ("'=a", "'-1")
    assert "| a \\| b " in summary.markdown()


def id_of_mevis(root: Path) -> tuple[str, Path]:
    layouts.write_mevis(root, videos=1)
    file = root / "valid_u" / "meta_expressions.json"
    layouts.change_json(file, lambda content: content["videos"].update({"\x1b[2Jv": content["videos"].popitem()[1]}))
    return "mevis", root


def field_of_json_lines(root: Path) -> tuple[str, Path]:
    write(root, kind="x", **{"\x1b[2J": "y"})
    return "json-lines", root


def name_of_the_folder(root: Path) -> tuple[str, Path]:
    write(root / "\x1b[2J", video="gone")
    return "json-lines", root / "\x1b[2J"


def label_of_cvat(root: Path) -> tuple[str, Path]:
    layouts_images.write_cvat(root)
    file = root / "annotations.xml"
    text = file.read_text().replace('label="circle"', 'label="&#x9b;31m"').replace("<polygon", "<points")
    file.write_text(text.replace("</polygon", "</points"))
    return "cvat", root


@pytest.mark.parametrize("spoil", [id_of_mevis, field_of_json_lines, name_of_the_folder, label_of_cvat])
def test_problems_are_escaped_on_terminals(tmp_path: Path, spoil: Callable[[Path], tuple[str, Path]]) -> None:
    name, folder = spoil(tmp_path)
    ran = CliRunner().invoke(app, ["data", "check", name, str(folder)])
    assert ran.exit_code == 2
    assert not {"\x1b", "\x9b"} & set(ran.output)
    assert {"\\x1b", "\\x9b"} & {ran.output[at : at + 4] for at in range(len(ran.output))}


def test_ids_that_are_unfit_for_folder_names_are_refused(tmp_path: Path) -> None:
    for id in ("\x1b[2J", "a\nb", "half \ud83d", "x" * 300, "\x7f"):
        write(tmp_path, expression_id=id)
        with pytest.raises(DataError, match="names a folder of results"):
            read_json_lines(tmp_path, "all", Problems())
