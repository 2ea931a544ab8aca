"""Recipes: reading, checking and resolving them, and one sentence for each mistake."""

from __future__ import annotations

import importlib
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
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
    read_yaml,
    recipe_from_mapping,
    shortened,
    with_steps,
    yaml_text,
)
from refervos.training.schedule import learning_rate
from refervos.training.stage import stage_class

TOY = "training_stages:ToyStage"


def stage(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "stage": TOY, "steps": 10, "batch": 4, **changes}


def test_a_recipe_is_read_with_defaults_anchors_and_merges(tmp_path: Path) -> None:
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
        ({"name": "x", "stages": [stage(init="previous")]}, "starts from 'previous', which does not come before"),
        ({"name": "x", "stages": [stage(init="b"), stage(name="b")]}, "starts from 'b', which does not come before"),
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
def test_a_mistake_is_refused_in_a_sentence_that_names_the_file(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe_from_mapping(values, "recipe.yaml")
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("recipe.yaml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "no readable YAML"),
        ("- a", "holds a list"),
        ("", "holds a NoneType"),
        ("name: a\nname: b", "'name' is given twice, line 2, column 1"),
        ("a: !!python/object/apply:os.getcwd []", "no readable YAML"),
    ],
)
def test_yaml_that_is_no_mapping_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_recipe(path)


