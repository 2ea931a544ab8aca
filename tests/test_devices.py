"""Every device gives the results of the CPU: the same masks up to pixels on an edge.

Each test runs on an imitated accelerator (``imitated_device``) and on the real ones available, and compares with the
CPU. On the imitation, values are computed by the CPU's kernels: there the tests find mixed devices and errors in
device-dependent code. Only a real device shows what its kernels refuse and how they round.

Fixtures named ``expected`` come before ``device`` in a test's arguments, so that the CPU's part is computed before the
imitation starts, which would slow it down.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import layouts
from device_models import (
    MINIATURES,
    SENTENCES,
    SIZE,
    circle,
    close,
    devices_of,
    ious,
    packaged,
    packaged_on,
    sam2_model,
    shapes,
)
from golden import DATA, Golden, follow_golden, synthetic_frame, worst
from imitated_device import DEVICE
from refervos import Prompt, Segmentation, load
from refervos.evaluation.datasets import Part
from refervos.evaluation.evaluate import Request, evaluate
from refervos.samwise.model import Samwise
from refervos.session.session import Session
from refervos.training.plan import Plan, make_plans
from refervos.training.recipe import Recipe, read_recipe
from refervos.training.sampler import to_device
from refervos.training.stage import TRAIN, Stage
from refervos.training.trainer import optimiser_for, train, write_model
from scenes import FIRST_GENERATION
from test_refsam_training import recipe as refsam_recipe

LEAST_IOU = 0.99
"""Least IoU with the CPU's mask. Rounding changes the sign of a logit only near zero: at pixels on an edge."""

RECIPE = Path(__file__).parents[1] / "recipes" / "smallest.yaml"


@pytest.fixture(autouse=True)
def _quick(one_thread: None) -> None:
    """Use one thread, the fastest for small models."""


# Sessions. A script does what a user does with a model and returns the results.


def two_sentences(model: Any) -> list[Segmentation]:
    session = model.open(list(SENTENCES))
    return [session.step(frame) for frame in shapes(4)]


def frames_of_all_kinds(model: Any) -> list[Segmentation]:
    session = model.open(SENTENCES[0])
    colour = shapes(1)[0]
    large, upright = np.repeat(np.repeat(colour, 3, axis=0), 3, axis=1), torch.from_numpy(colour.transpose(1, 0, 2))
    return [session.step(frame) for frame in (large, colour[..., 0], upright, colour[::2, ::-2])]


def a_clip(model: Any) -> list[Segmentation]:
    session = model.open(list(SENTENCES))
    return session.clip(shapes(3)) + session.clip(shapes(5)[3:])


def changing_sentences(model: Any) -> list[Segmentation]:
    frames, session = shapes(6), model.open(SENTENCES[0], keep_logits=True)
    results = [session.step(frames[0])]
    session.add(SENTENCES[1])
    results.append(session.step(frames[1]))
    session.set_prompt(0, "the square")
    results.append(session.step(frames[2]))
    session.add("the circle")
    session.drop(0)
    session.mark_gap()
    results += [session.step(frame) for frame in frames[3:5]]
    session.drop(1)
    session.drop(2)
    return [*results, session.step(frames[5])]


def cuts_and_repeats(model: Any) -> list[Segmentation]:
    session = model.open(list(SENTENCES), on_cut="forget", on_repeat="reuse")
    other = [255 - frame[::-1] for frame in shapes(2)]
    results = [session.step(frame) for frame in (shapes(1)[0], shapes(1)[0], *other)]
    assert [result.repeated for result in results] == [False, True, False, False]
    assert [result.cut for result in results] == [False, False, True, False]
    return results


def corrections(model: Any) -> list[Segmentation]:
    frames, session = shapes(6), model.open(SENTENCES[1])
    results = [session.step(frame) for frame in frames[:2]]
    results.append(session.correct(0, points=[(34, 45), (100, 70)], labels=[1, 0]))
    results.append(session.undo(0))
    results.append(session.correct(0, box=(16, 27, 53, 63)))
    results.append(session.step(frames[2]))
    results.append(session.correct(0, mask=circle(2)))
    results += [session.step(frame) for frame in frames[3:5]]
    assert session.undo(0) is None
    return [*results, session.step(frames[5])]


