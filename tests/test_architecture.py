"""Imports point one way: rooms that know no model stay that way, and no room reaches up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import refervos

# A row holds for a folder or a file; a file of a folder may have a row of its own, where one family is known by name.
ROOT = Path(refervos.__file__).parent

BASE = {"errors", "folder_lock", "pictures", "plain_text", "safe_text", "segmentation", "typed_config"}
MODEL_PARTS = {
    *("attention", "borders", "compilation", "derived", "frames", "linear", "precision"),
    *("pretrained", "prompts", "segmenter", "state_files", "weights"),
}
STAGE_PARTS = {"loading", "text", "worlds"}
ALLOWED = {
    "video": BASE,
    "data": BASE | {"video", "worlds"},
    "metrics": BASE,
    "worlds": BASE,
    "evaluation": BASE
    | {"borders", "frames", "prompts", "segmenter", "session", "metrics", "worlds", "loading"}
    | {"data", "video", "weights"},
    "training": BASE
    | {"data", "frames", "hub", "loading", "metrics", "text", "trainable", "weights", "weight_files", "worlds"},
    "training/stages/track": BASE | STAGE_PARTS | {"sam2"},
    "training/stages/movement": BASE | STAGE_PARTS | {"samwise"},
    "training/stages/samwise": BASE | STAGE_PARTS | {"sam2", "samwise"},
    "training/stages/sam": BASE | STAGE_PARTS | {"sam"},
    "training/stages/refsam": BASE | STAGE_PARTS | {"refsam", "sam"},
    "compilation": BASE | {"cuda_graphs"},
    "cuda_graphs": BASE,
    "derived": BASE | {"precision"},
    "precision": BASE,
    "bench": BASE | {"compilation", "evaluation", "linear", "loading", "metrics", "prompts", "text", "video", "worlds"},
    "bench/families": BASE | {"refsam", "sam2", "samwise", "text"},
    "export": BASE
    | {"borders", "frames", "loading", "prompts", "sam2", "samwise", "segmenter", "session", "text", "weights"},
    "text": BASE | {"hub", "linear", "precision", "prompts", "weights"},
    "borders": BASE,
    "frames": BASE | {"borders"},
    "frame_changes": BASE | {"state_files"},
    "state_files": BASE | {"video"},
    "prompts": BASE,
    "segmenter": BASE | {"frames", "prompts"},
    "session": BASE | {"borders", "frames", "prompts", "segmenter", "frame_changes", "state_files"},
    "pretrained": BASE | {"borders", "compilation", "derived", "prompts", "session", "segmenter", "weights"},
    "linear": BASE,
    "attention": BASE | {"linear"},
    "trainable": BASE | {"frames", "pretrained", "segmenter", "text"},
    "sam_names": BASE | {"weights"},
    "sam": BASE | MODEL_PARTS | {"sam_names"},
    "sam2": BASE | MODEL_PARTS | {"sam", "sam_names"},
    "samwise": BASE | MODEL_PARTS | {"session", "text", "trainable", "sam2"},
    "refsam": BASE | MODEL_PARTS | {"session", "text", "trainable", "sam"},
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
    own_rows = {ROOT / f"{other}.py" for other in ALLOWED if other != room}
    assert files
    for file in set(files) - own_rows:
        reached = set(imports_of(file)) - {room.split("/")[0]} - ALLOWED[room]
        assert not reached, f"{file.relative_to(ROOT)} imports {reached}"


def test_only_the_sam2_room_touches_sam2_modules() -> None:
    for file in ROOT.rglob("*.py"):
        if file.relative_to(ROOT).parts[0] != "sam2":
            assert "Sam2Video" not in file.read_text(), file