def laughs(depth: int) -> str:
    """Nine times nine times nine ... values in a few lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(depth)]
    return "\n".join(lines)


def merged_laughs(depth: int) -> str:
    """The same with merged mappings."""
    lines = ["a0: &a0 {x: 1, y: 2}"]
    lines += [f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}]}}" for n in range(depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (laughs(12), "more than 100000 values; do its aliases multiply"),
        (laughs(200), "more than 100000 values; do its aliases multiply"),
        (merged_laughs(12), "more than 100000 values; do its aliases multiply"),
        ("a: &a [*a]\nname: x\nstages: *a\n", "an alias that contains itself"),
        ("a: &a {b: *a}", "an alias that contains itself"),
        ("a: " + "[" * 20_000, "nested too deep"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "nested too deep"),
        ("a: " + "{a: " * 5_000, "nested too deep"),
        ("a: " + "[x, " * 60, "nested too deep"),
        ("- " * 20_000, "nested too deep"),
        ("\n".join(" " * n + "a:" for n in range(340)), "nested too deep"),
        ("a: " + "x" * 2**21, "at most 65536 of YAML are read"),
        ("a: " + "[ #\n" * 7_000, "nested too deep"),
        ("a: " + "[&a " * 7_000, "nested too deep"),
        ("a: " + "[x, " * 7_000, "nested too deep"),
        ("a: {" + "x," * 5_000 + "}", "'x' is given twice"),
        ("seed: " + "9" * 5_000, "is no readable YAML"),
        ("a: 2020-99-99", "is no readable YAML"),
        ("a: !!python/object/apply:os.system [echo]", "is no readable YAML"),
        ("a: \0", "is no readable YAML"),
        ("? [a, b]\n: c", "is no readable YAML"),
        ("a: !!binary x", "is no readable YAML"),
        ("a: *nothing", "is no readable YAML"),
        ("{a: 1, a: 2}", "'a' is given twice"),
        ("a: {<<: {b: 1}, b: 1, b: 2}", "'b' is given twice"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "'<<' is given twice"),
        ("name: \u202egnp\x1b[31m", "is no readable YAML"),
    ],
)
def test_hostile_yaml_is_refused_at_once(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    before = time.process_time()
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_recipe(tmp_path / "recipe.yaml")
    assert time.process_time() - before < 5
    assert len(str(caught.value)) < 600
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epochs": float("inf"), "steps": 0}, "epochs is inf where a finite number is expected"),
        ({"epochs": float("nan"), "steps": 0}, "epochs is nan"),
        ({"epochs": 10**400, "steps": 0}, "epochs is 1000"),
        ({"epochs": 1e9, "steps": 0}, "it must be more than 0 and at most a million"),
        ({"steps": 10**12}, "steps is 1000000000000; it must be 1000000000 or less"),
        ({"workers": 10**6}, "workers is 1000000; it must be 256 or less"),
        ({"batch": 2**30, "steps": 1}, "batch is 1073741824; it must be 1048576 or less"),
        ({"optimiser": {"rate": float("inf")}}, "rate is inf where a finite number is expected"),
        ({"optimiser": {"betas": [0.9, float("nan")]}}, "betas is .0.9, nan. where"),
        ({"name": "x" * 5000}, "is no folder name of up to 100 letters"),
        ({"name": ".."}, "is no folder name"),
        ({"stage": [[[[]]]]}, "stage is"),
        ({"init": {"model": 3}}, "init is"),
        ({"settings": "x" * 10**6}, "settings is 'xxx"),
    ],
)
def test_values_beyond_their_limits_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        recipe_from_mapping({"name": "r", "stages": [stage(**changes)]})
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("seed", [-1, 2**63, 10**40])
def test_seeds_that_no_generator_accepts_are_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="it must be 0 or more, and less than 2"):
        recipe_from_mapping({"name": "r", "seed": seed, "stages": [stage()]})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"frames": []}, "frames is empty"),
        ({"frames": [0]}, "frames is .0,.; it must be from 1 to 1000"),
        ({"frames": [-3]}, "frames is"),
        ({"frames": [10**9]}, "frames is"),
        ({"chunks": []}, "chunks is empty"),
        ({"chunks": [0]}, "chunks is"),
        ({"aspects": [0.0]}, "aspects is"),
        ({"aspects": [float("inf")]}, "aspects is"),
        ({"sentences": 0}, "sentences is 0; it must be from 1"),
        ({"flip": 2.0}, "flip is 2.0; it must be from 0 to 1"),
        ({"focal": -1.0}, "focal is -1.0"),
        ({"dice": float("nan")}, "dice is nan where a finite number is expected"),
        ({"families": {"colour": -1.0}}, "families is"),
        ({"norm_momentum": 2.0}, "norm_momentum is 2.0"),
        ({"model": {"adapter_width": -5}}, "adapter_width is -5; it must be from 1"),
        ({"model": {"sam2": {"image_size": 10**9 * 64}}}, "image_size is 64000000000"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    recipe = recipe_from_mapping({"name": "r", "stages": [stage(stage="images", settings=settings)]})
    with pytest.raises(ConfigError, match=sentence):
        make_plans(recipe, tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        *(
            (kind, settings, sentence)
            for kind in ("track", "sam")
            for settings, sentence in (
                ({"frames": []}, "frames is empty"),
                ({"frames": [0]}, "frames is .0,.; it must be from 1 to 1000"),
                ({"aspects": []}, "aspects is empty"),
                ({"aspects": [0.0]}, "aspects is"),
                ({"gap": [1, 10**9]}, "gap is"),
                ({"gap": [1, 1001]}, "gap is .1, 1001.; it must be from 1 to 1000"),
                ({"gapped": 2.0}, "gapped is 2.0; it must be from 0 to 1"),
                ({"objects": 0}, "objects is 0; it must be from 1"),
                ({"objects": 10**6}, "objects is 1000000"),
                ({"multimask": -0.1}, "multimask is -0.1"),
                ({"conditioning": 1.5}, "conditioning is 1.5"),
                ({"teacher": 50.0}, "teacher is 50.0"),
                ({"least_area": 0}, "least_area is 0; it must be from 1"),
                ({"colours": -1.0}, "colours is -1.0"),
                ({"recognition": -1.0}, "recognition is -1.0"),
                ({"focal": 1e9}, "focal is 1000000000.0"),
                ({"dice": -1.0}, "dice is -1.0"),
                ({"quality": -1.0}, "quality is -1.0"),
                ({"presence": -1.0}, "presence is -1.0"),
                ({"hiding": -1.0}, "hiding is -1.0"),
                ({"asked": {"click": -1.0}}, "asked: click is -1.0; it must be from 0"),
                ({"asked": {"again": 1.5}}, "asked: again is 1.5; it must be from 0 to 1"),
                (
                    {"asked": dict.fromkeys(("click", "clicks", "box", "mask", "background"), 0.0)},
                    "give one of click, clicks, box, mask, background above 0",
                ),
            )
        ),
        ("track", {"frames": [8, 100], "gap": [1, 12]}, "clips would have up to 1200 frames, and at most 1000"),
        ("sam", {"frames": [2]}, "frames is .2.; SAM takes single images"),
        ("language", {"vocabulary": -1}, "vocabulary is -1; it must be from 261 to 1000000"),
        ("language", {"vocabulary": 260}, "vocabulary is 260"),
        ("language", {"vocabulary": 2**40}, "vocabulary is 1099511627776"),
        ("language", {"kind": "t5", "vocabulary": 1}, "vocabulary is 1; it must be from 4 to 1000000"),
        ("language", {"hidden": 1.1}, "hidden is 1.1; it must be from 0 to 1"),
        ("language", {"about_words": -0.5}, "about_words is -0.5"),
        ("language", {"meaning": -4.0}, "meaning is -4.0"),
        ("language", {"summary": 1e7}, "summary is 10000000.0"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_name_of_their_stage(
    kind: str, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    stages = [stage(), stage(name="odd", stage=kind, settings=settings)]
    with pytest.raises(ConfigError, match=f"^settings of stage 'odd'.*{sentence}") as caught:
        make_plans(recipe_from_mapping({"name": "r", "stages": stages}), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", [":", "a:", ":A", "..:A", "no.such:A", "training_stages:Nothing", "broken_stage:A", "\0:A"]
)
def test_stages_that_cannot_be_imported_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_stage.py").write_text("raise KeyError('boom')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TrainingError, match="cannot be imported from"):
        stage_class(name)


@pytest.mark.parametrize("source", ["x" * 5000, "~nobody-of-that-name/x", "a\0b", ""])
def test_initial_models_that_are_no_paths_are_refused(source: str, tmp_path: Path) -> None:
    recipe = recipe_from_mapping({"name": "r", "stages": [stage(init={"model": source})]})
    with pytest.raises(TrainingError, match="starts from"):
        make_plans(recipe, tmp_path)


def test_numbers_and_words_follow_yaml_1_2(tmp_path: Path) -> None:
    """In YAML 1.1, 010 is eight, 1:30 is ninety and no is false."""
    (tmp_path / "recipe.yaml").write_text(
        "a: 010\nb: 0o10\nc: 1:30\nd: no\ne: 1e-3\nf: -.5\ng: true\nh: yes\ni: ~\nj: 0x1F\nk: 1_0\n"
    )
    found = read_yaml(tmp_path / "recipe.yaml", "it")
    assert found == {
        "a": 10,
        "b": 8,
        "c": "1:30",
        "d": "no",
        "e": 0.001,
        "f": -0.5,
        "g": True,
        "h": "yes",
        "i": None,
        "j": 31,
        "k": 10,
    }


def test_written_yaml_is_read_back_unchanged(tmp_path: Path) -> None:
    values = {"z": 1e-5, "a": ["no", "010", "1:30", "1e-3", "null", ""], "deep": {"long": "word " * 60, "é": None}}
    (tmp_path / "recipe.yaml").write_text(yaml_text().write(values), encoding="utf-8")
    found = read_yaml(tmp_path / "recipe.yaml", "it")
    assert found == values
    assert list(found) == list(values)  # in their order


def test_repeated_anchors_are_read_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    (tmp_path / "recipe.yaml").write_text("a: &x 1\nb: &x 2\nc: *x\n")
    assert read_yaml(tmp_path / "recipe.yaml", "it") == {"a": 1, "b": 2, "c": 2}
    assert not recwarn


def test_a_pipe_as_a_recipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(TrainingError, match="is no file; give a YAML file"):
        read_recipe(tmp_path / "recipe.yaml")


def test_recipes_with_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    text = "name: r\r\nstages: [{name: a, stage: track, steps: 1, batch: 1}]\r\n"
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "recipe.yaml").write_bytes(text.encode(encoding))
        assert read_recipe(tmp_path / "recipe.yaml").name == "r"


def test_two_hundred_merged_aliases_are_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "name: r\nstages:\n- &a {name: a, stage: track, steps: 1, batch: 1, settings: &s {frames: [1]}}\n"
        + "\n".join(f"- {{<<: *a, name: b{n}, settings: *s}}" for n in range(200))
    )
    assert len(read_recipe(tmp_path / "recipe.yaml").stages) == 201


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="No such file"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "image.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(TrainingError, match="no text"):
        read_recipe(tmp_path / "image.yaml")


def test_without_ruamel_yaml_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "refervos.training.yaml_text", raising=False)
    monkeypatch.delattr("refervos.training.yaml_text", raising=False)
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
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
        ({"init": "no-such-folder"}, TrainingError, "starts from 'no-such-folder', which is no earlier stage"),
        ({"init": "./no/such"}, TrainingError, "starts from './no/such', which is no earlier stage"),
    ],
)
def test_stages_are_resolved_before_any_is_trained(
    changes: dict[str, Any], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    recipe = recipe_from_mapping({"name": "x", "stages": [stage(**changes)]})
    with pytest.raises(error) as caught:
        make_plans(recipe, tmp_path)
    assert sentence in str(caught.value)


def test_hub_models_without_safetensors_are_fetched_in_the_older_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, list[str]]] = []

    def fetch(repository: str, patterns: list[str], advice: str) -> Path:
        fetched.append((repository, patterns))
        return tmp_path / repository

    monkeypatch.setattr(plan, "fetch", fetch)
    (tmp_path / "new" / "sam").mkdir(parents=True)
    (tmp_path / "new" / "sam" / "model.safetensors").touch()
    (tmp_path / "old" / "t5").mkdir(parents=True)
    recipe = recipe_from_mapping({"name": "x", "stages": [stage(init={"sam": "new/sam", "text": "old/t5"})]})
    (planned,) = make_plans(recipe, tmp_path / "out")
    assert planned.init == {"sam": tmp_path / "new" / "sam", "text": tmp_path / "old" / "t5"}
    assert [repository for repository, _ in fetched] == ["new/sam", "old/t5", "old/t5"]
    assert fetched[-1][1] == ["pytorch_model*"]
    assert {"*.safetensors", "spiece.model"} <= set(fetched[0][1])


def test_initial_models_are_resolved_by_role(tmp_path: Path) -> None:
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
    with pytest.raises(TrainingError, match="'b' starts from 'a', which is not trained yet"):
        make_plans(recipe, out, ["b"])
    with pytest.raises(TrainingError, match="has no stage 'd'; it has a, b, c"):
        make_plans(recipe, out, ["d"])


def test_only_the_module_of_the_named_stage_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    import_module = importlib.import_module

    def recorded(name: str) -> ModuleType:
        imported.append(name)
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", recorded)
    assert stage_class("track").__name__ == "TrackStage"
    assert stage_class(TOY).__name__ == "ToyStage"
    assert imported == ["refervos.training.stages.track", "training_stages"]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("cosine", [0.25, 0.5, 0.75, 1.0, 0.775, 0.325, 0.1]),
        ("linear", [0.25, 0.5, 0.75, 1.0, 0.7, 0.4, 0.1]),
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_learning_rates_follow_the_schedule(schedule: Any, rates: list[float]) -> None:
    optimiser = OptimiserRecipe(rate=1.0, final_rate=0.1, warmup=3)
    recipe = StageRecipe("a", TOY, steps=7, batch=1, schedule=schedule, optimiser=optimiser)
    assert [learning_rate(recipe, step) for step in range(7)] == pytest.approx(rates)


def test_a_single_step_uses_the_full_rate() -> None:
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
    with_epochs = StageRecipe(name="a", stage=TOY, batch=8, epochs=1.5)
    assert with_steps(with_epochs, 33).steps == 7  # 49.5 samples in batches of 8
    assert with_steps(StageRecipe(name="a", stage=TOY, batch=8, steps=3), 33).steps == 3
    with pytest.raises(TrainingError, match="drawn endlessly, so they have no epochs"):
        with_steps(with_epochs, None)
    with pytest.raises(TrainingError, match=r"1.5 epochs are 7 steps, and optimiser.warmup is 7"):
        with_steps(StageRecipe(name="a", stage=TOY, batch=8, epochs=1.5, optimiser=OptimiserRecipe(warmup=7)), 33)
    (short,) = shortened(recipe_from_mapping({"name": "x", "stages": [stage(steps=0, epochs=9)]}), 20).stages
    assert (short.steps, short.epochs) == (20, None)