def geometric_first_prompts(model: Any) -> list[Segmentation]:
    """Sentences with a click, a box or a mask on the first frame."""
    prompts = [
        Prompt(SENTENCES[0], points=[(30, 45)]),
        Prompt(SENTENCES[1], box=(85, 58, 115, 88)),
        Prompt(SENTENCES[0], mask=circle(0)),
    ]
    session = model.open(prompts)
    return [session.step(frame) for frame in shapes(3)]


Script = Callable[[Any], list[Segmentation]]

SOON: dict[str, Any] = {"cme_window": 2}
"""The CME runs from the fourth frame on."""

SAMWISE: dict[str, tuple[Script, dict[str, Any]]] = {
    "online": (two_sentences, SOON),
    "clips": (a_clip, {"time": "clip"}),
    "gated memory": (two_sentences, {"memory_policy": "gated", **SOON}),
    "always switching": (two_sentences, {"memory_policy": "switch", "cme_decision": "always", **SOON}),
    "frames of all kinds": (frames_of_all_kinds, {}),
    "changing sentences": (changing_sentences, {}),
    "cuts and repeats": (cuts_and_repeats, {}),
    "corrections": (corrections, {}),
    "geometric first prompts": (geometric_first_prompts, {}),
}

REFSAM: dict[str, tuple[Script, dict[str, Any]]] = {
    "online": (two_sentences, {}),
    "clips": (a_clip, {}),
    "frames of all kinds": (frames_of_all_kinds, {}),
    "changing sentences": (changing_sentences, {}),
    "cuts and repeats": (cuts_and_repeats, {}),
}

PUBLISHED: dict[str, tuple[Script, dict[str, Any]]] = {"as published": (a_clip, {"protocol": "published"})}

SCRIPTS = {"miniature": SAMWISE, "refsam-miniature": REFSAM, str(FIRST_GENERATION): PUBLISHED}


@functools.cache
def on_cpu(name: str, script: str) -> list[Segmentation]:
    run, options = SCRIPTS[name][script]
    return run(packaged(name, **options))


def assert_same(found: Sequence[Segmentation], expected: Sequence[Segmentation], least: float = LEAST_IOU) -> None:
    """Check that results are equal up to a small share of each mask's pixels."""
    assert len(found) == len(expected)
    for frame, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.track_ids == other.track_ids
        assert one.masks.shape == other.masks.shape
        assert close(one.masks, other.masks, least), f"frame {frame}: {ious(one.masks, other.masks)}"
        assert np.abs(one.presence - other.presence).max(initial=0.0) < 0.01
        assert np.array_equal(one.switched, other.switched)


@pytest.fixture
def expected(name: str, script: str) -> list[Segmentation]:
    """Compute the results on the CPU."""
    return on_cpu(name, script)


@pytest.mark.parametrize(
    ("name", "script"),
    [(name, script) for name, scripts in SCRIPTS.items() for script in scripts],
    ids=lambda value: Path(value).name,
)
def test_sessions_give_the_masks_of_the_cpu(
    name: str, script: str, expected: list[Segmentation], device: torch.device
) -> None:
    run, options = SCRIPTS[name][script]
    model = packaged_on(device, name, **options)
    assert any(result.masks.any() for result in expected)
    assert_same(run(model), expected)


@pytest.mark.parametrize("name", MINIATURES)
def test_models_are_loaded_onto_the_device(name: str, device: torch.device) -> None:
    model = load(name, device=device)
    assert model.device == device
    assert {value.device for value in (*model.parameters(), *model.buffers())} == {device}


