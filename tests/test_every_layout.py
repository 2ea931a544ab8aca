"""Every data set can be trained on, evaluated and scored, on generated files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data_sets import SMALL_DATA_SETS
from refervos.data.catalogue import BENCHMARKS
from refervos.evaluation.datasets import Part
from refervos.evaluation.evaluate import Request, evaluate
from refervos.evaluation.scoring import score
from refervos.training.recipe import recipe_from_mapping
from refervos.training.trainer import train


def test_every_benchmark_has_a_small_data_set() -> None:
    assert set(SMALL_DATA_SETS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", SMALL_DATA_SETS)
def test_a_data_set_can_be_trained_on_evaluated_and_scored(name: str, tmp_path: Path) -> None:
    split, write = SMALL_DATA_SETS[name]
    write(tmp_path / "data")
    source = {"name": name, "folder": str(tmp_path / "data"), "split": split}
    stage = {
        "name": "adapters",
        "stage": "images",
        "init": {"frozen": "miniature"},
        "steps": 1,
        "batch": 2,
        "validation_batches": 1,
        "settings": {
            "model": {"adapter_width": 16, "adapter_heads": 2, "short_side": 128, "hsa": False},
            "data": [source],
            "validation": [source],
            "sentences": 1,
            "object_score": True,
        },
    }
    train(recipe_from_mapping({"name": "any", "stages": [stage]}), tmp_path / "run", show_progress=False)

    part = Part(name, tmp_path / "data", split, videos=1)
    request = Request(str(tmp_path / "run" / "adapters" / "model"), part, tmp_path / "results", device="cpu")
    answered = evaluate(request, show_progress=False)
    overall = answered.summary.groups[0]
    assert overall.count > 0
    assert all(value is None or 0 <= value.mean <= 100 for value in overall.values.values())

    again = score(tmp_path / "results" / "predictions", part, show_progress=False).summary.groups[0]
    assert {measure: value for measure, value in again.values.items() if "matched" not in measure} == {
        measure: value for measure, value in overall.values.items() if "matched" not in measure
    }
    assert dataclasses.asdict(again)["count"] == overall.count
