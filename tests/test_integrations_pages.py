"""The examples on the pages of the integrations run, and print what is written below them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from refervos.errors import MissingDependencyError

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "integrations").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_print_what_is_below_them(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    snippets = re.findall(r"```python\n(.+?)```\n(?:\n```\n(.+?)```)?", page.read_text(encoding="utf-8"), re.DOTALL)
    for code, _ in snippets:
        for package in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
            pytest.importorskip(package, reason=f"the page needs {package}, which an extra installs")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code, output in snippets:
        try:
            exec(compile(code, page.name, "exec"), names)
        except MissingDependencyError as error:
            pytest.skip(str(error))
        printed = capsys.readouterr().out
        if output:
            assert printed == output
