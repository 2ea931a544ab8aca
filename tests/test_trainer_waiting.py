"""Synchronisation with a GPU during training: scalars stay on the device until a row of the history is due."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from host_reads import HostReads
from refervos.errors import TrainingError
from refervos.text.t5 import T5Config
from refervos.training import trainer
from refervos.training.devices import device_name, read_back
from refervos.training.losses import visible
from refervos.training.stages.language import LanguageSettings, LanguageStage
from refervos.training.stages.referring import NO_TARGET, ReferringStage
from refervos.training.stages.refsam import RefSamSettings, RefSamStage
from refervos.training.stages.simulated_prompts import PromptShares
from refervos.training.stages.track import TrackSettings, TrackStage
from refsam_models import tiny_model
from scenes import MICRO_SAM2
from test_trainer import run, toy
from training_runs import history
from training_stages import ToySettings, ToyStage


def test_steps_read_no_scalars_and_rows_read_all_in_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(stage: ToyStage, **options: Any) -> torch.optim.Optimizer:  # AdamW counts its steps on the CPU
        return torch.optim.SGD([{"params": list(stage.head.parameters()), "rate_scale": 1.0}], lr=1e-2)

    monkeypatch.setattr(trainer, "optimiser_for", plain)
    steps, rows = HostReads(), HostReads()
    for name, reads in (("_make_step", steps), ("_read_scalars", rows)):
        called = getattr(trainer.StageRun, name)

        def counted(self: Any, *arguments: Any, called: Any = called, reads: HostReads = reads) -> Any:
            with reads:
                return called(self, *arguments)

        monkeypatch.setattr(trainer.StageRun, name, counted)
    run(tmp_path, toy(steps=13, accumulate=2, validation_batches=0))
    assert steps.sizes == []
    assert steps.sized == []
    # Loss and share of two batches, and the gradient norm, each with its count; at rows (4, 8, 12, 13) and a checkpoint
    # (10).
    assert rows.sizes == [10 * count for count in (4, 4, 2, 2, 1)]
    assert [row["step"] for row in history(tmp_path / "toy") if "train" in row] == [4, 8, 12, 13]


@pytest.mark.parametrize("step", [12, 13, 14, 15])
def test_a_loss_that_is_not_finite_is_reported_with_its_step(step: int, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=f"the loss is not finite at step {step} of toy"):
        run(tmp_path, toy(settings={"nan_at": step - 1}, validate_every=14))
    assert [row["step"] for row in history(tmp_path / "toy") if "train" in row][-1] < step


def test_validation_reads_each_batch_once() -> None:
    stage = ToyStage(ToySettings())
    batches = [
        stage.source().collate([stage.source().draw(step, index, (1, 0, 1)) for index in range(3)]) for step in range(4)
    ]
    with torch.no_grad(), HostReads() as reads:
        found = stage.eval().validate(batches).values()
    assert reads.sizes == [2] * 4  # loss and share
    assert found["loss"] == sum(stage(batch)["loss"].item() for batch in batches) / 4


class PresetStage(RefSamStage):
    """Stage whose batches hold the IoUs to return."""

    def losses_and_ious(self, batch: dict[str, Any]) -> tuple[dict[str, Tensor], Tensor]:
        return {"loss": batch["ious"].sum()}, batch["ious"]


def test_validation_of_sentences_reads_each_batch_once() -> None:
    stage = PresetStage(RefSamSettings(least_area=3), tiny_model())
    generator, sparsity = torch.Generator().manual_seed(0), torch.tensor([0.5, 0.95, 1.0, 1.0])
    batches: list[dict[str, Any]] = [
        {
            "ground_truth": torch.rand(4, 5, 8, 8, generator=generator) > sparsity[:, None, None, None],
            "ious": torch.rand(4, 5, generator=generator),
            "families": ["colour", "size", NO_TARGET, "colour"],
        }
        for _ in range(3)
    ]
    with HostReads() as reads:
        found = ReferringStage.validate(stage, batches).values()
    assert reads.sizes == [1 + 2 * 4 * 5] * 3
    assert reads.sized == []
    seen = [visible(batch["ground_truth"], 3) for batch in batches]
    expected = [float(batch["ious"][0][mask[0]].mean()) for batch, mask in zip(batches, seen, strict=True)]
    assert found["iou colour"] == sum(expected) / 3  # the fourth sentence's object is never visible
    assert found[f"iou {NO_TARGET}"] == sum(float(batch["ious"][2].mean()) for batch in batches) / 3
    assert any(0 < int(mask[1].sum()) < 5 for mask in seen)


def test_the_device_is_not_queried_for_given_masks() -> None:
    settings = TrackSettings(frames=(3,), model=MICRO_SAM2, asked=PromptShares(mask=1.0, click=0.0, box=0.0))
    stage = TrackStage.build(settings, {}, 1)
    batch = stage.source().collate([stage.source().draw(0, index, (1, 0, 0)) for index in range(2)])
    assert batch["has_mask_prompt"] == [bool(masks.any()) for masks in batch["mask_prompts"].unbind(1)]
    assert batch["has_mask_prompt"][0]
    with torch.no_grad(), HostReads() as reads:
        logits = stage.predict(batch).mask_logits
        with_empty_masks = stage.predict({**batch, "has_mask_prompt": [True] * 3}).mask_logits
    assert reads.sizes == []
    torch.testing.assert_close(logits, with_empty_masks)


def test_a_step_of_a_prompted_stage_never_waits_for_the_device() -> None:
    settings = TrackSettings(frames=(2,), model=MICRO_SAM2, recognition=1.0)
    stage = TrackStage.build(settings, {}, 1)
    batch = stage.source().collate([stage.source().draw(0, index, (1, 0, 0)) for index in range(2)])
    with HostReads() as reads:
        losses = stage(batch)
        losses["loss"].backward()
    assert reads.sizes == []
    assert reads.sized == []


def test_a_step_of_the_language_stage_does_not_move_its_word_ids() -> None:
    shape = T5Config(width=32, head_width=8, heads=2, layers=1, feedforward=32)
    stage = LanguageStage.build(LanguageSettings(kind="t5", t5=shape, vocabulary=300), {}, seed=1)
    source = stage.source()
    batch = source.collate([source.draw(0, index, (1, 0, 0)) for index in range(4)])
    with HostReads() as reads:
        stage(batch)
    assert len(stage.words) not in reads.moved
    assert not [name for name in stage.state_dict() if "word" in name]  # not needed in checkpoints


def test_tensors_are_read_back_unchanged() -> None:
    given = [torch.tensor(2.5), torch.arange(6).reshape(2, 3), torch.tensor([True, False]), torch.zeros(0, 3)]
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        read = read_back([given[0].to(dtype), *given[1:]])
        assert [part.tolist() for part in read] == [part.tolist() for part in given]
        assert {part.dtype for part in read} == {expected}
    assert read_back([]) == []


def test_devices_have_readable_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Some GPU {device.index}")
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda device: "Other GPU")
    devices = ("cpu", "cuda:1", "xpu", "mps", "meta")
    names = [device_name(torch.device(name)) for name in devices]
    assert names == ["cpu", "Some GPU 1", "Other GPU", "Apple GPU (mps)", "meta"]
