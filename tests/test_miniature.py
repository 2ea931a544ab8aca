"""The bundled models reach their documented quality."""

from __future__ import annotations

import pytest
import torch

import refervos
from refervos.diagnosis.diagnose import diagnose
from refervos.loading import BUNDLED, bundled_folder
from refervos.refsam.model import RefSam
from refervos.samwise.model import Samwise
from refervos.worlds.benchmark import TARGET_SPLITS


@pytest.fixture(scope="module")
def miniature() -> Samwise:
    torch.manual_seed(0)
    model = refervos.load(device="cpu")
    assert isinstance(model, Samwise)
    return model


@pytest.fixture(scope="module")
def refsam() -> RefSam:
    torch.manual_seed(0)
    model = refervos.load("refsam-miniature", device="cpu")
    assert isinstance(model, RefSam)
    return model


def test_the_bundled_models_are_small(miniature: Samwise, refsam: RefSam) -> None:
    for name in BUNDLED:
        folder = bundled_folder(name)
        assert folder is not None
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 16_000_000
    described = miniature.describe()
    assert 1_000_000 <= described["parts"]["SAM2 (frozen)"] <= 5_000_000
    assert described["settings"]["CME"]
    assert 1_000_000 <= refsam.describe()["parts"]["image encoder"] <= 5_000_000


@pytest.mark.parametrize(("name", "least"), [("miniature", 70), ("refsam", 60)])
def test_the_bundled_models_distinguish_objects_by_the_sentence(
    name: str, least: float, request: pytest.FixtureRequest
) -> None:
    """On six clips of the appearance split, a sentence about another object must not give this one."""
    model = request.getfixturevalue(name)
    matching = diagnose(model, ["appearance"], 6).summary("appearance").j_and_f
    other = diagnose(model, ["appearance"], 6, prompt_with="other").summary("appearance").j_and_f
    assert matching > least
    assert matching - other > 35


@pytest.mark.slow
def test_the_miniature_reaches_its_documented_scores(miniature: Samwise) -> None:
    """The scores are those of docs/training.md, with a margin for rounding on other machines."""
    diagnosis = diagnose(miniature)
    assert sum(len(diagnosis.of_split(split)) for split in diagnosis.splits) >= 500
    assert diagnosis.target_mean is not None
    assert diagnosis.summary("appearance").j_and_f > 80
    assert {split for split in TARGET_SPLITS if diagnosis.summary(split).j_and_f < 50} == {"motion"}
    assert diagnosis.target_mean > 65


@pytest.mark.slow
def test_the_refsam_miniature_reaches_its_documented_scores(refsam: RefSam) -> None:
    """The scores are those of docs/training.md, with a margin for rounding on other machines."""
    diagnosis = diagnose(refsam)
    assert diagnosis.target_mean is not None
    assert diagnosis.target_mean > 58
    assert {split for split in TARGET_SPLITS if diagnosis.summary(split).j_and_f < 50} == {"motion", "occlusion"}
