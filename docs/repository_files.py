"""A hook of MkDocs: the site also holds the files outside of ``docs`` that its pages link to.

Links in the Markdown of this repository lead from file to file, as a code host follows them. For the site, a linked
Markdown file becomes a page, a linked text file a page that shows it, and anything else is copied. A link to a file
that does not exist is left as it is, and MkDocs reports it.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
"""Pages at the root of the repository; the first is the home of the site."""

SHOWN = {".cff": "yaml", ".py": "python", ".toml": "toml", ".txt": "text", ".yaml": "yaml", ".yml": "yaml", "": "text"}
"""Files that are shown on a page, and how they are highlighted."""

FENCED = re.compile(r"^(?P<fence> *`{3,}).*?^(?P=fence) *$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)\s#]+|(?<=\bsrc=\")(?![a-z]+:)[^\"#]+")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that are linked to, and those that these link to."""
    root = Path(config.config_file_path).parent
    for path in PAGES:
        files.append(File.generated(config, path, abs_src_path=str(root / path)))
    waiting = files.documentation_pages()
    while waiting:
        page = waiting.pop()
        for path in _targets(page.content_string, page.src_uri, root):
            uri = _uri(path)
            if files.get_file_from_path(uri) is None:
                file = _brought_in(path, uri, config, root)
                files.append(file)
                waiting.extend([file] if path.endswith(".md") else [])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have the links of a page lead to where the site has the files."""
    root = Path(config.config_file_path).parent
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        path = _target(match[0], page.file.src_uri, root)
        return match[0] if path is None else posixpath.relpath(_uri(path), here or ".")

    return _outside_fences(markdown, lambda text: LINK.sub(moved, text))


def _targets(markdown: str, uri: str, root: Path) -> list[str]:
    """Paths in the repository of all files that a page links to."""
    found: list[str] = []

    def note(text: str) -> str:
        found.extend(filter(None, (_target(link, uri, root) for link in LINK.findall(text))))
        return text

    _outside_fences(markdown, note)
    return found


def _target(link: str, uri: str, root: Path) -> str | None:
    """Path in the repository of the file that a link on a page leads to; None where there is no such file."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(_path(uri, root)), link))
    return path if not path.startswith("..") and (root / path).is_file() else None


def _path(uri: str, root: Path) -> str:
    """Path in the repository of a page of the site."""
    return f"docs/{uri}" if (root / "docs" / uri).is_file() else uri


def _uri(path: str) -> str:
    """Where the site has a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{path}.md" if _language(path) is not None else path


def _language(path: str) -> str | None:
    """How a file is highlighted; None for one that is not shown on a page of its own making."""
    return SHOWN.get(os.path.splitext(path)[1])


def _brought_in(path: str, uri: str, config: MkDocsConfig, root: Path) -> File:
    """A file of the site for one outside of ``docs``."""
    language = _language(path)
    if language is None:
        return File.generated(config, uri, abs_src_path=str(root / path), inclusion=InclusionLevel.NOT_IN_NAV)
    text = (root / path).read_text(encoding="utf-8")
    shown = f"---\nsearch:\n  exclude: true\n---\n# `{path}`\n\n``````{language}\n{text}\n``````\n"
    return File.generated(config, uri, content=shown, inclusion=InclusionLevel.NOT_IN_NAV)


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Change Markdown but for its code blocks."""
    parts, end = [], 0
    for match in FENCED.finditer(markdown):
        parts += [change(markdown[end : match.start()]), match[0]]
        end = match.end()
    return "".join([*parts, change(markdown[end:])])
