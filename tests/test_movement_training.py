"""Aids for learning movement: movement of cells, decidable frames, and predictions of the last frames only."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from refervos.errors import ConfigError, TrainingError
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.training.stages.clip_sources import WorldClips
from refervos.training.stages.samwise import SamwiseMix, VideoSettings, VideoStage
from refervos.training.stages.world_tensors import cell_movements
from refervos.worlds import (
    Claim,
    Clip,
    Description,
    Expression,
    Motion,
    Noun,
    Scene,
    Thing,
    WorldConfig,
    decidable_from,
    draw_scene,
)
from training_runs import batch_of, trainable_micro_model

FRAMES = 12
NARROW = WorldConfig(objects=(2, 3), twins=0.9)


def square(x: float, y: float, vx: float = 0.0, vy: float = 0.0, **motion: Any) -> Thing:
    return Thing("square", "red", 0.13, Motion((x, y), (vx, vy), **motion))


def draw(*things: Thing) -> Clip:
    return draw_scene(Scene(things, background="checks"), FRAMES, (96, 96))


def moving_square(word: str, *targets: int) -> Expression:
    return Expression(f"a square that {word}", targets, "motion", Description(Noun(kind="square"), Claim(word)))


def test_a_sentence_is_decidable_once_the_frames_so_far_determine_its_target() -> None:
    left, back = square(0.8, 0.3, -0.04), square(0.2, 0.7, 0.04, pace=((7, -1.0),))
    clip = draw(left, back)
    assert decidable_from(clip, moving_square("moves left", 0), every=1) == 3
    # Until it has come back some distance it merely moves right.
    assert 8 <= decidable_from(clip, moving_square("turns back", 1), every=1) < FRAMES - 1
    appearance = Expression("the square", (0,), "kind", Description(Noun(kind="square")))
    assert decidable_from(clip, appearance) == 0
    # There is never a circle, so the sentence is decidable as soon as its motion word is.
    nothing = Expression("x", (), "none", Description(Noun(kind="circle"), Claim("moves left")))
    assert decidable_from(clip, nothing, every=1) == 3
    never = Expression("x", (0, 1), "group", Description(Noun(kind="square"), Claim("moves left")))
    assert decidable_from(clip, never) == FRAMES - 1


def test_cell_movements_are_those_of_the_objects_that_fill_the_cells() -> None:
    clip = draw(
        square(0.25, 0.25, 0.02, 0.0),
        square(0.75, 0.75, 0.0, -0.01, growth=1.03, spin=0.1),
    )
    found = cell_movements(clip, 96, 16, reach=4)
    assert found.shape == (FRAMES, 6, 6, 6)
    assert found[0].isnan().all()
    assert found[5, 0, 5].isnan().all()  # background
    row = found[5, int(0.25 * 6), int((0.25 + 5 * 0.02) * 6)]
    torch.testing.assert_close(row, torch.tensor([4 * 0.06, 0.0, 30 * 0.02, 0.0, 0.0, 0.0]), atol=2e-6, rtol=1e-5)
    row = found[2, int((0.75 - 2 * 0.01) * 6), int(0.75 * 6)]
    # Only two frames are before the third: the window begins at the first.
    expected = [0.0, -4 * 0.02, 0.0, -30 * 0.01, 5 * 2 * math.log(1.03), 5 * 0.1]
    torch.testing.assert_close(row, torch.tensor(expected), atol=2e-6, rtol=1e-5)


def test_a_stride_leaves_out_every_second_frame() -> None:
    config = WorldConfig(objects=(2, 2))
    near, far = (
        WorldClips(config, (1.0,), {}, 64, stride=stride, movements=(16, 8)).draw(0, 0, (1, 2, 0), 4, 2)
        for stride in (0.0, 1.0)
    )
    assert near.pixels.shape == far.pixels.shape
    whole = WorldClips(config, (1.0,), {}, 64).draw(0, 0, (1, 2, 0), 7, 2)
    assert torch.equal(far.pixels, whole.pixels[::2])
    assert far.movements is not None
    assert far.movements.shape == (4, 4, 4, 6)


def stage_of(**changes: Any) -> VideoStage:
    torch.manual_seed(0)
    model = trainable_micro_model(motion_features=True, time="online", clip_length=4, cme=False)
    settings = VideoSettings(world=NARROW, frames=(5,), sentences=2, families={"motion": 1.0})
    stage = VideoStage(replace(settings, **changes), model)
    stage.prepare_data(2, 0)
    return stage


def test_answered_frames_are_the_last_ones_each_without_memory() -> None:
    stage = stage_of(answered=2)
    batch = batch_of(stage)
    model: Samwise = stage.model
    model.eval()
    answered = model(batch["pixels"], batch["ids"], batch["verbs"], final_frames=2)
    assert answered.mask_logits.shape[:2] == (4, 2)
    # Each frame is predicted alone: one frame gives the mask of the last of two.
    last = model(batch["pixels"], batch["ids"], batch["verbs"], final_frames=1)
    torch.testing.assert_close(last.mask_logits[:, 0], answered.mask_logits[:, 1])
    whole = model(batch["pixels"], batch["ids"], batch["verbs"])
    assert whole.mask_logits.shape[1] == 5
    assert not torch.equal(whole.mask_logits[:, -1], answered.mask_logits[:, -1])
    assert stage(batch)["loss"].isfinite()
    assert stage.validate([batch]).values()["loss"] > 0


def test_kinds_of_clips_take_turns() -> None:
    images = SamwiseMix(share=1.0, clips=3, frames=(1,), families={"colour": 1.0}, world=WorldConfig(objects=(2, 2)))
    moving = SamwiseMix(share=2.0, frames=(5,), answered=2, sentences=3)
    never = SamwiseMix(share=0.0, frames=(9,))
    stage = stage_of(mix=(images, moving, never))
    source = stage.source()
    batches = [source.collate([source.draw(step, index, (1, 2, 0)) for index in range(2)]) for step in range(30)]
    kinds = [batch["kind"] for batch in batches]
    assert set(kinds) == {0, 1}
    assert kinds.count(1) > kinds.count(0)
    image, clip = batches[kinds.index(0)], batches[kinds.index(1)]
    assert image["pixels"].shape[:2] == (6, 1)
    assert len({pixels.numpy().tobytes() for pixels in image["pixels"]}) == 6  # all are different
    assert len(image["ids"]) == 12  # two sentences, as for the stage
    assert set(image["families"]) <= {"colour", "none"}  # near misses have no target
    assert clip["pixels"].shape[:2] == (2, 5)
    assert len(clip["ids"]) == 6
    assert "motion" in clip["families"]
    assert stage.predict(image).mask_logits.shape[:2] == (12, 1)
    assert stage.predict(clip).mask_logits.shape[:2] == (6, 2)
    assert stage.validate([image, clip]).values()["iou colour"] >= 0


def test_a_stage_of_one_kind_draws_what_it_drew_before() -> None:
    alone, mixed = (stage_of(mix=mix).source() for mix in ((), (SamwiseMix(),)))
    [clip], [first] = alone.draw(3, 1, (1, 2, 0)), mixed.draw(3, 1, (1, 2, 0))
    assert torch.equal(clip["pixels"], first["pixels"])
    assert torch.equal(clip["ground_truth"], first["ground_truth"])


def test_a_mix_that_cannot_be_is_refused() -> None:
    with pytest.raises(TrainingError, match="share above 0"):
        VideoSettings(mix=(SamwiseMix(share=0.0),))
    with pytest.raises(TrainingError, match="other sprites"):
        VideoSettings(mix=(SamwiseMix(world=WorldConfig(sprites="elsewhere")),))
    with pytest.raises(TrainingError, match="answered is 6"):
        VideoSettings(mix=(SamwiseMix(frames=(5,), answered=6),))
    with pytest.raises(TrainingError, match="no family 'looks'"):
        VideoSettings(mix=(SamwiseMix(families={"looks": 1.0}),))
    with pytest.raises(ConfigError, match="frames is empty"):
        SamwiseMix(frames=())


def test_mask_losses_start_at_the_first_decidable_frame() -> None:
    stage = stage_of(from_decidable=True)
    batch = batch_of(stage)
    assert batch["decidable"].shape == (4,)
    assert batch["decidable"].max() > 0  # no motion is visible in the first frame
    presence: list[Tensor] = []

    def loss(decidable: int) -> float:
        torch.manual_seed(0)
        found = stage(batch | {"decidable": torch.full((4,), decidable)})
        presence.append(found["presence"])
        return float(found["focal"].detach())

    stage.eval()
    before, after = loss(0), loss(4)
    assert before != after
    assert torch.equal(presence[0], presence[1])
    assert loss(-3) == before


def test_the_movement_loss_trains_the_first_two_adapters() -> None:
    stage = stage_of(movement=1.0)
    batch = batch_of(stage)
    assert batch["movements"].shape[:2] == (2, 5)
    stage.train()
    losses = stage(batch)
    assert losses["movement"] > 0
    losses["movement"].backward()
    model: Samwise = stage.model
    gradients = dict(model.adapters.named_parameters())
    for number in ("0", "1"):
        gradient = gradients[f"{number}.hsa.linear.weight"].grad
        assert gradient is not None
        assert gradient.abs().max() > 0
    assert gradients["2.hsa.linear.weight"].grad is None
    assert model.motion_features is not None
    assert model.motion_features.third.weight.grad is not None
    # The tokens of the first pass are cleared; with them the shapes of the second would not match.
    again = stage(batch)["movement"]
    assert again.isfinite()
    # The heads are trained, but are no part of the model.
    names = {id(parameter) for group in stage.parameter_groups() for parameter in group["params"]}
    assert stage.mover is not None
    assert {id(parameter) for parameter in stage.mover.parameters()} <= names
    assert not any(name.startswith("mover") for name in model.state_dict())
    stage.eval()
    assert "movement" not in stage(batch)


def test_the_movement_loss_of_cells_without_targets_is_zero() -> None:
    stage = stage_of(movement=1.0)
    batch = batch_of(stage)
    stage.train()
    nothing = torch.full_like(batch["movements"], torch.nan)
    losses = stage(batch | {"movements": nothing})
    assert losses["movement"] == 0
    losses["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in stage.parameters())


def test_movement_without_hsa_and_too_many_answered_frames_are_refused() -> None:
    with pytest.raises(TrainingError, match="movement is trained on drawn worlds, in adapters with HSA"):
        VideoSettings(movement=1.0, model=SamwiseConfig(hsa=False))
    with pytest.raises(TrainingError, match="answered is 6; it must be between 1 and the shortest clip's 4"):
        VideoSettings(frames=(4, 8), answered=6)