@pytest.mark.parametrize("script", ["online"])
@pytest.mark.parametrize("name", MINIATURES)
def test_frames_may_be_on_the_device(
    name: str, script: str, expected: list[Segmentation], device: torch.device
) -> None:
    session = packaged_on(device, name).open(list(SENTENCES))
    assert_same([session.step(torch.from_numpy(frame).to(device)) for frame in shapes(2)], expected[:2])


@pytest.mark.parametrize("script", ["online"])
@pytest.mark.parametrize("name", MINIATURES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees_with_float32(
    name: str, script: str, dtype: str, expected: list[Segmentation], device: torch.device
) -> None:
    if dtype == "float16" and device == DEVICE:
        pytest.skip("float16 is for real GPUs; it is slow on the CPU behind the imitation")
    session = packaged_on(device, name, dtype=dtype).open(list(SENTENCES))
    for frame, exact in zip(shapes(3), expected, strict=False):
        assert ious(session.step(frame).masks, exact.masks).min() >= 0.9


def geometry(model: Any) -> list[Segmentation]:
    """Clicks, boxes and masks at once, one of them added later, with corrections and an undo."""
    prompts = [
        Prompt(points=[(30, 45)]),
        Prompt(points=[(30, 45), (5, 5)], labels=[1, 0]),
        Prompt(box=(85, 58, 115, 88)),
        Prompt(mask=circle(0)),
    ]
    frames, session = shapes(5), model.open(prompts)
    results = [session.step(frame) for frame in frames[:2]]
    session.add(Prompt(mask=circle(2)))
    results.append(session.step(frames[2]))
    results += [session.correct(0, box=(20, 27, 57, 63)), session.correct(1, mask=circle(2)), session.undo(1)]
    return results + [session.step(frame) for frame in frames[3:]]


@pytest.fixture(scope="module")
def expected_of_geometry() -> list[Segmentation]:
    return geometry(sam2_model(torch.float64))


def test_sam2_with_clicks_boxes_and_masks_gives_the_masks_of_the_cpu(
    expected_of_geometry: list[Segmentation], device: torch.device
) -> None:
    model = sam2_model(torch.float32 if device.type == "mps" else torch.float64)  # MPS has no float64
    assert all(result.masks.any() for result in expected_of_geometry)
    assert_same(geometry(model.to(device)), expected_of_geometry)


# State on disk.

WAYS = ("stays", "from the CPU", "to the CPU")


def models_of(way: str, name: str, device: torch.device) -> tuple[Any, Any]:
    """Return the model on which a session is saved, and the one on which it is restored."""
    here, cpu = packaged_on(device, name), packaged(name)
    before, after = {"stays": (here, here), "from the CPU": (cpu, here), "to the CPU": (here, cpu)}[way]
    return before, after


def save_and_restore(begin: Callable[[Any], Session], before: Any, after: Any, path: Path) -> Session:
    """Begin and save a session on one model, and restore it on another."""
    begin(before).save(path)
    restored: Session = after.restore(path)
    return restored


def one_frame(model: Any) -> Session:
    session: Session = model.open(list(SENTENCES))
    session.step(shapes(1)[0])
    return session


def changed_after_restoring(session: Session) -> list[Segmentation]:
    """Add and change sentences in a restored session."""
    frames = shapes(4)
    session.add("the circle")
    results = [session.step(frames[1])]
    session.set_prompt(0, "the square")
    results.append(session.step(frames[2]))
    session.set_prompt(1, SENTENCES[0])
    session.drop(0)
    return [*results, session.step(frames[3])]


@pytest.fixture
def expected_after_restoring(name: str, tmp_path: Path) -> list[Segmentation]:
    cpu = packaged(name)
    return changed_after_restoring(save_and_restore(one_frame, cpu, cpu, tmp_path / "expected"))


@pytest.mark.parametrize("name", MINIATURES)
@pytest.mark.parametrize("way", WAYS)
def test_a_session_is_restored_on_the_same_or_another_device(
    name: str, way: str, tmp_path: Path, expected_after_restoring: list[Segmentation], device: torch.device
) -> None:
    before, after = models_of(way, name, device)
    restored = save_and_restore(one_frame, before, after, tmp_path / "session")
    assert_same(changed_after_restoring(restored), expected_after_restoring)
    assert devices_of(restored) <= {after.device, torch.device("cpu")}


def corrected(model: Any) -> Session:
    session: Session = model.open(SENTENCES[1])
    session.step(shapes(1)[0])
    session.correct(0, points=[(30, 45)])
    return session


def undone_after_restoring(session: Session) -> list[Segmentation]:
    result = session.undo(0)
    assert result is not None
    return [result, session.correct(0, box=(12, 27, 49, 63)), session.step(shapes(2)[1])]


@pytest.fixture
def expected_undone(tmp_path: Path) -> list[Segmentation]:
    cpu = packaged("miniature")
    return undone_after_restoring(save_and_restore(corrected, cpu, cpu, tmp_path / "expected"))


@pytest.mark.parametrize("way", WAYS)
def test_a_restored_correction_can_be_undone(
    way: str, tmp_path: Path, expected_undone: list[Segmentation], device: torch.device
) -> None:
    before, after = models_of(way, "miniature", device)
    restored = save_and_restore(corrected, before, after, tmp_path / "session")
    assert_same(undone_after_restoring(restored), expected_undone)


# Training.

STAGES = ("track-images", "track-clips", "language", "images", "video")
REFSAM_STAGES = ("sam", "language", "images", "clips")
ALL_STAGES = [*(f"samwise {name}" for name in STAGES), *(f"refsam {name}" for name in REFSAM_STAGES)]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Plan]:
    """Plan every stage of two small recipes; each starts from untrained models of the earlier ones."""
    recipes: dict[str, Recipe] = {"samwise": read_recipe(RECIPE), "refsam": refsam_recipe()}
    found: dict[str, Plan] = {}
    for family, recipe in recipes.items():
        for plan in make_plans(recipe, tmp_path_factory.mktemp(family)):
            plan.folder.mkdir(parents=True)
            write_model(stage_of(plan), plan.model)
            found[f"{family} {plan.stage.name}"] = plan
    return found


