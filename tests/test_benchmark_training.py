"""The recipes of the paper's stages, run for a few steps on generated data in the published layouts.

The miniatures' frozen parts replace SAM2, RoBERTa, SAM and T5; otherwise the recipes are unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layouts import write_mevis, write_ref_davis17, write_ref_youtube_vos
from layouts_images import write_refcoco
from refervos import load
from refervos.errors import TrainingError
from refervos.refsam.model import RefSam
from refervos.samwise.model import Samwise
from refervos.training.recipe import Recipe, read_recipe
from refervos.training.trainer import train
from training_runs import history

RECIPES = Path(__file__).parents[1] / "recipes"


def write_refer(root: Path) -> None:
    for name, partition in (("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")):
        write_refcoco(root, name, ("train", "train", "val"), partition)


def write_both_mevis(root: Path) -> None:
    for split in ("train", "valid_u"):
        write_mevis(root, split, videos=1, frames=9)


WRITERS: dict[str, dict[str, Callable[[Path], object]]] = {
    "samwise-refcoco": {"refer": write_refer},
    "samwise-mevis": {"mevis": write_both_mevis},
    "samwise-ref-youtube-vos": {
        "ref-youtube-vos": lambda root: write_ref_youtube_vos(root, "train", videos=1, frames=9),
        "ref-davis17": lambda root: write_ref_davis17(root, "val", videos=1, frames=9),
    },
}
WRITERS["refsam-refcoco"] = WRITERS["samwise-refcoco"]
WRITERS["refsam-ref-youtube-vos"] = WRITERS["samwise-ref-youtube-vos"]

FROZEN = {"samwise": "miniature", "refsam": "refsam-miniature"}
CHANGES: dict[str, dict[str, Any]] = {
    "samwise": {"adapter_width": 16, "adapter_heads": 2, "short_side": 128},
    "refsam": {"adapter_ratio": 0.1},
}


def small(name: str, data: Path, **changes: Any) -> Recipe:
    """Adapt a published recipe to generated data, small frozen parts and few, small steps."""
    recipe = read_recipe(RECIPES / f"{name}.yaml")
    (stage,) = recipe.stages
    settings = dict(stage.settings)
    for role in ("data", "validation"):
        settings[role] = [{**source, "folder": str(data / Path(source["folder"]).name)} for source in settings[role]]
    family = name.partition("-")[0]
    settings["model"] = {**settings.get("model", {}), **CHANGES[family]}
    frozen = {"frozen": FROZEN[family]}
    stage = dataclasses.replace(
        stage, init=frozen, settings=settings, steps=2, epochs=None, batch=2, accumulate=1, workers=0,
        log_every=1, validation_batches=1, checkpoint_every=2,
    )  # fmt: skip
    return dataclasses.replace(recipe, stages=(dataclasses.replace(stage, **changes),))


@pytest.mark.parametrize("name", WRITERS)
def test_a_published_recipe_trains_on_its_benchmark(name: str, tmp_path: Path) -> None:
    for folder, write in WRITERS[name].items():
        write(tmp_path / "data" / folder)
    recipe = small(name, tmp_path / "data")
    train(recipe, tmp_path / "run", show_progress=False)
    (stage,) = recipe.stages
    rows = history(tmp_path / "run" / stage.name)
    losses = [row["train"]["loss"] for row in rows if "train" in row]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)
    (validation,) = [row["validation"] for row in rows if "validation" in row]
    assert any(measured.startswith("iou ") for measured in validation)
    model = load(tmp_path / "run" / stage.name / "model", device="cpu")
    if stage.stage == "refsam":
        assert isinstance(model, RefSam)
        assert model.config.adapter_ratio == 0.1
        return
    assert isinstance(model, Samwise)
    images = stage.stage == "images"
    assert model.config.cme == model.config.hsa == (not images)
    assert model.config.sam2.object_score == (not images)


def test_epochs_are_counted_in_sentences_of_the_data(tmp_path: Path) -> None:
    write_refer(tmp_path / "data" / "refer")
    recipe = small("samwise-refcoco", tmp_path / "data", steps=0, epochs=0.1, batch=4)
    (stage,) = recipe.stages
    train(recipe, tmp_path / "run", show_progress=False)
    sentences = sum(len(open_sentences(tmp_path, source)) for source in stage.settings["data"])
    assert history(tmp_path / "run" / "refcoco")[-1]["step"] == -(-sentences // 40)


def open_sentences(root: Path, source: dict[str, str]) -> list[object]:
    from refervos.data.catalogue import open_dataset

    return list(open_dataset(source["name"], Path(source["folder"]), "train").samples)


def test_training_without_validation_data_is_refused(tmp_path: Path) -> None:
    write_refer(tmp_path / "data" / "refer")
    recipe = small("samwise-refcoco", tmp_path / "data")
    (stage,) = recipe.stages
    stage = dataclasses.replace(stage, settings={**stage.settings, "validation": []})
    with pytest.raises(TrainingError, match="no benchmark to validate on"):
        train(dataclasses.replace(recipe, stages=(stage,)), tmp_path / "run", show_progress=False)


def test_epochs_of_worlds_are_refused(tmp_path: Path) -> None:
    write_refer(tmp_path / "data" / "refer")
    recipe = small("samwise-refcoco", tmp_path / "data", steps=0, epochs=1.0)
    (stage,) = recipe.stages
    stage = dataclasses.replace(stage, settings={**stage.settings, "data": [], "validation": []})
    with pytest.raises(TrainingError, match="drawn endlessly, so they have no epochs"):
        train(dataclasses.replace(recipe, stages=(stage,)), tmp_path / "run", show_progress=False)
