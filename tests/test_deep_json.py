"""Deeply nested JSON is refused in one sentence wherever it is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from refervos.cli.diagnose import parse_settings
from refervos.data.files import Problems, read_json
from refervos.data.layouts.json_lines import read_json_lines
from refervos.diagnosis.results import read_diagnosis
from refervos.errors import RefervosError
from refervos.evaluation.expression_scores import read_json as read_results
from refervos.evaluation.expression_scores import read_result
from refervos.training.checkpoint import MANIFEST, read_checkpoint
from refervos.training.history import History

DEEP = ["[" * 100_000, '{"a": ' * 100_000, "[" * 5000 + "]" * 5000]

READERS: dict[str, Callable[[Path], Any]] = {
    "annotations": read_json,
    "a line": lambda path: read_json_lines(path, "all", Problems()),
    "settings of an evaluation": read_results,
    "result of an expression": read_result,
    "diagnosis": read_diagnosis,
    "manifest of a checkpoint": lambda path: read_checkpoint(path.rename(path.with_name(MANIFEST)).parent),
}


@pytest.mark.parametrize("deep", DEEP, ids=["list", "object", "closed"])
@pytest.mark.parametrize("reader", READERS)
def test_deeply_nested_json_is_refused_with_the_name_of_the_file(tmp_path: Path, reader: str, deep: str) -> None:
    path = tmp_path / "it.json"
    path.write_text(deep)
    with pytest.raises(RefervosError) as raised:
        READERS[reader](path)
    assert str(tmp_path) in str(raised.value)
    assert str(raised.value).endswith(".")


@pytest.mark.parametrize("deep", DEEP, ids=["list", "object", "closed"])
def test_rows_of_a_training_history_after_nested_json_are_read(tmp_path: Path, deep: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "train": {{}}}}\n{deep}\n{{"step": 2, "train": {{}}}}\n')
    assert [step for step, _ in History(tmp_path / "metrics.jsonl", upto=9).of("train")] == [1, 2]


def test_a_setting_of_brackets_is_parsed_as_text() -> None:
    assert parse_settings(["a=" + "[" * 100_000]) == {"a": "[" * 100_000}
