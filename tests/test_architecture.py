"""Imports between rooms follow the diagram of docs/architecture.md."""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import refervos

ROOT = Path(refervos.__file__).parent
DRAWING = Path(__file__).parents[1] / "docs" / "architecture.md"

FACES = {"__init__", "__main__"}
"""Entry points of the package; they may import any room."""

GROUND = {
    "errors",
    "files",
    "markdown",
    "processes",
    "progress",
    "prompts",
    "safe_text",
    "segmentation",
    "typed_config",
}
"""Every room may import these; they import only each other."""

INNER = {"training/stages"}
"""Rooms inside other rooms."""


def room_of(path: Path) -> str:
    """Return the room of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    inner = "/".join(parts[:2])
    return inner if inner in INNER else parts[0]


def imports_of(path: Path) -> Iterator[str]:
    """Yield the rooms of this package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [
                f"{node.module}.{alias.name}" if node.module == "refervos" else node.module for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("refervos."))


@functools.cache
def arrows() -> dict[str, set[str]]:
    """Return the rooms that each room imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in ROOT.rglob("*.py"):
        room = room_of(path)
        found[room] |= set(imports_of(path)) - {room.split("/")[0]}
    return {room: reached for room, reached in found.items() if room not in FACES}


def drawn() -> dict[str, list[str]]:
    """Return the rooms of the diagram from top to bottom, each with the rooms that it may import."""
    block = re.search(r"```rooms\n(.*?)```", DRAWING.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    rows = [line.split("→") for line in block[1].strip().splitlines()]
    return {room.strip(): [] if "-" in below else below.strip().split(", ") for room, below in rows}


def test_every_room_is_drawn() -> None:
    assert set(drawn()) | GROUND == set(arrows())


@pytest.mark.parametrize("room", drawn())
def test_a_room_imports_exactly_the_rooms_of_the_diagram(room: str) -> None:
    assert arrows()[room] - GROUND == set(drawn()[room])


def test_arrows_point_down() -> None:
    order = list(drawn())
    for room, below in drawn().items():
        assert all(order.index(other) > order.index(room) for other in below), room


@pytest.mark.parametrize("room", sorted(GROUND))
def test_the_ground_floor_imports_nothing_above_it(room: str) -> None:
    assert arrows()[room] <= GROUND


def test_the_root_holds_few_modules() -> None:
    assert len(list(ROOT.glob("*.py"))) <= 16


def test_only_the_command_line_imports_typer() -> None:
    for file in ROOT.rglob("*.py"):
        if room_of(file) != "cli":
            assert "typer" not in file.read_text(), file


def test_no_file_patches_another() -> None:
    for file in ROOT.rglob("*.py"):
        assert "unittest" not in file.read_text(), file


def test_only_sam2_and_the_bench_mention_the_sam2_of_transformers() -> None:
    for file in ROOT.rglob("*.py"):
        if room_of(file) not in ("bench", "sam2"):
            assert "Sam2Video" not in file.read_text(), file
