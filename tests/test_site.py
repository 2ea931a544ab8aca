"""The documentation site: built without a warning, with links that lead to files; a broken one is an error."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the extra 'docs' builds the site")

ROOT = Path(__file__).parents[1]


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build a site as ``make docs`` does."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(site),
    ]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    built = build(ROOT / "mkdocs.yml", tmp_path)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr

    home = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="evaluation/#diagnosis"' in home
    assert re.search(r'<img [^>]*src="images/demo.png"', home)
    models = (tmp_path / "reference/models/index.html").read_text(encoding="utf-8")
    assert 'id="refervos.load"' in models
    assert "save_pretrained" in models
    source = (tmp_path / "src/refervos/session/scene_changes.py/index.html").read_text(encoding="utf-8")
    assert "What changed between one frame of a stream and the next" in source
    assert not (tmp_path / "repository_files.py").exists()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository with one page beside its home, and the hook."""
    root = tmp_path / "small"
    (root / "docs" / "guides").mkdir(parents=True)
    (root / "code").mkdir()
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        (root / name).write_text("# Page\n")
    (root / "README.md").write_text("# Home\n\n[the guide](docs/guides/one.md#part)\n")
    (root / "docs" / "guides" / "one.md").write_text("# One\n\n## Part\n\n[code](../../code/program.py)\n")
    (root / "code" / "program.py").write_text("print('```')\n")
    shutil.copy(ROOT / "docs" / "repository_files.py", root / "docs")
    (root / "mkdocs.yml").write_text(
        "site_name: small\nhooks: [docs/repository_files.py]\nexclude_docs: '*.py'\n"
        "validation: {links: {anchors: warn}}\nmarkdown_extensions: [pymdownx.superfences]\n"
    )
    return root


def test_links_between_files_are_links_between_pages(small: Path, tmp_path: Path) -> None:
    built = build(small / "mkdocs.yml", tmp_path / "site")
    assert built.returncode == 0, built.stderr
    assert 'href="guides/one/#part"' in (tmp_path / "site/index.html").read_text(encoding="utf-8")
    assert 'href="../../code/program.py/"' in (tmp_path / "site/guides/one/index.html").read_text(encoding="utf-8")
    assert "print" in (tmp_path / "site/code/program.py/index.html").read_text(encoding="utf-8")


def test_what_a_code_block_says_is_no_link(small: Path, tmp_path: Path) -> None:
    (small / "README.md").write_text("# Home\n\n```\n[x](docs/guides/one.md)\n```\n")
    built = build(small / "mkdocs.yml", tmp_path / "site")
    assert built.returncode == 0, built.stderr
    assert "[x](docs/guides/one.md)" in (tmp_path / "site/index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "link", ["docs/guides/two.md", "docs/guides/one.md#parts", "code/gone.py", "../outside.md", "docs/images/gone.png"]
)
def test_a_broken_link_is_an_error(link: str, small: Path, tmp_path: Path) -> None:
    (small / "README.md").write_text(f"# Home\n\n[broken]({link})\n")
    built = build(small / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0
    assert link.removeprefix("docs/").partition("#")[0] in built.stderr
