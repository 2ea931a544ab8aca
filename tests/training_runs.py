"""A small model to train, and readers of a run's history."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refervos.bench.random_models import HashTokenizer
from refervos.samwise.model import Samwise
from scenes import micro_model


def trainable_micro_model(**changes: Any) -> Samwise:
    """Make ``micro_model`` with a tokenizer that accepts every word."""
    model = micro_model(**changes)
    model.tokenizer = HashTokenizer(model.config.text.vocabulary, start=(0,), end=(2,))
    return model


def batch_of(stage: Any) -> dict[str, Any]:
    """Draw a batch of two training samples of a stage."""
    source = stage.source()
    batch: dict[str, Any] = source.collate([source.draw(0, index, (1, 2, 0)) for index in range(2)])
    return batch


def history(folder: Path) -> list[dict[str, Any]]:
    """Read the history in a stage's folder."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def training_losses(folder: Path) -> list[float]:
    """Read the training losses from the history in a stage's folder."""
    return [row["train"]["loss"] for row in history(folder) if "train" in row]
