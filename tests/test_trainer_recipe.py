"""Recipes: what is understood, and the one sentence for what is not."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refervos.errors import ConfigError, MissingDependencyError, TrainingError
from refervos.training import plan
from refervos.training import recipe as recipes
from refervos.training.plan import make_plans
from refervos.training.recipe import (
    OptimiserRecipe,
    StageRecipe,
    read_recipe,
    recipe_from_mapping,
    shortened,
    with_steps,
)
from refervos.training.schedule import learning_rate
from refervos.training.stage import stage_class

TOY = "training_stages:ToyStage"


def stage(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "stage": TOY, "steps": 10, "batch": 4, **changes}


def test_a_recipe_is_read_as_it_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        """
        name: small
        stages:
          - {name: a, stage: track, steps: 10, batch: 4, precision: no}
          - name: b
            stage: video
            steps: 10
            batch: 4
            init: {tracker: a, text: some/folder}
            optimiser: {rate: 1e-3, betas: [0.9, 0.95], clip_norm: null}
            settings: &shared {frames: [1, 4], deep: {yes: 1}}
          - name: c
            stage: video
            steps: 10
            batch: 4
            settings: {<<: *shared, frames: [8]}
        """
    )
    recipe = read_recipe(path)
    first, second, third = recipe.stages
    assert (recipe.name, recipe.seed) == ("small", 0)
    assert (first.precision, first.inits, first.schedule) == ("no", {}, "cosine")
    assert second.inits == {"tracker": "a", "text": "some/folder"}
    assert second.optimiser == OptimiserRecipe(rate=0.001, betas=(0.9, 0.95), clip_norm=None)
    assert second.settings == {"frames": [1, 4], "deep": {"yes": 1}}
    assert third.settings == {"frames": [8], "deep": {"yes": 1}}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "x"}, "stages is missing"),
        ({"name": "x", "stages": []}, "stages is empty"),
        ({"name": "x", "stages": [stage()], "sead": 1}, "unknown field sead"),
        ({"name": "a b", "stages": [stage()]}, "'a b' is no folder name"),
        ({"name": "x", "stages": [stage()], "seed": -1}, "seed is -1"),
        ({"name": "x", "stages": [{"name": "a", "stage": TOY}]}, "stages[0]: batch is missing"),
        ({"name": "x", "stages": [stage(lr=1)]}, "stages[0]: unknown field lr"),
        ({"name": "x", "stages": [stage(name="../a")]}, "'../a' is no folder name"),
        ({"name": "x", "stages": [stage(name="previous")]}, "'previous' is no folder name"),
        ({"name": "x", "stages": [stage(), stage()]}, "two stages are called 'a'"),
        ({"name": "x", "stages": [stage(steps="many")]}, "steps is 'many' where int is expected"),
        ({"name": "x", "stages": [stage(steps=True)]}, "steps is True where int is expected"),
        ({"name": "x", "stages": [stage(steps=0)]}, "stage 'a': it needs steps, 1 or more, or else epochs"),
        ({"name": "x", "stages": [stage(steps=-1)]}, "steps is -1; it must be 0 or more"),
        ({"name": "x", "stages": [stage(epochs=2)]}, "stage 'a': it needs steps, 1 or more, or else epochs"),
        ({"name": "x", "stages": [stage(steps=0, epochs=0)]}, "epochs is 0; it must be more than 0"),
        ({"name": "x", "stages": [stage(log_every=0)]}, "log_every is 0; it must be 1 or more"),
        ({"name": "x", "stages": [stage(validate_every=0)]}, "validate_every is 0; it must be 1 or more"),
        ({"name": "x", "stages": [stage(accumulate=3)]}, "batch is 4, which accumulate (3) does not divide"),
        ({"name": "x", "stages": [stage(schedule="cosinus")]}, "one of 'cosine', 'linear', 'constant'"),
        ({"name": "x", "stages": [stage(precision="int8")]}, "precision is 'int8'"),
        ({"name": "x", "stages": [stage(init=3)]}, "init is 3"),
        ({"name": "x", "stages": [stage(init={"text": 1})]}, "init is {'text': 1}"),
        ({"name": "x", "stages": [stage(init="previous")]}, "begins from 'previous', which does not come before"),
        ({"name": "x", "stages": [stage(init="b"), stage(name="b")]}, "begins from 'b', which does not come before"),
        ({"name": "x", "stages": [stage(optimiser={"rate": 0})]}, "optimiser.rate is 0"),
        ({"name": "x", "stages": [stage(optimiser={"rate": 0.1, "final_rate": 1})]}, "optimiser.final_rate is 1"),
        ({"name": "x", "stages": [stage(optimiser={"warmup": 10})]}, "optimiser.warmup is 10"),
        ({"name": "x", "stages": [stage(optimiser={"weight_decay": -1})]}, "optimiser.weight_decay is -1"),
        ({"name": "x", "stages": [stage(optimiser={"clip_norm": 0})]}, "optimiser.clip_norm is 0"),
        ({"name": "x", "stages": [stage(optimiser={"betas": [0.9]})]}, "betas is (0.9,) where tuple[float, float]"),
        ({"name": "x", "stages": [stage(optimiser={"betas": [0.9, 1]})]}, "optimiser.betas is [0.9, 1]"),
        ({"name": "x", "stages": [stage(settings=[1])]}, "settings is (1,)"),
    ],
)
def test_mistakes_are_told_in_one_sentence(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as told:
        recipe_from_mapping(values, "recipe.yaml")
    assert sentence in str(told.value)
    assert str(told.value).startswith("recipe.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "no readable YAML"),
        ("- a", "holds a list"),
        ("", "holds a NoneType"),
        ("name: a\nname: b", "'name' is given twice"),
        ("a: !!python/object/apply:os.getcwd []", "no readable YAML"),
    ],
)
def test_what_is_no_mapping_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_recipe(path)


def test_a_recipe_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "image.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(TrainingError, match="no text"):
        read_recipe(tmp_path / "image.yaml")


def test_without_pyyaml_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "refervos.training.yaml_text", raising=False)
    monkeypatch.delattr("refervos.training.yaml_text", raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    (tmp_path / "recipe.yaml").write_text("name: a")
    with pytest.raises(MissingDependencyError, match=r"pip install 'refervos\[train\]'"):
        read_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"stage": "nothing"}, TrainingError, "there is no stage 'nothing'; known stages are track,"),
        ({"stage": "no.such.module:Stage"}, TrainingError, "cannot be imported from no.such.module"),
        ({"stage": "training_stages:Nothing"}, TrainingError, "cannot be imported from training_stages"),
        ({"stage": "training_stages:ToyModel"}, TrainingError, "is no subclass of"),
        ({"settings": {"depth": 3}}, ConfigError, "settings of stage 'a': unknown field depth"),
        ({"settings": {"width": "x"}}, ConfigError, "settings of stage 'a': width is 'x' where int is expected"),
        ({"init": "no-such-folder"}, TrainingError, "begins from 'no-such-folder', which is no earlier stage"),
        ({"init": "./no/such"}, TrainingError, "begins from './no/such', which is no earlier stage"),
    ],
)
def test_stages_are_resolved_before_anything_begins(
    changes: dict[str, Any], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    recipe = recipe_from_mapping({"name": "x", "stages": [stage(**changes)]})
    with pytest.raises(error) as told:
        make_plans(recipe, tmp_path)
    assert sentence in str(told.value)


def test_weights_of_the_hub_may_have_the_older_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def fetch(repository: str, patterns: list[str], advice: str) -> Path:
        asked.append((repository, patterns))
        return tmp_path / repository

    monkeypatch.setattr(plan, "fetch", fetch)
    (tmp_path / "new" / "sam").mkdir(parents=True)
    (tmp_path / "new" / "sam" / "model.safetensors").touch()
    (tmp_path / "old" / "t5").mkdir(parents=True)
    recipe = recipe_from_mapping({"name": "x", "stages": [stage(init={"sam": "new/sam", "text": "old/t5"})]})
    (planned,) = make_plans(recipe, tmp_path / "out")
    assert planned.init == {"sam": tmp_path / "new" / "sam", "text": tmp_path / "old" / "t5"}
    assert [repository for repository, _ in asked] == ["new/sam", "old/t5", "old/t5"]
    assert asked[-1][1] == ["pytorch_model*"]
    assert {"*.safetensors", "spiece.model"} <= set(asked[0][1])


def test_what_stages_begin_from_is_resolved_by_role(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()
    stages = [
        stage(),
        stage(name="b", init="previous"),
        stage(name="c", init={"tracker": "a", "text": "previous", "rest": str(given)}),
    ]
    recipe = recipe_from_mapping({"name": "x", "stages": stages})
    plans = make_plans(recipe, tmp_path / "out")
    out = tmp_path / "out"
    assert [plan.init for plan in plans] == [
        {},
        {"model": out / "a" / "model"},
        {"tracker": out / "a" / "model", "text": out / "b" / "model", "rest": given},
    ]
    with pytest.raises(TrainingError, match="'b' begins from 'a', which is not trained yet"):
        make_plans(recipe, out, ["b"])
    with pytest.raises(TrainingError, match="has no stage 'd'; it has a, b, c"):
        make_plans(recipe, out, ["d"])


def test_the_stages_of_the_package_are_named_lazily() -> None:
    assert stage_class(TOY).__name__ == "ToyStage"
    assert "refervos.training.stage" in sys.modules  # which alone imports none of the stages' modules


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("cosine", [0.25, 0.5, 0.75, 1.0, 0.775, 0.325, 0.1]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 0.7, 0.4, 0.1]),
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rates(schedule: Any, rates: list[float]) -> None:
    optimiser = OptimiserRecipe(rate=1.0, final_rate=0.1, warmup=3)
    recipe = StageRecipe("a", TOY, steps=7, batch=1, schedule=schedule, optimiser=optimiser)
    assert [learning_rate(recipe, step) for step in range(7)] == pytest.approx(rates)


def test_a_single_step_has_the_full_rate() -> None:
    assert learning_rate(StageRecipe("a", TOY, steps=1, batch=1, optimiser=OptimiserRecipe(rate=0.5)), 0) == 0.5


def test_a_shortened_recipe_only_has_fewer_steps() -> None:
    long = StageRecipe("a", TOY, steps=1000, batch=1, optimiser=OptimiserRecipe(warmup=200))
    recipe = recipes.Recipe("x", (long, replace(long, name="b", steps=15, optimiser=OptimiserRecipe())))
    short = shortened(recipe, 20)
    assert [stage.steps for stage in short.stages] == [20, 15]
    assert short.stages[0].optimiser.warmup == 2
    assert recipes.stored_text(short, short.stages[1], OptimiserRecipe(), {}).count("steps: 15") == 1
    recipes.check_recipe(short)
    with pytest.raises(ConfigError, match="steps is 0"):
        shortened(recipe, 0)


def test_epochs_become_steps() -> None:
    told = StageRecipe(name="a", stage=TOY, batch=8, epochs=1.5)
    assert with_steps(told, 33).steps == 7  # 49.5 samples in batches of 8
    assert with_steps(StageRecipe(name="a", stage=TOY, batch=8, steps=3), 33).steps == 3
    with pytest.raises(TrainingError, match="drawn without end"):
        with_steps(told, None)
    with pytest.raises(TrainingError, match=r"1.5 epochs are 7 steps, and optimiser.warmup is 7"):
        with_steps(StageRecipe(name="a", stage=TOY, batch=8, epochs=1.5, optimiser=OptimiserRecipe(warmup=7)), 33)
    (short,) = shortened(recipe_from_mapping({"name": "x", "stages": [stage(steps=0, epochs=9)]}), 20).stages
    assert (short.steps, short.epochs) == (20, None)
