"""The README's and guides' examples run, and print what is written beside them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import refervos
from refervos.errors import MissingDependencyError, VideoError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def numbers(line: str) -> list[float]:
    """Find the numbers of a printed line."""
    return [float(number) for number in re.findall(r"[\d.]+", line)]


def test_the_demo_finds_three_objects_and_reports_the_fourth_absent(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "demo.py"), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    prompts = json.loads((ROOT / "examples" / "data" / "outing.json").read_text())
    seen = dict(re.findall(r"'(.+)': seen in (\d+) frames", result.stdout))
    total = int(re.findall(r"(\d+) frames, 4 sentences", result.stdout)[0])
    assert set(seen) == {*prompts["sentences"], prompts["absent"]}
    # The three objects are visible in more than half of the video, the fourth never is.
    assert all(int(seen[sentence]) > total / 2 for sentence in prompts["sentences"])
    assert int(seen[prompts["absent"]]) < total / 20
    assert "MINIATURE" in result.stdout
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 1000
    with av.open(str(tmp_path / "out" / "overlay.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == total


def test_a_description_is_drawn_with_a_verdict_on_each_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "describe.py"), "--out", str(tmp_path / "out" / "described.png")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.splitlines()
    verdicts = [line.strip().split(": ", 1) for line in lines[1:-1]]
    assert " ".join(sentence for _, sentence in verdicts) == lines[0]
    assert {verdict for verdict, _ in verdicts} <= {"true", "false", "undecidable", "not understood"}
    with Image.open(tmp_path / "out" / "described.png") as picture:
        assert picture.width == 6 * (256 + 4)
        assert picture.height > 256


def test_the_readmes_snippet_prints_its_comments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (snippet,) = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    first, last, corrected = re.findall(r"^# ((?:\d+ )?\[.+?\] \[.+?\])", snippet, re.MULTILINE)
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 82
    for line, expected in ((printed[0], first), (printed[-2], last), (printed[-1], corrected)):
        found, wanted = numbers(line), numbers(expected)
        assert found[:-4] == wanted[:-4]  # the frame
        assert found[-4:-2] == pytest.approx(wanted[-4:-2], abs=0.11)  # presence, rounded to tenths, on any CPU
        assert found[-2:] == pytest.approx(wanted[-2:], rel=0.05)  # pixels
    session = names["session"]
    assert names["result"].masks[1, 72, 318]
    session.undo(1)
    assert not session.step(names["frame"].image).masks[1, 72, 318]


def test_links_and_make_targets_of_the_readme_exist() -> None:
    for link in re.findall(r"\]\((docs/[^)#]+)\)", README):
        assert (ROOT / link).is_file(), link
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_the_readme_lists_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (listed,) = re.findall(r"Extras: ([^.]+)\.", README)
    assert set(re.findall(r"`(\w+)`", listed)) == set(extras) - {"dev", "docs"}


def test_commands_of_the_readme_exist() -> None:
    help_text = subprocess.run([sys.executable, "-m", "refervos", "--help"], capture_output=True, text=True, check=True)
    for command in set(re.findall(r"^refervos (\w+)", README, re.MULTILINE)):
        assert command in help_text.stdout


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_import_of_the_documentation_exists(page: Path) -> None:
    for snippet in re.findall(r"```python\n(.+?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in re.findall(r"^(?:from|import) .+$", snippet, re.MULTILINE):
            # Tools of the integrations are installed by extras of their own, and tested in files of their own.
            if page.parent.name != "integrations" or "refervos" in line:
                with contextlib.suppress(MissingDependencyError):
                    exec(compile(line, str(page), "exec"), {})


def test_the_snippets_of_the_streams_guide_run(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "streams.md").read_text(encoding="utf-8")
    connecting, correcting = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    addresses: list[str] = []

    def refuse(address: str, **_: Any) -> None:
        addresses.append(address)
        raise VideoError("the connection failed.")

    monkeypatch.setattr("refervos.video.sources.open_url", refuse)
    with pytest.raises(VideoError, match="the connection failed"):
        exec(compile(connecting, "streams.md", "exec"), {})
    assert addresses == ["rtsp://camera.local/stream"]

    session = refervos.load("miniature", device="cpu").open(["the red circle"])
    names: dict[str, Any] = {"session": session, "frame": np.full((240, 320, 3), 90, np.uint8)}
    exec(compile(correcting, "streams.md", "exec"), names)
    assert names["result"].masks.shape == (1, 240, 320)
    assert session.expressions[0] == "the dog on the left"


def test_the_guide_to_worlds_shows_what_its_snippets_print(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "worlds.md").read_text(encoding="utf-8")
    drawing, conversation = re.findall(r"```python\n(.+?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(drawing, "worlds.md", "exec"), names)
    assert names["masks"].shape == (8, 128, 128)
    quoted, targets = re.findall(r'# "(.+)" (\(.+\))', drawing)[0]
    assert f"{quoted} {targets}" in capsys.readouterr().out.splitlines()
    exec(compile(conversation, "worlds.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed
    assert printed in page
    assert names["masks"].shape == (3, 16, 128, 128)


def test_the_first_steps_show_what_their_snippets_print(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.+?)```\n(?:\n```\n(.+?)```)?", page, re.DOTALL)
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    for code, output in snippets:
        exec(compile(code, "first-steps.md", "exec"), names)
        printed = [numbers(line) for line in capsys.readouterr().out.splitlines()]
        expected = [numbers(line) for line in output.splitlines()]
        assert len(printed) == len(expected)
        for line, wanted in zip(printed, expected, strict=True):
            frame, *presence = line[:3]
            assert frame == wanted[0]
            assert presence == pytest.approx(wanted[1:3], abs=0.11)  # rounded to tenths, on any CPU
            assert line[3:] == pytest.approx(wanted[3:], rel=0.05)
            star = wanted[-1]
    assert names["result"].masks[1].sum() == pytest.approx(star, rel=0.05)  # the correction was undone
