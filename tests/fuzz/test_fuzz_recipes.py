"""Spoilt recipes: arbitrary YAML, and invalid values."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from judge import POSIX, command, fresh, inputs, judge
from refervos.training.history import History
from refervos.training.report import draw_losses
from spoil import Draw, one_of, spoil_bytes, spoil_place, spoil_text, spoil_value

pytestmark = [POSIX, pytest.mark.usefixtures("one_thread")]

SMALLEST = yaml.safe_load((Path(__file__).parents[2] / "recipes" / "smallest.yaml").read_text())

SHORT = {"steps": 1, "batch": 2, "checkpoint_every": 1, "log_every": 1, "validation_batches": 1}

IMAGES = {
    "init": {"frozen": "miniature"},
    "settings": {"model": {"adapter_width": 16, "adapter_heads": 2, "short_side": 64, "hsa": False}},
}


def _stage(number: int, **changes: Any) -> dict[str, Any]:
    stage = {**SMALLEST["stages"][number], **SHORT, "optimiser": {"rate": 1e-3}, **changes}
    return {name: value for name, value in stage.items() if value is not None}


STAGES = {
    "toy": {"name": "toy", "stage": "training_stages:ToyStage", "settings": {"width": 4}, **SHORT},
    "language": _stage(0),
    "track": _stage(1),
    "images": _stage(3, **IMAGES),
}

DOCUMENTS = (
    "a: &a [*a]\n",
    "&a {name: *a}\n",
    "a: &a [x, x, x, x, x, x, x, x, x]\n"
    + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    "[" * 20_000,
    "{" * 5000 + "}" * 5000,
    "a: " * 3000,
    "- " * 5000,
    "!!python/object/apply:os.system ['true']\n",
    "!!binary x\n",
    "name: !!set {a, b}\nstages: []\n",
    "name: 2020-01-01\nseed: 1:30\nstages: 0x1F\n",
    "name: a\nname: b\n",
    "a: b\n---\nc: d\n",
    "\t\n",
    "name: \x1b[31m\n",
    "? [a, b]\n: c\n",
    "<<: {name: a}\n",
    "name: a\nstages:\n  <<: *x\n",
    "%YAML 9.9\n---\nname: a\n",
    f"seed: {'9' * 6000}\n",
    f"seed: .{'9' * 6000}e{'9' * 50}\n",
    "name: *none\n",
    "null\n",
    "# nothing\n",
)


def spoil_recipe(draw: Draw, recipe: dict[str, Any]) -> tuple[bytes, str]:
    """Change a recipe and return its file content and a description."""
    kind = one_of(draw, *["value"] * 6, "text", "text", "bytes", "document")
    if kind == "document":
        return one_of(draw, *DOCUMENTS).encode(), kind
    if kind == "value":
        for _ in range(one_of(draw, 1, 1, 2)):
            recipe = spoil_value(draw, recipe)
    try:
        text = yaml.safe_dump(recipe, sort_keys=False)
    except RecursionError:
        text = json.dumps(recipe)  # JSON is valid YAML
    if kind == "text":
        text = spoil_text(draw, text)
    content = text.encode("utf-8", "surrogatepass")
    return (spoil_bytes(draw, content) if kind == "bytes" else content), kind


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Import once the modules of training."""
    for name in ("torch.testing", "torch.utils.tensorboard", "refervos.training.trainer"):
        importlib.import_module(name)
    for stage in ("language", "samwise", "track"):
        importlib.import_module(f"refervos.training.stages.{stage}")
    folder = tmp_path_factory.mktemp("drawn")
    history = History(folder / "history.jsonl", 0)
    for step in range(3):
        history.add(step, "train", {"loss": 1.0})
    draw_losses(history, folder / "loss.png")


@pytest.mark.parametrize("name", STAGES)
@inputs(4)
@given(data=st.data())
def test_a_spoilt_recipe_trains_or_is_refused_in_one_sentence(name: str, tmp_path: Path, data: st.DataObject) -> None:
    draw: Draw = data.draw
    folder = fresh(tmp_path)
    folder.mkdir()
    path = folder / "recipe.yaml"
    content, about = spoil_recipe(draw, {"name": "any", "seed": 1, "stages": [STAGES[name]]})
    path.write_bytes(content)
    if one_of(draw, *[False] * 15, True):
        about = spoil_place(draw, path)
    more = one_of(draw, [], [], ["--stage", STAGES[name]["name"]], ["--stage", "x"], ["--restart"])
    trained = command("train", path, "--out", tmp_path / "out", "--steps", 1, "--quiet", *more)
    judge(trained, folder, out=tmp_path / "out", about=f"{name}: {about} {more}")