def stage_of(plan: Plan) -> Stage:
    torch.manual_seed(1)
    stage = plan.kind.build(plan.settings, plan.init, 1)
    stage.prepare_data(2, 0)
    return stage


def without_dropout(stage: Stage) -> None:
    """Disable dropout, because devices draw different random numbers."""
    for module in stage.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_p"):
            module.dropout_p = 0.0  # type: ignore[assignment]


def one_step(plan: Plan, device: torch.device, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Compute the losses of a batch and their gradient norm; check that an optimiser step changes the parameters."""
    stage = stage_of(plan).to(device).train()
    without_dropout(stage)
    source = stage.source()
    batch = source.collate([source.draw(0, index, (1, plan.number, TRAIN)) for index in range(2)])
    optimiser = optimiser_for(stage, lr=1e-3)
    with nullcontext() if dtype is None else torch.autocast(device.type, dtype):
        losses = stage(to_device(batch, device))
    losses["loss"].backward()
    learning = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    assert {parameter.device for parameter in learning} == {device}
    losses["gradient"] = nn.utils.clip_grad_norm_(learning, 1e9)
    before = [parameter.detach().clone() for parameter in learning]
    optimiser.step()
    changed = [not torch.equal(old, new) for old, new in zip(before, learning, strict=True)]
    assert sum(changed) > len(changed) / 2
    return {name: value_of(loss.detach()) for name, loss in losses.items()}


def value_of(output: torch.Tensor) -> float:
    """Return a scalar output of a stage, or the quotient of a ``ratio``."""
    return float(output if not output.ndim else output[0] / output[1].clamp(min=1e-9))


@pytest.fixture(scope="module")
def steps_on_cpu(plans: Mapping[str, Plan]) -> Callable[[str], dict[str, float]]:
    return functools.cache(lambda name: one_step(plans[name], torch.device("cpu")))


@pytest.fixture
def expected_step(name: str, steps_on_cpu: Callable[[str], dict[str, float]]) -> dict[str, float]:
    return steps_on_cpu(name)


@pytest.mark.parametrize("name", ALL_STAGES)
def test_a_training_step_gives_the_losses_of_the_cpu(
    name: str, plans: Mapping[str, Plan], expected_step: dict[str, float], device: torch.device
) -> None:
    assert expected_step["gradient"] > 0
    assert one_step(plans[name], device) == pytest.approx(expected_step, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("device", ["cpu", "cuda"], indirect=True)  # autocast has no imitated device
@pytest.mark.parametrize("name", ALL_STAGES)
def test_a_training_step_in_mixed_precision_agrees_with_float32(
    name: str, plans: Mapping[str, Plan], expected_step: dict[str, float], device: torch.device
) -> None:
    losses = one_step(plans[name], device, torch.bfloat16)
    assert all(np.isfinite(loss) for loss in losses.values()), losses
    assert losses["loss"] == pytest.approx(expected_step["loss"], rel=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_the_trainer_runs_every_stage_on_the_gpu(precision: str, tmp_path: Path) -> None:
    """Its saved models can be loaded on the CPU."""
    recipe = read_recipe(RECIPE)
    for stage in recipe.stages:
        object.__setattr__(stage, "precision", precision)
    reports = train(recipe, tmp_path, steps=2, show_progress=False)
    assert all(report.device == torch.cuda.get_device_name() for report in reports)
    model: Any = load(tmp_path / "video" / "model", device="cpu")
    assert model.open("the red circle").step(shapes(1)[0]).masks.shape == (1, *SIZE)
    assert train(recipe, tmp_path, steps=2, show_progress=False) == []  # all finished


# Evaluation.


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    return Part("mevis", layouts.write_mevis(tmp_path_factory.mktemp("mevis"), videos=1, frames=4))


def scores(name: str, part: Part, folder: Path, device: str) -> dict[str, tuple[float, float]]:
    """Compute J and F of each expression."""
    found = evaluate(Request(name, part, folder, device=device), show_progress=False).summary.scored
    return {result.expression: (score.j, score.f) for result, score in found}


@pytest.fixture
def expected_scores(name: str, part: Part, tmp_path: Path) -> dict[str, tuple[float, float]]:
    return scores(name, part, tmp_path / "expected", "cpu")


@pytest.mark.parametrize("name", MINIATURES)
def test_an_evaluation_gives_the_scores_of_the_cpu(
    name: str,
    tmp_path: Path,
    part: Part,
    expected_scores: dict[str, tuple[float, float]],
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("refervos.loading.find_device", torch.device)  # which does not know the imitated one
    found = scores(name, part, tmp_path / "found", str(device))
    assert found.keys() == expected_scores.keys()
    assert any(j > 0.3 for j, _ in expected_scores.values())
    for expression, score in expected_scores.items():
        assert found[expression] == pytest.approx(score, abs=0.03), expression


# Parity with the released code.


@pytest.mark.parametrize("device", ["cuda", "mps"], indirect=True)  # test_parity does that on the CPU
def test_released_decisions_are_reproduced_in_float32(
    device: torch.device, golden_model: Callable[..., Samwise]
) -> None:
    """Logits agree as far as float32 reproduces them (see ``test_parity``)."""
    golden = Golden(DATA / "synth256_switch.npz")
    model = golden_model("tiny_hsa_cme", golden.meta["overrides"], image_size=256)
    try:
        rows = follow_golden(model.to(device), golden, synthetic_frame, ((0, 8), (8, 16), (16, 17)))
    finally:
        model.cpu()
    assert worst(rows, ["switch"]) == 0
    assert worst(rows, ["mem.low_res_masks"], 0, 2) < 2e-3
    assert worst(rows, ["mem.low_res_masks"]) < 0.12
