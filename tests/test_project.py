"""What the files around the package say is so: versions, commands, names of files, links, other systems."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import refervos
from systems import NOT_IMPORTED_ON_WINDOWS, lacking

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MARKDOWN = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md", "weights/*.md", "recipes/*.md")
    for path in ROOT.glob(pattern)
)


def requirements(extra: str | None = None) -> Iterator[Requirement]:
    """What the package or one of its extras needs, extras that it names included."""
    lines = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    for requirement in map(Requirement, lines):
        if requirement.name == PROJECT["name"]:
            for named in requirement.extras:
                yield from requirements(named)
        else:
            yield requirement


def pins(file: str) -> dict[str, str]:
    """Versions that a file of constraints names."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [line.partition("==") for line in lines if not line.startswith("#")]
    names = [name for name, _, _ in found]
    assert len(names) == len(set(names))
    return {name: version for name, _, version in found}


DEVELOPED_WITH = [*requirements(), *requirements("dev")]


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_what_is_developed_with_is_pinned_within_its_bounds(file: str) -> None:
    pinned = pins(file)
    assert set(pinned) == {requirement.name for requirement in DEVELOPED_WITH}
    for requirement in DEVELOPED_WITH:
        assert requirement.specifier.contains(pinned[requirement.name]), str(requirement)


def test_the_lowest_versions_are_those_that_the_project_allows() -> None:
    pinned = pins("constraints-lowest.txt")
    for requirement in DEVELOPED_WITH:
        (bound,) = requirement.specifier
        assert bound.operator == ">="
        release = Version(bound.version).release
        # Of 4.8 the lowest may be 4.8.0.76: the first that was published.
        assert Version(pinned[requirement.name]).release[: len(release)] == release, str(requirement)


def test_what_is_wanted_twice_is_wanted_in_one_version() -> None:
    bounds: dict[str, set[str]] = {}
    for extra in (None, *PROJECT["optional-dependencies"]):
        for requirement in requirements(extra):
            bounds.setdefault(requirement.name, set()).add(str(requirement.specifier))
    assert {name: several for name, several in bounds.items() if len(several) > 1} == {}


def test_the_citation_is_of_this_version_and_names_the_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["title"] == PROJECT["name"]
    assert str(citation["version"]) == refervos.__version__
    papers = {reference["url"].removeprefix("https://arxiv.org/abs/") for reference in citation["references"]}
    assert papers == {"2411.17646", "2408.00714", "2307.00997", "2411.04923"}


def test_workflows_hooks_and_documents_use_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    files = [*(ROOT / ".github/workflows").glob("*.yml"), ROOT / ".pre-commit-config.yaml", *MARKDOWN]
    used = {
        (target, file.name)
        for file in files
        for target in re.findall(r"(?:^|`|run: |entry: )make ([\w-]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"test", "lowest", "docs", "lint"} <= {target for target, _ in used}
    assert {each for each in used if each[0] not in targets} == set()


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def place(path: str) -> Path:
    """A file as the guide for contributors names it, from the root or from the package."""
    return ROOT / path if (ROOT / path).exists() else ROOT / "src/refervos" / path


def test_the_guide_for_contributors_names_files_that_exist() -> None:
    named = re.findall(r"`([\w.-]+/[\w./-]*)`", CONTRIBUTING)
    assert len(named) > 20
    assert [path for path in named if not place(path).exists()] == []


def test_the_guide_for_contributors_names_what_is_in_these_files() -> None:
    pairs = re.findall(r"`(\w+)`(?:\s\w+)? (?:of|in)\s+`([\w./-]+\.\w+)`", CONTRIBUTING)
    pairs += re.findall(r"`(\w+)` \(`(src/[\w./-]+\.py)`\)", CONTRIBUTING)
    assert len(pairs) > 8
    for name, file in pairs:
        assert re.search(rf"\b{name}\b", place(file).read_text(encoding="utf-8")), f"{name} in {file}"


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s#]+)", text)
    here = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in here if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    ("source", "linux", "darwin", "win32"),
    [
        ("model.open(['the dog'])", None, None, None),
        ("os.mkfifo(path)", None, None, "os.mkfifo"),
        ("process.send_signal(signal.SIGKILL)", None, None, "SIGKILL"),
        ("import resource, sys", None, None, "import resource"),
        ("Path('/proc/self/statm')", None, "/proc/", "/proc/"),
        ("open('/dev/full')", None, "/dev/full", "/dev/full"),
    ],
)
def test_a_test_is_skipped_where_the_system_lacks_what_it_needs(
    source: str, linux: str | None, darwin: str | None, win32: str | None
) -> None:
    for platform, what in (("linux", linux), ("darwin", darwin), ("win32", win32)):
        assert lacking(source, platform) == (None if what is None else f"{platform} has no {what}")


def used_at_import(node: ast.AST) -> Iterator[str]:
    """What a file imports and which attributes it reads when it is imported, bodies of functions left out."""
    if isinstance(node, ast.Import):
        yield from (f"import {alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute):
        yield ast.unparse(node)
    inner = (
        [*node.decorator_list, *node.args.defaults] if isinstance(node, ast.FunctionDef) else ast.iter_child_nodes(node)
    )
    for child in inner:
        yield from used_at_import(child)


def test_what_windows_cannot_import_is_not_collected_there() -> None:
    for file in sorted(Path(__file__).parent.glob("*.py")):
        if file.name not in NOT_IMPORTED_ON_WINDOWS:
            used = used_at_import(ast.parse(file.read_text(encoding="utf-8")))
            assert [each for each in used if lacking(each, "win32")] == [], file.name
