"""Imports point one way: rooms that know no model stay that way, and no room reaches up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import refervos

ROOT = Path(refervos.__file__).parent

BASE = {"errors", "folder_lock", "segmentation", "typed_config"}
ALLOWED = {
    "video": BASE,
    "data": BASE | {"video", "worlds"},
    "metrics": BASE,
    "worlds": BASE,
    "evaluation": BASE
    | {"frames", "prompts", "segmenter", "session", "samwise", "metrics", "worlds", "loading"}
    | {"data", "video", "weights"},
    "training": BASE
    | {"data", "frames", "hub", "loading", "sam2", "samwise", "segmenter", "text", "weights", "worlds"},
    "compilation": BASE | {"sam2", "samwise"},
    "bench": BASE
    | {"compilation", "evaluation", "loading", "metrics", "prompts", "sam2", "samwise", "text", "video", "worlds"},
    "export": BASE | {"frames", "loading", "prompts", "sam2", "samwise", "segmenter", "session", "text", "weights"},
    "text": BASE | {"prompts", "hub", "weights"},
    "frames": BASE,
    "frame_changes": BASE,
    "state_files": BASE | {"video"},
    "prompts": BASE,
    "segmenter": BASE | {"frames", "prompts"},
    "session": BASE | {"frames", "prompts", "segmenter", "frame_changes", "state_files"},
    "pretrained": BASE | {"prompts", "session", "segmenter", "weights"},
    "linear": BASE,
    "attention": BASE | {"linear"},
    "sam2": BASE | {"frames", "prompts", "segmenter", "pretrained", "weights", "linear"},
    "samwise": BASE
    | {"frames", "prompts", "segmenter", "session", "pretrained", "weights", "attention", "linear", "text", "sam2"},
    "pipeline": BASE | {"session", "video"},
}


def imports_of(path: Path) -> Iterator[str]:
    """Rooms of this package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [
                f"{node.module}.{alias.name}" if node.module == "refervos" else node.module for alias in node.names
            ]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.split(".")[1] for name in names if name.startswith("refervos."))


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room: str) -> None:
    files = list((ROOT / room).rglob("*.py")) if (ROOT / room).is_dir() else [ROOT / f"{room}.py"]
    assert files
    for file in files:
        reached = set(imports_of(file)) - {room} - ALLOWED[room]
        assert not reached, f"{file.relative_to(ROOT)} imports {reached}"


def test_only_the_sam2_room_touches_sam2_modules() -> None:
    for file in ROOT.rglob("*.py"):
        if file.relative_to(ROOT).parts[0] != "sam2":
            assert "Sam2Video" not in file.read_text(), file
