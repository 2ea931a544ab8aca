"""Invalid expressions are reported by ``data check``, and by ``eval`` and ``train`` before they start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import layouts
from refervos.data.catalogue import open_dataset
from refervos.data.check import check_dataset
from refervos.data.sentences import expression_fault, require_sentences
from refervos.errors import DataError
from refervos.evaluation import evaluate as evaluation
from refervos.evaluation.datasets import Part
from refervos.evaluation.evaluate import Request, evaluate
from refervos.evaluation.scoring import score
from refervos.training.recipe import recipe_from_mapping
from refervos.training.trainer import train

INVALID = {
    "": "it is empty",
    " \t\n": "it is empty",
    "\u200b\ufeff": "it is empty",
    "the \ud83d dog": "a lone surrogate",
    "word " * 600: "600 words",
    "x" * 6000: "6,000 characters",
}


@pytest.mark.parametrize("text", INVALID, ids=range(len(INVALID)))
def test_an_invalid_expression_has_a_reason(text: str) -> None:
    fault = expression_fault(text)
    assert fault is not None
    assert INVALID[text] in fault


@pytest.mark.parametrize("text", ["dog", "?", "🐕", "犬", "word " * 510, "the dog\u200d"])
def test_valid_expressions_have_no_fault(text: str) -> None:
    assert expression_fault(text) is None


def write(folder: Path, texts: list[str]) -> Path:
    """Write a split of MeViS with these expressions."""
    layouts.write_mevis(folder, videos=1, frames=3)
    file = folder / "valid_u" / "meta_expressions.json"
    content = json.loads(file.read_text())
    (video,) = content["videos"].values()
    for expression, text in zip(video["expressions"].values(), texts, strict=False):
        expression["exp"] = text
    file.write_text(json.dumps(content))
    return folder


def test_the_check_lists_every_invalid_expression(tmp_path: Path) -> None:
    problems = check_dataset("mevis", write(tmp_path, ["", "a \ud83d", "word " * 600])).problems
    assert len(problems) == 3
    for id, (problem, fault) in enumerate(zip(problems, ("empty", "a lone surrogate", "600 words"), strict=True)):
        assert f"expression {id} about video valid_u00" in problem
        assert fault in problem
        assert problem.isprintable()


def test_eval_refuses_invalid_expressions_before_it_loads_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "data", ["", "a \ud83d"])
    monkeypatch.setattr(evaluation, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    request = Request("miniature", Part("mevis", tmp_path / "data", "valid_u"), tmp_path / "out", device="cpu")
    with pytest.raises(
        DataError, match=r"2 of the expressions cannot be used.*expression 0 .*empty; expression 1 .*surrogate"
    ):
        evaluate(request, show_progress=False)
    assert not (tmp_path / "out").exists()


def test_eval_refuses_expressions_that_are_too_long_for_the_model_before_it_predicts(tmp_path: Path) -> None:
    write(tmp_path / "data", ["a dog", "\u00e9\u00e8" * 400, "\u00e9\u00e8" * 300])
    request = Request("miniature", Part("mevis", tmp_path / "data", "valid_u"), tmp_path / "out", device="cpu")
    with pytest.raises(DataError, match=r"expression 1 about video valid_u00 .*tokens; this model reads at most"):
        evaluate(request, show_progress=False)
    assert not (tmp_path / "out" / "predictions").exists()
    assert not (tmp_path / "out" / "settings.json").exists()


def test_masks_are_scored_also_for_invalid_expressions(tmp_path: Path) -> None:
    write(tmp_path / "data", ["", "a \ud83d"])
    (tmp_path / "masks").mkdir()
    scored = score(tmp_path / "masks", Part("mevis", tmp_path / "data", "valid_u"), show_progress=False)
    assert [result.expression for result in scored.summary.results[:2]] == ["", "a \ud83d"]
    for file in scored.write(tmp_path / "out"):
        assert file.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "a \ud83d", "\u00e9\u00e8" * 400])
@pytest.mark.parametrize("role", ["data", "validation"])
def test_training_refuses_invalid_expressions_before_the_first_step(tmp_path: Path, text: str, role: str) -> None:
    write(tmp_path / "wrong", ["a dog", text])
    layouts.write_mevis(tmp_path / "right", videos=1, frames=3)
    folders = {"data": "right", "validation": "right", role: "wrong"}
    settings: dict[str, Any] = {
        name: [{"name": "mevis", "folder": str(tmp_path / folder), "split": "valid_u"}]
        for name, folder in folders.items()
    }
    stage = {
        "name": "adapters",
        "stage": "images",
        "init": {"frozen": "miniature"},
        "steps": 1,
        "batch": 1,
        "validation_batches": 1,
        "settings": {
            **settings,
            "model": {"adapter_width": 16, "adapter_heads": 2, "short_side": 128, "hsa": False},
            "sentences": 1,
        },
    }
    with pytest.raises(DataError, match="expression 1 about video"):
        train(recipe_from_mapping({"name": "any", "stages": [stage]}), tmp_path / "run", show_progress=False)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_an_error_about_many_expressions_lists_five_and_the_total(tmp_path: Path) -> None:
    layouts.write_mevis(tmp_path, videos=4, frames=2)
    file = tmp_path / "valid_u" / "meta_expressions.json"
    content = json.loads(file.read_text())
    for video in content["videos"].values():
        for expression in video["expressions"].values():
            expression["exp"] = ""
    file.write_text(json.dumps(content))
    dataset = open_dataset("mevis", tmp_path)
    with pytest.raises(DataError, match=f"{len(dataset)} of the expressions .*and {len(dataset) - 5} more"):
        require_sentences(dataset.samples)
