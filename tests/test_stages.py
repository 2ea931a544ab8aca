"""Training stages: simulated prompts, drawn clips, initial weights, losses, and the smallest recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refervos.errors import ConfigError, TrainingError
from refervos.loading import MINIATURE_FOLDER, load
from refervos.sam2.memory import MemoryBank
from refervos.samwise.config import SamwiseConfig
from refervos.samwise.model import Samwise
from refervos.text.pretrained import load_text
from refervos.training.losses import frame_losses
from refervos.training.plan import make_plans
from refervos.training.recipe import read_recipe
from refervos.training.stages.prompt_stage import PromptedSettings, PromptedSource
from refervos.training.stages.referring import copy_weights
from refervos.training.stages.refsam import RefSamSettings, RefSamStage
from refervos.training.stages.samwise import ImagesSettings, VideoSettings, VideoStage, build_samwise
from refervos.training.stages.simulated_prompts import PADDING, PromptShares, roughen, simulate_prompts
from refervos.training.stages.track import TrackSettings, TrackStage
from refervos.training.trainer import train
from refervos.worlds import WorldConfig, draw_clip, known_words
from refsam_models import tiny_model
from scenes import MICRO_SAM2
from training_runs import trainable_micro_model, training_losses

ROOT = Path(__file__).parents[1]
FIRST_GENERATION = Path("weights/miniature-1")
SIDE = 64


def two_objects(frames: int) -> np.ndarray:
    """Draw a square that moves right, and one that appears in the middle of the clip; bool (2, T, S, S)."""
    masks = np.zeros((2, frames, SIDE, SIDE), bool)
    for time in range(frames):
        masks[0, time, 10:22, 4 + 2 * time : 16 + 2 * time] = True
    masks[1, frames // 2 :, 40:50, 40:50] = True
    return masks


ONLY = dict.fromkeys(("click", "clicks", "box", "mask", "background", "again", "switch"), 0.0)


def shares(**given: float) -> PromptShares:
    return PromptShares(**{**ONLY, **given})


@pytest.mark.parametrize("kind", ["click", "clicks", "box", "mask"])
def test_an_object_is_prompted_in_its_first_visible_frame(kind: str) -> None:
    masks = two_objects(8)
    for seed in range(20):
        prompts = simulate_prompts(masks, shares(**{kind: 1.0}), 3, np.random.default_rng(seed), least_area=12)
        target = 0 if prompts.ground_truth[0].any() else 1
        first = 0 if target == 0 else 4
        assert (prompts.ground_truth == masks[target]).all()
        assert not (prompts.labels[:first] != PADDING).any()
        assert prompts.masks[first].any() == (kind == "mask")
        assert prompts.masks.any(axis=(1, 2)).sum() == int(kind == "mask")
        for (x, y), label in zip(prompts.points[first], prompts.labels[first], strict=True):
            if label in (0, 1):
                assert masks[target, first, int(y), int(x)] == bool(label)
        if kind == "box":
            assert prompts.labels[first].tolist() == [2, 3, PADDING]
            rows, columns = np.nonzero(masks[target, first])
            corners = [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]]
            assert np.abs(prompts.points[first, :2] - corners).max() < 5
        assert (prompts.labels[first + 1 :] == PADDING).all()


def test_a_click_on_the_background_has_an_empty_ground_truth() -> None:
    masks = two_objects(4)
    prompts = simulate_prompts(masks, shares(background=1.0), 2, np.random.default_rng(0), least_area=12)
    x, y = prompts.points[0, 0].astype(int)
    assert prompts.labels[0, 0] == 1
    assert not masks[:, 0, y, x].any()
    assert not prompts.ground_truth.any()


def test_the_prompts_of_a_clip_may_switch_to_another_object() -> None:
    masks = two_objects(8)
    turned = 0
    for seed in range(40):
        prompts = simulate_prompts(masks, shares(click=1.0, switch=1.0), 2, np.random.default_rng(seed), least_area=12)
        owners = [
            [bool((frame == masks[k, t]).all() and frame.any()) for k in (0, 1)]
            for t, frame in enumerate(prompts.ground_truth)
        ]
        if owners[0] == [True, False] and owners[-1] == [False, True]:
            turn = owners.index([False, True])
            assert prompts.labels[turn, 0] == 1
            turned += 1
    assert turned > 3


def test_later_clicks_are_on_the_same_object() -> None:
    masks = two_objects(8)
    prompts = simulate_prompts(masks[:1], shares(click=1.0, again=1.0), 2, np.random.default_rng(0), least_area=12)
    for time in range(8):
        x, y = prompts.points[time, 0].astype(int)
        assert masks[0, time, y, x]


def test_rough_masks_overlap_the_exact_ones() -> None:
    mask = two_objects(1)[0, 0]
    ious = []
    for seed in range(50):
        rough = roughen(mask, np.random.default_rng(seed))
        ious.append((rough & mask).sum() / (rough | mask).sum())
    assert 0.5 < np.mean(ious) < 0.98
    assert len({round(float(iou), 3) for iou in ious}) > 5


def samwise_stage(blind: bool = False) -> VideoStage:
    """Make a stage over a model that shows every mask or, ``blind``, none because no object passes the gate."""
    model = trainable_micro_model(cme=False, presence_shift=-100.0 if blind else 100.0)
    stage = VideoStage(VideoSettings(world=WorldConfig(objects=(2, 3)), frames=(2,), sentences=2), model)
    stage.prepare_data(2, 1)
    return stage


def refsam_stage(blind: bool = False) -> RefSamStage:
    """Make the same over a model without an object score, which gates pixels by a threshold."""
    torch.manual_seed(0)
    model = tiny_model(mask_threshold=1000.0 if blind else -1000.0)
    stage = RefSamStage(RefSamSettings(world=WorldConfig(objects=(2, 3)), frames=(2,), sentences=2), model)
    stage.prepare_data(2, 1)
    return stage


def test_every_stage_of_the_smallest_recipe_learns_and_its_model_segments(tmp_path: Path) -> None:
    """Frozen parts stay bit-equal."""
    recipe = read_recipe(ROOT / "recipes" / "smallest.yaml")
    reports = train(recipe, tmp_path, show_progress=False)
    assert [report.stage for report in reports] == [stage.name for stage in recipe.stages]
    for stage in recipe.stages:
        losses = training_losses(tmp_path / stage.name)
        assert np.mean(losses[-2:]) < np.mean(losses[:2]), stage.name
    tracker = load(tmp_path / "track-clips" / "model", device="cpu").state_dict()
    text, _ = load_text(tmp_path / "language" / "model")
    for name in ("images", "video"):
        model = load(tmp_path / name / "model", device="cpu")
        assert isinstance(model, Samwise)
        for key, value in model.tracker.state_dict().items():
            assert torch.equal(value, tracker[f"tracker.{key}"]), key
        for key, value in model.text.state_dict().items():
            assert torch.equal(value, text.state_dict()[key]), key
    images, video = (load(tmp_path / name / "model", device="cpu").state_dict() for name in ("images", "video"))
    changed = {key.split(".")[0] for key in images if not torch.equal(images[key], video[key])}
    assert changed == {"adapters", "text_prompt", "cme"}
    segmentation = model.open("the red circle").step(np.zeros((48, 64, 3), np.uint8))
    assert segmentation.masks.shape == (1, 48, 64)


def test_new_adapters_are_built_over_the_frozen_parts_of_the_packaged_model() -> None:
    packaged = load(device="cpu")
    assert isinstance(packaged, Samwise)
    config = SamwiseConfig(adapter_width=32, adapter_heads=2, short_side=128)
    model = build_samwise(config, {"frozen": MINIATURE_FOLDER}, seed=1)
    for part in ("tracker", "text"):
        copied, original = getattr(model, part).state_dict(), getattr(packaged, part).state_dict()
        assert all(torch.equal(copied[name], original[name]) for name in original)
    assert model.config.adapter_width == 32
    again = build_samwise(config, {"frozen": MINIATURE_FOLDER}, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_video_stage_copies_the_adapters_of_an_image_model_and_draws_what_it_lacks(tmp_path: Path) -> None:
    """Published image checkpoints have neither object score nor HSA."""
    shape = SamwiseConfig(adapter_width=32, adapter_heads=2, short_side=128)
    images = build_samwise(
        replace(shape, hsa=False), {"frozen": MINIATURE_FOLDER}, seed=1, object_score=False, cme=False
    )
    assert not images.config.sam2.object_score
    assert images.adapters[0].hsa is None
    images.save_pretrained(tmp_path / "images")
    video = build_samwise(shape, {"frozen": MINIATURE_FOLDER, "adapters": tmp_path / "images"}, seed=2)
    assert video.config.sam2.object_score
    own, copied = video.adapters.state_dict(), images.adapters.state_dict()
    assert {name.split(".")[1] for name in own.keys() - copied.keys()} == {"hsa"}
    assert all(torch.equal(own[name], value) for name, value in copied.items())
    other = build_samwise(shape, {"frozen": MINIATURE_FOLDER}, seed=2).adapters.state_dict()
    assert not all(torch.equal(own[name], other[name]) for name in copied)


def test_a_samwise_without_frozen_parts_is_refused() -> None:
    with pytest.raises(TrainingError, match="'tracker' and 'text', from 'frozen', or from 'model'"):
        build_samwise(SamwiseConfig(), {}, seed=1)


def test_an_unknown_family_of_sentences_is_refused() -> None:
    with pytest.raises(TrainingError, match="no family 'shape'"):
        ImagesSettings(families={"shape": 1.0})


def test_frames_of_a_training_clip_are_apart_by_the_gap() -> None:
    near, far = (
        PromptedSource(PromptedSettings(frames=(4,), gap=gap), image_size=64, cell=16) for gap in ((1, 1), (3, 6))
    )
    rng = np.random.default_rng(0)
    assert near.draw_times(4, rng).tolist() == [0, 1, 2, 3]
    gaps = [np.diff(far.draw_times(4, rng)) for _ in range(50)]
    assert {int(gap) for each in gaps for gap in each} == {3, 4, 5, 6}
    sample = far.draw(0, 0, (1, 2, 0))
    assert sample["pixels"].shape == (4, 3, 64, 64)
    assert sample["ground_truth"].shape[1] == sample["cell_labels"].shape[0] == 4
    mixed = PromptedSource(PromptedSettings(frames=(4,), gap=(3, 6), gapped=0.5), image_size=64, cell=16)
    adjacent = [mixed.draw_times(4, rng).tolist() == [0, 1, 2, 3] for _ in range(60)]
    assert 15 < sum(adjacent) < 45
    with pytest.raises(ConfigError, match=r"gap is \(0, 3\); a least and a greatest number"):
        PromptedSettings(gap=(0, 3))


def test_selected_frames_of_a_clip_keep_their_masks_and_facts() -> None:
    clip = draw_clip(3, WorldConfig(frames=9, height=48, width=64))
    some = clip.at(np.array([1, 4, 8]))
    assert np.array_equal(some.frames, clip.frames[[1, 4, 8]])
    assert np.array_equal(some.masks, clip.masks[:, [1, 4, 8]])
    assert np.array_equal(some.visible, clip.visible[:, [1, 4, 8]])
    assert some.centres.shape[1] == some.radii.shape[1] == some.angles.shape[1] == len(some.camera) == 3


def test_the_track_stage_starts_from_the_tracker_of_a_model() -> None:
    packaged = load(device="cpu")
    assert isinstance(packaged, Samwise)
    stage = TrackStage.build(TrackSettings(), {"model": MINIATURE_FOLDER}, 1)
    expected = packaged.tracker.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in stage.tracker.state_dict().items())
    assert all(parameter.requires_grad for parameter in stage.tracker.parameters())


def test_a_tracker_is_trained_with_dropout_and_without_choosing_the_most_stable_mask() -> None:
    model = replace(MICRO_SAM2, multimask_stability=True)
    stage = TrackStage.build(TrackSettings(frames=(3,), model=model, multimask=0.0), {}, 1)
    batch = stage.source().collate([stage.source().draw(0, 0, (1, 0, 0))])

    def predictions(mode: bool) -> list[torch.Tensor]:
        stage.train(mode)
        with torch.no_grad():
            return [stage.predict(batch).mask_logits for _ in range(2)]

    trained, evaluated = predictions(True), predictions(False)
    assert torch.equal(*evaluated)
    assert torch.equal(trained[0][:, 0], trained[1][:, 0])  # without memory there is no dropout
    assert not torch.equal(trained[0][:, 1:], trained[1][:, 1:])
    # Untrained masks are unstable: in evaluation another one replaces the single mask.
    assert not torch.equal(trained[0][:, 0], evaluated[0][:, 0])
    stage.tracker.sam.mask_decoder.stability = False
    assert torch.equal(trained[0][:, 0], predictions(False)[0][:, 0])


def track_batch(frames: int, **settings: Any) -> tuple[TrackStage, dict[str, Any]]:
    """Build an untrained track stage in evaluation mode, and a batch of one clip."""
    stage = TrackStage.build(TrackSettings(frames=(frames,), model=MICRO_SAM2, multimask=0.0, **settings), {}, 1)
    batch = stage.source().collate([stage.source().draw(0, 0, (1, 0, 0))])
    return stage.eval(), batch


def test_frames_around_occlusions_have_the_weight_of_the_setting() -> None:
    stage, batch = track_batch(3, hiding=0.0)
    batch["ground_truth"].zero_()
    batch["ground_truth"][:, 0, 10:30, 10:30] = True  # hidden from the second frame on
    with torch.no_grad():
        first = frame_losses(stage.predict(batch).mask_logits[:, :1], None, batch["ground_truth"][:, :1], 12)
        losses = stage(batch)
    torch.testing.assert_close(losses["focal"], first["focal"])


def test_with_teacher_forcing_memory_holds_the_ground_truth() -> None:
    stage, batch = track_batch(2)
    other = {**batch, "ground_truth": torch.zeros_like(batch["ground_truth"])}
    other["ground_truth"][:, 0, :40] = True
    with torch.no_grad():
        for teacher in (False, True):
            one, changed = (stage.predict({**each, "teacher": teacher}).mask_logits for each in (batch, other))
            assert torch.equal(one[:, 0], changed[:, 0])
            assert torch.equal(one[:, 1], changed[:, 1]) != teacher


@pytest.mark.parametrize("conditioning", [False, True])
def test_the_first_frame_is_a_conditioning_frame_in_some_steps(
    conditioning: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, batch = track_batch(3)
    stored: list[bool] = []
    store = MemoryBank.store

    def recorded(bank: MemoryBank, *arguments: Any, conditioning: bool = False) -> None:
        stored.append(conditioning)
        store(bank, *arguments, conditioning=conditioning)

    monkeypatch.setattr(MemoryBank, "store", recorded)
    with torch.no_grad():
        stage.predict({**batch, "conditioning": conditioning})
    assert stored == [conditioning, False]


def test_colour_jitter_changes_pixels_only() -> None:
    plain, jittered = (
        PromptedSource(PromptedSettings(frames=(2,), colours=strength), image_size=64, cell=16).draw(0, 0, (1, 2, 0))
        for strength in (0.0, 0.1)
    )
    assert not torch.equal(plain["pixels"], jittered["pixels"])
    assert torch.equal(plain["ground_truth"], jittered["ground_truth"])
    assert torch.equal(plain["cell_labels"], jittered["cell_labels"])


@pytest.mark.parametrize("stage_of", [samwise_stage, refsam_stage])
def test_validation_computes_losses_before_gating_and_ious_after_it(stage_of: Any) -> None:
    """A missed frame costs as much as in training; the IoUs are those of the masks that a session returns."""
    plain = stage_of()
    batch = plain.source().collate([plain.source().draw(0, index, (1, 0, 1)) for index in range(2)])
    with torch.no_grad():
        plain.eval()
        open_ = plain.validate([batch]).values()
        blind = stage_of(blind=True).eval()
        found = blind.validate([batch]).values()
    for name in ("focal", "dice", "presence", "loss"):
        assert found[name] == pytest.approx(open_[name], rel=1e-5), name
    families = {name for name in open_ if name.startswith("iou ")}
    assert {found[name] for name in families - {"iou none"}} == {0.0}
    assert any(open_[name] > 0 for name in families)
    assert found["iou"] == 0.0
    if "iou none" in families:
        assert found["iou none"] == 1.0


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("stage_of", [samwise_stage, refsam_stage])
def test_void_pixels_are_ignored_in_losses_and_validation(stage_of: Any, published: bool) -> None:
    stage = stage_of()
    stage.settings = replace(stage.settings, published_losses=published)
    source = stage.source()
    plain = [source.draw(0, index, (1, 0, 0)) for index in range(2)]
    [second] = plain[1]
    void = torch.zeros_like(second["ground_truth"])
    void[..., ::3, :] = True
    without = source.collate(plain)
    assert "void" not in without  # drawn worlds have none
    results = []
    for masks in (second["ground_truth"] & ~void, second["ground_truth"] | void):
        batch = source.collate([plain[0], [{**second, "ground_truth": masks, "void": void}]])
        assert not batch["void"][: len(void)].any()
        assert torch.equal(batch["void"][len(void) :], void)
        with torch.no_grad():
            results.append([stage.train()(batch), stage.eval().validate([batch]).values()])
    (losses, validated), (again, validated_again) = results
    for name, value in losses.items():
        torch.testing.assert_close(again[name], value, msg=name)
    assert validated_again == pytest.approx(validated)
    assert losses["focal"] != stage.train()(without)["focal"]


def test_scalars_of_the_cme_are_left_out_without_labelled_decisions() -> None:
    """It is trained from the sixth frame on; a zero in short clips or validation would look like a perfect CME."""
    model = trainable_micro_model(cme=True)
    losses = {}
    for frames in (2, 7):
        settings = VideoSettings(world=WorldConfig(objects=(2, 3)), frames=(frames,), sentences=2)
        stage = VideoStage(settings, model)
        stage.prepare_data(2, 1)
        batch = stage.source().collate([stage.source().draw(0, index, (1, 0, 0)) for index in range(2)])
        validation = stage.eval().validate([batch]).values()
        assert {"loss", "focal", "dice", "presence", "iou"} <= set(validation)
        assert not {"cme", "switches"} & set(validation)
        assert all(np.isfinite(value) for value in validation.values())
        losses[frames] = stage.train()(batch)
        assert losses[frames]["loss"].isfinite()
    # Both are ratios: a sum and the number that it is of.
    assert {name for name, value in losses[2].items() if value.ndim and value[1] == 0} == {"cme", "switches"}
    assert losses[7]["cme"].min() > 0
    assert 0 <= losses[7]["switches"][0] <= losses[7]["switches"][1] > 0


def test_the_recipe_of_the_second_generation_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All settings are valid, and every stage starts from an earlier one or from weights in this repository."""
    monkeypatch.chdir(ROOT)
    recipe = read_recipe(ROOT / "recipes" / "miniature-2.yaml")
    plans = make_plans(recipe, tmp_path)
    assert [plan.stage.name for plan in plans][:2] == ["track-gap", "track-hidden-2"]
    for plan in plans:
        for folder in plan.init.values():
            known = folder.is_relative_to("weights") and (ROOT / folder / "model.safetensors").is_file()
            assert known or folder.is_relative_to(tmp_path), plan.stage.name


@pytest.mark.parametrize("name", ["ablation", "videoglamm-miniature"])
def test_recipes_over_the_first_generation_find_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They keep their results when the packaged model changes."""
    monkeypatch.chdir(ROOT)
    plans = make_plans(read_recipe(ROOT / "recipes" / f"{name}.yaml"), tmp_path)
    assert any(FIRST_GENERATION in plan.init.values() for plan in plans)
    assert not any(MINIATURE_FOLDER in plan.init.values() for plan in plans)


def test_the_first_generation_is_a_model() -> None:
    model: Any = load(ROOT / FIRST_GENERATION, device="cpu")
    assert model.config.text.width == 96
    assert set(model.config.words) == set(known_words())


def test_weights_of_another_shape_are_refused_or_keep_their_initial_values() -> None:
    target, source = torch.nn.Linear(4, 2), torch.nn.Linear(3, 2)
    before = target.weight.detach().clone()
    with pytest.raises(TrainingError, match=r"have \(2, 3\) for weight and the model \(2, 4\)"):
        copy_weights(target, source.state_dict())
    copy_weights(target, source.state_dict(), partial=True)
    assert torch.equal(target.weight, before)
    assert torch.equal(target.bias, source.bias)
