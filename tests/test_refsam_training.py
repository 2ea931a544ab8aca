"""The stages ``sam`` and ``refsam``: from random weights to a model that segments sentences."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refervos import load
from refervos.errors import ConfigError, TrainingError
from refervos.refsam.model import RefSam
from refervos.sam.checkpoints import load_sam
from refervos.text.pretrained import load_t5
from refervos.training.recipe import Recipe, recipe_from_mapping
from refervos.training.stages.prompt_stage import best_candidate
from refervos.training.stages.refsam import RefSamSettings, RefSamStage, build_refsam
from refervos.training.stages.sam import SamSettings
from refervos.training.trainer import train
from refsam_models import TINY, tiny_model
from training_runs import history, training_losses

OPTIMISER = {"rate": 2e-3, "final_rate": 2e-4, "warmup": 2}
WORLD = {"objects": [1, 2]}


def recipe() -> Recipe:
    common = {"batch": 6, "checkpoint_every": 100, "log_every": 5, "optimiser": OPTIMISER, "validation_batches": 1}
    clips = {"frames": [2], "sentences": 2, "world": WORLD, "published_losses": True}
    model = {**dataclasses.asdict(TINY.sam), "vit_window": 4}
    return recipe_from_mapping(
        {
            "name": "tiny",
            "seed": 1,
            "stages": [
                {"name": "sam", "stage": "sam", "steps": 60, **common}
                | {"settings": {"model": model, "world": WORLD, "objects": 2, "recognition": 1.0}},
                {"name": "language", "stage": "language", "steps": 15, **common, "batch": 16}
                | {"settings": {"kind": "t5", "t5": {"width": 24, "head_width": 8, "heads": 4, "layers": 2,
                                                     "feedforward": 48}}},
                {"name": "images", "stage": "refsam", "init": {"sam": "sam", "text": "language"}, "steps": 15, **common}
                | {"settings": {"frames": [1], "sentences": 2, "world": WORLD}},
                {"name": "clips", "stage": "refsam", "init": "previous", "steps": 15, **common} | {"settings": clips},
            ],
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    train(recipe(), folder, show_progress=False)
    return folder


def loaded(folder: Path) -> RefSam:
    model = load(folder, device="cpu")
    assert isinstance(model, RefSam)
    return model


@pytest.mark.parametrize("stage", ["sam", "language", "images"])
def test_the_loss_of_every_stage_falls(trained: Path, stage: str) -> None:
    losses = training_losses(trained / stage)
    assert losses[-1] < losses[0]


def test_frozen_parts_stay_and_all_trained_parts_change(trained: Path) -> None:
    sam, (text, _) = load_sam(trained / "sam" / "model"), load_t5(trained / "language" / "model")
    images, clips = (loaded(trained / name / "model") for name in ("images", "clips"))
    for model in (images, clips):
        frozen: list[tuple[torch.nn.Module, torch.nn.Module]] = [
            (model.sam.vision_encoder, sam.vision_encoder),
            (model.sam.prompt_encoder, sam.prompt_encoder),
            (model.text, text),
        ]
        for part, source in frozen:
            own = part.state_dict()
            assert all(torch.equal(value, own[name]) for name, value in source.state_dict().items())
    before, after = images.trained_parts(), clips.trained_parts()
    for name, part in after.items():
        pairs = zip(part.parameters(), before[name].parameters(), strict=True)
        changed = [not torch.equal(a, b) for a, b in pairs]
        assert any(changed), name
    decoder = zip(sam.mask_decoder.parameters(), images.sam.mask_decoder.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in decoder)


def test_the_trained_model_segments_sentences(trained: Path) -> None:
    session = loaded(trained / "clips" / "model").open(["the red circle", "the star"])
    for _ in range(2):
        assert session.step(np.zeros((48, 64, 3), np.uint8)).masks.shape == (2, 48, 64)


def test_validation_reports_the_iou_of_each_family(trained: Path) -> None:
    (scalars,) = [row["validation"] for row in history(trained / "images") if "validation" in row]
    assert sum(name.startswith("iou ") for name in scalars) > 3


def settings(**changes: Any) -> RefSamSettings:
    return RefSamSettings(world=dataclasses.replace(RefSamSettings().world, objects=(1, 2)), sentences=2, **changes)


def test_parts_learn_at_their_own_rates() -> None:
    model = tiny_model()
    groups = RefSamStage(settings(rates={"mask decoder": 0.01}), model).parameter_groups()
    scales = {id(parameter): group["rate_scale"] for group in groups for parameter in group["params"]}
    assert scales[id(model.sam.mask_decoder.get_parameter("iou_token.weight"))] == 0.01
    assert scales[id(next(model.cross_modal.parameters()))] == 1.0
    assert len(scales) == sum(parameter.requires_grad for parameter in model.parameters())
    with pytest.raises(TrainingError, match=r"rates names 'decoder', which is no trained part.*mask decoder, adapters"):
        RefSamStage(settings(rates={"decoder": 0.01}), model)


def test_published_losses_are_the_means_over_single_frames() -> None:
    stage = RefSamStage(settings(published_losses=True), tiny_model())
    logits, masks = torch.randn(2, 3, 8, 8), torch.rand(2, 3, 8, 8) > 0.7
    masks[0, 1] = False  # a frame without the target has the same weight
    focal, dice = stage.published_losses(list(logits), list(masks))
    alone = [stage.published_losses([logits[n, t : t + 1]], [masks[n, t : t + 1]]) for n in range(2) for t in range(3)]
    assert torch.allclose(focal, torch.stack([f for f, _ in alone]).mean())
    assert torch.allclose(dice, torch.stack([d for _, d in alone]).mean())


def test_gradient_checkpointing_does_not_change_the_gradients() -> None:
    found = []
    for gradient_checkpointing in (False, True):
        stage = RefSamStage(settings(), tiny_model())
        stage.prepare_data(2, 0)
        stage.model.gradient_checkpointing = gradient_checkpointing
        stage.train()
        batch = stage.source().collate([stage.source().draw(0, index, (1, 0, 0)) for index in range(2)])
        stage(batch)["loss"].backward()
        found.append([p.grad for p in stage.model.trained_parts()["adapters"].parameters()])
    for plain, again in zip(*found, strict=True):
        assert plain is not None
        assert again is not None
        assert torch.equal(plain, again)


def test_trained_parts_are_copied_as_far_as_the_configuration_has_them(trained: Path) -> None:
    earlier = trained / "clips" / "model"
    smaller = build_refsam(dataclasses.replace(TINY, tracking="none", dense="attention"), {"model": earlier}, seed=1)
    assert smaller.tracking is None
    theirs = loaded(earlier).cross_modal.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in smaller.cross_modal.state_dict().items())
    fresh = build_refsam(TINY, {"frozen": earlier}, seed=1)
    assert not torch.equal(fresh.cross_modal.state_dict()["layers.0.weight"], theirs["layers.0.weight"])


def test_missing_and_wrong_initial_models_are_refused() -> None:
    with pytest.raises(TrainingError, match="from 'sam' and 'text', from 'frozen', or from 'model'"):
        build_refsam(TINY, {}, seed=1)
    with pytest.raises(TrainingError, match="is no RefSam; this stage starts from one"):
        build_refsam(TINY, {"model": Path(load.__code__.co_filename).parent / "assets" / "miniature"}, seed=1)


def test_the_sam_stage_refuses_clips() -> None:
    with pytest.raises(ConfigError, match=r"frames is \[2\]; SAM takes single images"):
        SamSettings(model=TINY.sam, frames=(2,))


def test_the_best_candidate_has_the_lowest_cross_entropy() -> None:
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    right = torch.where(mask, 5.0, -5.0)
    candidates = torch.stack(
        [torch.stack([-right[0], right[0], 0 * right[0]]), torch.stack([right[1], *2 * [-right[1]]])]
    )
    assert best_candidate(candidates, mask).tolist() == [1, 0]
    assert best_candidate(candidates[:, :1], mask).tolist() == [0, 0]
