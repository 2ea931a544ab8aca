"""Means of the trained weights of two models."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from refervos.errors import ConfigError
from refervos.loading import load
from refervos.samwise.model import Samwise
from refervos.training.weight_mean import average_into, main
from scenes import micro_model
from training_runs import trainable_micro_model


def two_models() -> tuple[Samwise, Samwise]:
    """Make two models over the same frozen parts."""
    torch.manual_seed(0)
    model, other = trainable_micro_model(), trainable_micro_model()
    torch.manual_seed(1)
    for part in other.trained_parts().values():
        for value in part.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape))
    for own, theirs in zip(model.frozen_parts(), other.frozen_parts(), strict=True):
        theirs.load_state_dict(own.state_dict())
    return model, other


def test_trained_weights_and_the_statistics_of_norms_are_averaged() -> None:
    model, other = two_models()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average_into(model, other, 0.25)
    theirs, averaged = other.state_dict(), 0
    for name, value in model.state_dict().items():
        if name.startswith(("tracker.", "text.")) or not value.is_floating_point():
            assert torch.equal(value, before[name])
        else:
            torch.testing.assert_close(value, 0.75 * before[name] + 0.25 * theirs[name])
            averaged += 1
    assert averaged > 50
    assert any("running_mean" in name for name in before)


def test_a_part_that_only_one_model_trains_is_kept() -> None:
    model, other = two_models()
    without = micro_model(cme=False)
    without.load_state_dict(other.state_dict())
    before = {name: value.clone() for name, value in model.cme.state_dict().items()}
    average_into(model, without, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.cme.state_dict().items())


def test_models_that_do_not_fit_are_refused() -> None:
    model, other = two_models()
    with pytest.raises(ConfigError, match=r"share is 1\.5; it must be between 0 and 1"):
        average_into(model, other, 1.5)
    with torch.no_grad():
        next(other.tracker.parameters()).add_(1)
    with pytest.raises(ConfigError, match="different frozen parts"):
        average_into(model, other, 0.5)


def test_the_command_writes_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = load("miniature", device="cpu")
    packaged.save_pretrained(tmp_path / "a")
    options = [str(tmp_path / "a"), str(tmp_path / "a"), "--share", "0.6", "--out", str(tmp_path / "b")]
    monkeypatch.setattr(sys, "argv", ["weight_mean", *options])
    main()
    expected = packaged.state_dict()
    for name, value in load(tmp_path / "b", device="cpu").state_dict().items():
        torch.testing.assert_close(value, expected[name])
