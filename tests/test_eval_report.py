"""The report is one file that shows all results, runs no scripts and loads nothing."""

from __future__ import annotations

import base64
import importlib.util
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import layouts
from predicted import nothing, perfect, write_masks
from refervos.cli.entry import app
from refervos.data.sample import Sample
from refervos.errors import MissingDependencyError
from refervos.evaluation import contact_sheets
from refervos.evaluation.bootstrap import Interval
from refervos.evaluation.contact_sheets import TINT, WHITE, evenly_spaced, lay_out
from refervos.evaluation.datasets import Part
from refervos.evaluation.plots import histogram, intervals
from refervos.evaluation.report import Evaluation, html_report
from refervos.evaluation.scoring import score

EVIL = '<script>alert("1")</script> & \ud800 \x00 "quoted"'


class Elements(HTMLParser):
    """Element names, addresses and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.addresses += [str(value) for name, value in attributes if name in ("src", "href", "srcset", "data")]
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """An evaluation in which half of the predictions are perfect; one expression contains a script."""
    layouts.write_mevis(tmp_path / "data")

    def insert_script(listed: dict) -> None:
        for video in listed["videos"].values():
            video["expressions"]["1"]["exp"] = EVIL

    layouts.change_json(tmp_path / "data" / "valid_u" / "meta_expressions.json", insert_script)
    part = Part("mevis", tmp_path / "data")

    def half(sample: Sample, index: int) -> np.ndarray | None:
        return None if index == 5 else (perfect if int(sample.expression_id) % 2 else nothing)(sample, index)

    return score(write_masks(tmp_path / "masks", part.open().samples(), half), part)


def test_the_report_runs_nothing_and_loads_nothing(evaluation: Evaluation, tmp_path: Path) -> None:
    evaluation.write(tmp_path / "out")
    page = Elements((tmp_path / "out" / "report.html").read_text())
    assert not {"script", "link", "iframe", "object"} & set(page.names)
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert '<script>alert("1")</script> & ' in page.text  # as text, not as an element
    assert "default-src 'none'" in (tmp_path / "out" / "report.html").read_text()
    assert not re.search(r"https?://", (tmp_path / "out" / "report.html").read_text())


def test_the_report_shows_tables_plots_and_images(evaluation: Evaluation, tmp_path: Path) -> None:
    names = [path.name for path in evaluation.write(tmp_path / "out")]
    assert names == ["expressions.csv", "summary.md", "summary.json", "report.html"]
    page = Elements((tmp_path / "out" / "report.html").read_text())
    assert page.names.count("img") == len(evaluation.summary.worst) == 8
    assert "svg" in page.names
    assert "8 masks of 8 expressions are missing" in page.text
    header, rows = evaluation.summary.cells()
    for cell in [*header, *(cell for row in rows for cell in row)]:
        assert cell in page.text
    worst, best = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(page.addresses[place].split(",")[1])))) for place in (0, -1)
    )
    assert worst.shape == best.shape
    assert (worst == WHITE).all(axis=2).any()  # the outline of the ground truth
    assert not (worst == TINT).all(axis=2).any()


def test_a_report_without_ground_truth_says_so(tmp_path: Path) -> None:
    layouts.write_mevis(tmp_path / "data", "valid")
    part = Part("mevis", tmp_path / "data", "valid")
    found = score(write_masks(tmp_path / "masks", part.open().samples(), nothing), part)
    found.write(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The ground truth of 8 expressions is not public: their masks are not scored." in page


def test_a_histogram_counts_every_value() -> None:
    svg = histogram([0, 1, 4.9, 5, 99, 100], "a < b & $\\frac$")
    assert "a < b & $\\frac$" in Elements(svg).text
    counts = re.findall(r"font-size: 7px[^>]*>(\d+)<", svg)
    assert counts == ["3", "1", "2"]  # above the bars, from left to right


def test_intervals_are_drawn_at_their_values() -> None:
    svg = intervals([("one", 5, Interval(50, 0, 100)), ("two", 1, None)], "t")
    (whisker,) = re.findall(r'id="whisker">\s*<path d="M ([\d.]+) ([\d.]+)\s*L ([\d.]+) ([\d.]+)', svg)
    left, bottom, right, top = map(float, whisker)
    assert left == right
    levels = re.findall(r'<path d="M [\d.]+ ([\d.]+)\s*L [\d.]+ ([\d.]+)\s*"[^>]*stroke: #dddddd', svg)
    assert [(float(one), float(other)) for one, other in levels][:: len(levels) - 1] == [(bottom, bottom), (top, top)]
    (mean,) = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: #0072b2', svg)
    assert tuple(map(float, mean)) == (left, pytest.approx((top + bottom) / 2))
    assert {"n = 5", "n = 1", "one", "two", "50.0"} <= {line.strip() for line in Elements(svg).text.splitlines()}


def test_equal_numbers_give_equal_plots() -> None:
    groups = [("one", 5, Interval(50, 0, 100))]
    assert intervals(groups, "t") == intervals(groups, "t")
    assert histogram([1, 2], "t") == histogram([1, 2], "t")


def test_names_in_plots_are_shown_as_text(recwarn: pytest.WarningsRecorder) -> None:
    """They are neither formulas nor elements, and letters that the font lacks cause no warning."""
    svg = intervals([(name, 1, Interval(1, 0, 2)) for name in ("$\\frac$", "<b>&", "\x1b\u202e", "\u4e2d")], "t")
    elements = Elements(svg)
    assert "b" not in elements.names
    assert {"$\\frac$", "<b>&", "\\x1b\\u202e", "\u4e2d"} <= {line.strip() for line in elements.text.splitlines()}
    assert not recwarn
    assert not re.search("https?://", svg)


def test_only_the_largest_of_many_groups_are_drawn(tmp_path: Path) -> None:
    layouts.write_mevis(tmp_path / "data")
    part = Part("mevis", tmp_path / "data")
    found = score(write_masks(tmp_path / "masks", part.open().samples(), perfect), part)
    group = found.summary.groups[0]
    many = [replace(group, by="kind", name=f"kind {number}", count=number) for number in range(3000)]
    summary = replace(found.summary, groups=(group, *many))
    page = html_report(replace(found, summary=summary))
    assert "by kind, the 12 largest groups of 3000" in page
    assert "kind 2988" in page.split("<svg")[2]
    assert "kind 2987" not in page.split("<svg")[2]


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_without_its_packages_the_report_says_what_to_install(
    package: str, evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(MissingDependencyError, match=rf"the report needs {package}: pip install 'refervos\[eval\]'"):
        evaluation.write(tmp_path / "out")
    arguments = ["eval", "miniature", "mevis", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    assert isinstance(CliRunner().invoke(app, arguments).exception, MissingDependencyError)
    assert not (tmp_path / "out").exists()  # before any work


def test_chosen_frames_include_the_first_and_the_last() -> None:
    assert evenly_spaced(range(100), 3) == [0, 50, 99]
    assert evenly_spaced([4, 7], 6) == [4, 7]
    assert evenly_spaced([4], 6) == [4]


def test_tiles_of_different_size_do_not_overlap() -> None:
    tiles = [np.full((height, 60, 3), TINT, np.uint8) for height in (20, 40, 30)]
    sheet = np.asarray(lay_out(tiles, ["a", "b", "c"], ["words"], columns=2))
    assert (sheet == TINT).all(axis=2).sum() == 60 * 90


@pytest.mark.parametrize(("one", "other"), [("ЖАБА", "ЛАПА"), ("ΨΑΡΙ", "ΩΡΑΙ"), ("خرگوش", "کبوتر")])
def test_other_scripts_are_drawn_as_letters_and_not_as_boxes(one: str, other: str) -> None:
    tiles = [np.full((20, 60, 3), TINT, np.uint8)]
    plain, first, second = (np.asarray(lay_out(tiles, [""], [f"{text} a"], columns=1)) for text in ("", one, other))
    assert plain.shape == first.shape == second.shape
    assert not np.array_equal(first, second)
    first, second = (np.asarray(lay_out(tiles, [text], (), columns=1)) for text in (one, other))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("text", ["a dog that is far away " * 9, "W" * 200, "一只狗跳过篱笆" * 20, "a " + "i" * 300])
def test_titles_stay_on_their_sheet(text: str) -> None:
    sheet = np.asarray(lay_out([np.full((20, 400, 3), TINT, np.uint8)], [""], [text], columns=1))
    title = (sheet != sheet[0, 0]).any(axis=2)[:-45]  # above the frame
    columns = np.nonzero(title.any(axis=0))[0]
    assert columns[-1] < sheet.shape[1] - 1
    assert title.any(axis=1).sum() > 2 * 10  # several lines


def test_without_freetype_sheets_have_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheets, "can_write", lambda: False)
    sheet = np.asarray(lay_out([np.full((20, 60, 3), TINT, np.uint8)], ["a"], ["words"], columns=1))
    assert {tuple(colour) for colour in sheet.reshape(-1, 3)} == {TINT, tuple(sheet[0, 0])}
