"""The model inside the package understands what its documents say it does."""

from __future__ import annotations

import pytest
import torch

import refervos
from refervos.evaluation.diagnosis import diagnose
from refervos.loading import MINIATURE_FOLDER
from refervos.samwise.model import Samwise
from refervos.worlds.benchmark import TARGET_SPLITS


@pytest.fixture(scope="module")
def miniature() -> Samwise:
    torch.manual_seed(0)
    model = refervos.load(device="cpu")
    assert isinstance(model, Samwise)
    return model


def test_it_is_small(miniature: Samwise) -> None:
    assert sum(file.stat().st_size for file in MINIATURE_FOLDER.iterdir()) <= 16_000_000
    described = miniature.describe()
    assert 1_000_000 <= described["parts"]["SAM2 (frozen)"] <= 5_000_000
    assert described["settings"]["CME"]


def test_it_reads_the_sentence(miniature: Samwise) -> None:
    """Six clips of the appearance split; asked about another object, it must not answer with this one."""
    asked = diagnose(miniature, ["appearance"], 6).summary("appearance").j_and_f
    other = diagnose(miniature, ["appearance"], 6, ask="other").summary("appearance").j_and_f
    assert asked > 70
    assert asked - other > 35


@pytest.mark.slow
def test_the_whole_benchmark(miniature: Samwise) -> None:
    """The figures of docs/training.md, with room for another machine's rounding."""
    diagnosis = diagnose(miniature)
    assert sum(len(diagnosis.of_split(split)) for split in diagnosis.splits) >= 500
    assert diagnosis.target_mean is not None
    assert diagnosis.summary("appearance").j_and_f > 80
    assert {split for split in TARGET_SPLITS if diagnosis.summary(split).j_and_f < 50} == {"motion"}
    assert diagnosis.target_mean > 61
