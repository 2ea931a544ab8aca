"""A tool that is not installed is named in one sentence, with the command that installs it, before any work is done."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from difficult_masks import difficult_video
from refervos.cli.entry import app
from refervos.errors import MissingDependencyError
from refervos.integrations.napari import add_video
from refervos.integrations.rerun import RerunSink

VIDEO = Path(__file__).parents[1] / "examples" / "data" / "shapes.mp4"


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refervos.errors._is_installed", lambda package: False)
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    monkeypatch.delitem(sys.modules, "refervos.integrations.fiftyone", raising=False)


def test_rerun(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[rerun\]'"):
        RerunSink(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rerun_at_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["segment", str(VIDEO), "the red circle", "--save", "masks", "--save", "rerun", "--out", str(out)]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, MissingDependencyError)
    assert str(done.exception) == "rerun output needs rerun: pip install 'refervos[rerun]'."
    assert [path for path in out.rglob("*") if path.is_file()] == []


def test_napari() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[napari\]'"):
        add_video(None, difficult_video())  # type: ignore[arg-type, unused-ignore]


def test_fiftyone() -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[fiftyone\]'"):
        import refervos.integrations.fiftyone  # noqa: F401
