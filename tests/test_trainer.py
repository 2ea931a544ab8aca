"""The trainer in one process: training, files, refusals, interruption and resumption."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from refervos.cli import entry as cli
from refervos.errors import CheckpointError, ConfigError, MissingDependencyError, RefervosError, TrainingError
from refervos.training import checkpoint
from refervos.training.history import History, Means
from refervos.training.plan import make_plans
from refervos.training.recipe import Recipe, recipe_from_mapping
from refervos.training.report import draw_losses
from refervos.training.sampler import ShareSampler, to_device
from refervos.training.trainer import optimiser_for, require_packages, train
from training_runs import history, training_losses
from training_stages import ToySettings, ToyStage


def toy(steps: int = 30, settings: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "name": "toy",
        "stage": "training_stages:ToyStage",
        "steps": steps,
        "batch": 8,
        "optimiser": {"rate": 1e-2, "warmup": min(3, steps - 1)},
        "checkpoint_every": 10,
        "validate_every": 15,
        "validation_batches": 2,
        "log_every": 4,
        "settings": settings or {},
        **changes,
    }


def recipe_of(*stages: dict[str, Any], seed: int = 3) -> Recipe:
    return recipe_from_mapping({"name": "test", "seed": seed, "stages": list(stages)})


def run(out: Path, *stages: dict[str, Any], **options: Any) -> list[Any]:
    return train(recipe_of(*stages), out, show_progress=False, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "w.safetensors")


def assert_same_result(one: Path, other: Path) -> None:
    """The same history to the last digit, and the same weights to the last bit."""
    assert (one / "history.jsonl").read_text() == (other / "history.jsonl").read_text()
    assert (one / "model" / "w.safetensors").read_bytes() == (other / "model" / "w.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy stage, trained without interruption."""
    out = tmp_path_factory.mktemp("whole")
    run(out, toy())
    return out / "toy"


# Training and its files.


def test_the_loss_falls(tmp_path: Path) -> None:
    (report,) = run(tmp_path, toy(steps=150))
    losses = training_losses(tmp_path / "toy")
    assert losses[-1] < 0.3 * losses[0]
    assert report.validation["loss"] < 0.3 * losses[0]


def test_a_finished_stage_has_all_its_files(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        *("recipe.yaml", "checkpoints", "history.jsonl", "tensorboard", "report.md", "loss.png", "model", ".lock")
    }
    assert [path.name for path in checkpoint.checkpoints_in(whole / "checkpoints")] == ["step-000020", "step-000030"]
    rows = history(whole)
    assert [row["step"] for row in rows if "train" in row] == [4, 8, 12, 16, 20, 24, 28, 30]
    assert [row["step"] for row in rows if "validation" in row] == [15, 30]
    assert set(rows[0]["train"]) == {"loss", "share", "gradient_norm", "rate"}
    report = (whole / "report.md").read_text()
    for part in ("# toy", "train loss", "validation loss", "| steps | 30 |", "samples per second", "cpu, float32"):
        assert part in report
    assert "| parameters trained | 161 |" in report
    assert "| parameters frozen | 48 |" in report
    assert (whole / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "dropout: 0.2" in (whole / "recipe.yaml").read_text()


def test_tensorboard_has_the_history(whole: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (row["step"], pytest.approx(row["train"]["loss"], rel=1e-6)) for row in history(whole) if "train" in row
    ]
    assert [event.step for event in events.Scalars("validation/loss")] == [15, 30]


def test_the_same_recipe_gives_the_same_result(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, toy())
    assert_same_result(whole, tmp_path / "toy")


def test_intervals_of_logging_validation_and_checkpoints_do_not_change_the_weights(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, toy(validate_every=7, checkpoint_every=9, log_every=5, workers=1))
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(tmp_path / "toy")[name]), name


def test_accumulated_batches_give_the_weights_of_the_whole_batch(tmp_path: Path) -> None:
    plain = {"norm": False, "dropout": 0.0, "counted": False}
    run(tmp_path / "whole", toy(settings=plain))
    run(tmp_path / "parts", toy(settings=plain, accumulate=4))
    parts = weights(tmp_path / "parts" / "toy")
    for name, tensor in weights(tmp_path / "whole" / "toy").items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-5)


def test_shares_of_processes_cover_the_batch_once() -> None:
    samples = [sample for rank in range(3) for part in ShareSampler(range(5, 7), 12, 2, rank, 3) for sample in part]
    assert sorted(samples) == [(step, index) for step in (5, 6) for index in range(12)]
    assert list(ShareSampler(range(5, 6), 12, 2, 1, 3)) == [[(5, 2), (5, 3)], [(5, 8), (5, 9)]]
    assert len(ShareSampler(range(5, 7), 12, 2, 1, 3)) == 4
    with pytest.raises(TrainingError, match="a batch of 12 cannot be split equally over 5 processes"):
        ShareSampler(range(1), 12, 1, 0, 5)


def test_nested_batches_are_moved_to_the_device() -> None:
    batch = {"pixels": torch.zeros(2), "words": ["a", "b"], "rest": [(torch.ones(1), None)]}
    moved = to_device(batch, torch.device("meta"))
    assert moved["pixels"].device.type == moved["rest"][0][0].device.type == "meta"
    assert (moved["words"], moved["rest"][0][1]) == (["a", "b"], None)


def test_each_mean_is_over_the_steps_that_have_its_scalar() -> None:
    means = Means()
    for name, value in (("loss", 1.0), ("loss", 3.0), ("rare", 5.0)):
        means.add(name, value)
    other = Means(means.sums())
    other.merge(means)
    assert other.values() == {"loss": 2.0, "rare": 5.0}
    assert other.sums() == {"loss": [8.0, 4], "rare": [10.0, 2]}


def test_parameter_groups_keep_their_own_rate_scales() -> None:
    class SlowHead(ToyStage):
        def parameter_groups(self) -> list[dict[str, Any]]:
            head = list(self.head.parameters())
            return [
                {"params": head, "rate_scale": 0.1},
                {"params": iter(self.model.learns.parameters())},
                {"params": []},
            ]

    optimiser = optimiser_for(SlowHead(ToySettings()), lr=1.0)
    assert [group["rate_scale"] for group in optimiser.param_groups] == [0.1, 1.0]
    frozen = ToyStage(ToySettings()).requires_grad_(False)
    with pytest.raises(TrainingError, match="has no parameter to train"):
        optimiser_for(frozen)


# Several stages, and changes of the recipe.


def test_stages_start_from_earlier_ones_and_finished_ones_are_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = toy(steps=5, name="first"), toy(steps=5, name="second", init={"tracker": "first"})
    assert [report.stage for report in run(tmp_path, first)] == ["first"]
    written = (tmp_path / "first" / "model" / "w.safetensors").stat().st_mtime_ns
    assert [report.stage for report in run(tmp_path, first, second)] == ["second"]
    assert (tmp_path / "first" / "model" / "w.safetensors").stat().st_mtime_ns == written
    for name in ("frozen.0.weight", "frozen.1.running_mean"):
        assert torch.equal(weights(tmp_path / "first")[name], weights(tmp_path / "second")[name])
    assert train(recipe_of(first, second), tmp_path) == []
    assert "first is finished" in capsys.readouterr().out


def test_a_stage_refuses_to_resume_on_a_retrained_initial_model(tmp_path: Path) -> None:
    first, second = toy(steps=2, name="first"), toy(steps=2, name="second", init="previous")
    run(tmp_path, first, second)
    changed = {**first, "steps": 4}
    run(tmp_path, changed, second, stages=["first"], restart=True)
    with pytest.raises(TrainingError, match=r"stage 'second' was started .*first/model holds another model"):
        run(tmp_path, changed, second)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch": 16}, "batch is 16 and was 8"),
        ({"steps": 20}, "steps is 20 and was 30"),
        ({"steps": 0, "epochs": 2.0, "optimiser": {"rate": 1e-2, "warmup": 3}}, "steps is 0 and was 30; epochs is 2.0"),
        ({"steps": 40, "batch": 16}, "batch is 16 and was 8"),
        ({"optimiser": {"rate": 0.5, "warmup": 3}}, "optimiser.rate is 0.5 and was 0.01"),
        ({"settings": {"width": 6}}, "settings.width is 6 and was 4"),
        ({"init": {"model": "elsewhere"}}, "init.model is elsewhere and was None"),
    ],
)
def test_a_changed_recipe_is_refused(
    changes: dict[str, Any], sentence: str, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)
    (whole / "elsewhere").mkdir(exist_ok=True)
    with pytest.raises(TrainingError) as caught:
        run(whole.parent, toy(**changes))
    (whole / "elsewhere").rmdir()
    assert f"stage 'toy' was started with another recipe: {sentence}" in str(caught.value)
    assert "start the stage over with --stage toy --restart" in str(caught.value)


@pytest.mark.parametrize("done", [20, 26])
def test_an_extended_stage_resumes_and_keeps_its_earlier_model(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Finished after 20 steps, or interrupted during the extension; a constant rate makes the result comparable."""
    steady: dict[str, Any] = {"schedule": "constant", "validate_every": 10, "settings": {"kill_at": 25}}
    run(tmp_path / "whole", toy(steps=30, **steady))
    run(tmp_path / "parts", toy(steps=20, **steady))
    folder = tmp_path / "parts" / "toy"
    short = weights(folder)
    if done > 20:
        monkeypatch.setenv("TOY_KILL", "SIGINT")
        with pytest.raises(KeyboardInterrupt, match="stopped at step 26"):
            run(tmp_path / "parts", toy(steps=30, **steady))
        assert not (folder / "model").exists()
        monkeypatch.delenv("TOY_KILL")
    capsys.readouterr()
    (report,) = train(recipe_of(toy(steps=30, **steady)), tmp_path / "parts")
    printed = capsys.readouterr().err
    assert f"toy resumes from step {done}." in printed
    assert ("toy is extended; its model so far is kept in" in printed) == (done == 20)
    assert report.steps == 30
    assert_same_result(tmp_path / "whole" / "toy", folder)
    kept = load_file(folder / "model-step-000020" / "w.safetensors")
    assert all(torch.equal(kept[name], short[name]) for name in short)
    assert run(tmp_path / "parts", toy(steps=30, **steady)) == []
    run(tmp_path / "parts", toy(steps=5), restart=True, stages=["toy"])
    assert not (folder / "model-step-000020").exists()


def test_an_interrupted_loss_plot_leaves_the_old_file(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_halfway(figure: Any, target: Any) -> None:
        if isinstance(target, str):
            Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg.print_png", stop_halfway)
    before = (whole / "loss.png").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        draw_losses(History(whole / "history.jsonl", 1000, write=False), whole / "loss.png")
    assert (whole / "loss.png").read_bytes() == before


def test_a_stage_is_shortened_to_its_time_limit_and_its_schedule_runs_to_the_end(tmp_path: Path) -> None:
    long = toy(steps=1_000_000, validate_every=None, optimiser={"rate": 1e-2, "final_rate": 1e-5})
    assert [report.steps for report in run(tmp_path / "short", toy(steps=30), minutes=10)] == [30]
    (report,) = run(tmp_path, long, minutes=0.02)
    assert 20 < report.steps < 100_000
    rows = history(tmp_path / "toy")
    assert rows[-1]["step"] == report.steps
    assert [row["train"]["rate"] for row in rows if "train" in row][-1] == pytest.approx(1e-5)
    stored = yaml.safe_load((tmp_path / "toy" / "recipe.yaml").read_text())
    assert (stored["stage"]["steps"], stored["number"]) == (report.steps, 0)
    assert run(tmp_path, long, minutes=0.02) == []  # finished, as long as a time limit is given


def test_a_finished_stage_without_checkpoints_cannot_be_extended(tmp_path: Path) -> None:
    run(tmp_path, toy(steps=4))
    shutil.rmtree(tmp_path / "toy" / "checkpoints")
    assert run(tmp_path, toy(steps=4)) == []
    with pytest.raises(TrainingError, match=r"its checkpoints are gone; .* a stage that starts from .*toy/model"):
        run(tmp_path, toy(steps=5))
    assert (tmp_path / "toy" / "model").is_dir()


def test_a_recipe_may_change_as_long_as_there_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the loss is not finite at step 1"):
        run(tmp_path, toy(steps=4, settings={"nan_at": 0}))
    (report,) = run(tmp_path, toy(steps=4, batch=4, accumulate=2))
    assert report.steps == 4


def test_cosmetic_changes_of_a_recipe_are_accepted(whole: Path) -> None:
    assert run(whole.parent, toy(log_every=1, keep=9, workers=2, validate_every=1)) == []


def test_another_seed_or_position_is_another_recipe(whole: Path) -> None:
    with pytest.raises(TrainingError, match="seed is 4 and was 3"):
        train(recipe_of(toy(), seed=4), whole.parent)
    with pytest.raises(TrainingError, match="the position in the recipe is 1 and was 0"):
        run(whole.parent, toy(name="before"), toy(), stages=["toy"])


def test_results_without_their_recipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "toy" / "model").mkdir(parents=True)
    with pytest.raises(TrainingError, match=r"has results but no recipe\.yaml"):
        run(tmp_path, toy())


def test_restarting_deletes_results_and_nothing_else(tmp_path: Path) -> None:
    run(tmp_path, toy(steps=2))
    (tmp_path / "toy" / "notes.txt").write_text("mine")
    with pytest.raises(TrainingError, match="name the stages with --stage"):
        run(tmp_path, toy(steps=3), restart=True)
    (report,) = run(tmp_path, toy(steps=3), restart=True, stages=["toy"])
    assert report.steps == 3
    assert (tmp_path / "toy" / "notes.txt").read_text() == "mine"


# Interruption.


def test_a_killed_run_resumes_to_the_result_of_an_uninterrupted_one(whole: Path, tmp_path: Path) -> None:
    """The kill comes at step 17, between two checkpoints and two rows of the history."""
    killed = toy(settings={"kill_at": 17})
    code = "import json, sys, test_trainer; test_trainer.run(test_trainer.Path(sys.argv[1]), json.loads(sys.argv[2]))"
    environment = {
        **os.environ,
        "TOY_KILL": "SIGKILL",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), json.dumps(killed)], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    folder = tmp_path / "toy"
    assert not (folder / "model").exists()
    assert history(folder)[-1]["step"] == 16  # after the last checkpoint: dropped on resumption
    # A kill in the middle of writing would leave half a checkpoint and half a row.
    half = folder / "checkpoints" / ".step-000020.part"
    (half / "new").mkdir(parents=True)
    (half / ".lock").touch()
    (half / "new" / "state.pt").write_bytes(b"half")
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"step": 17, "tr')
    run(tmp_path, killed)
    assert_same_result(whole, folder)
    assert not half.exists()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_run_writes_a_checkpoint_first(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_KILL", name)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 18 of toy; .*step-000018 is written"):
        run(tmp_path, toy(settings={"kill_at": 17}))
    assert [signal.getsignal(number) for number in numbers] == before
    run(tmp_path, toy(settings={"kill_at": 17}))
    assert_same_result(whole, tmp_path / "toy")


def test_an_interruption_in_the_last_step_stops_before_the_next_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_KILL", "SIGINT")
    last = toy(steps=5, settings={"kill_at": 4})
    with pytest.raises(KeyboardInterrupt, match="stopped after toy, which is finished"):
        run(tmp_path, last, toy(name="next", steps=2))
    assert (tmp_path / "toy" / "model").is_dir()
    assert not (tmp_path / "next").exists()


def test_a_damaged_checkpoint_is_skipped(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, toy())
    folder = tmp_path / "toy"
    for path in (folder / "model").iterdir():
        path.unlink()
    (folder / "model").rmdir()
    newest = folder / "checkpoints" / "step-000030" / "state.pt"
    flipped = bytearray(newest.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    newest.write_bytes(flipped)
    train(recipe_of(toy()), tmp_path)
    printed = capsys.readouterr().err
    assert "step-000030 is damaged: its contents do not match its SHA-256. It is skipped." in printed
    assert "toy resumes from step 20." in printed
    assert_same_result(whole, folder)


def test_a_stage_whose_checkpoints_are_all_damaged_is_not_started_over(tmp_path: Path) -> None:
    folder = tmp_path / "toy" / "checkpoints"
    checkpoint.write_checkpoint(folder, 10, {"step": 10}, keep=2)
    (folder / "step-000010" / "manifest.json").unlink()
    with pytest.raises(
        CheckpointError,
        match=r"no checkpoint in .* can be resumed from; start the stage over with --restart \(.* is incomplete\)\.$",
    ):
        checkpoint.read_newest(folder, lambda sentence: None)


def test_a_full_disk_leaves_the_last_checkpoint_intact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = checkpoint.write_checkpoint(tmp_path, 10, {"step": 10}, keep=1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"step-000020' cannot be written \(No space left on device\)"):
        checkpoint.write_checkpoint(tmp_path, 20, {"step": 20}, keep=1)
    assert list(tmp_path.iterdir()) == [written]
    assert checkpoint.read_checkpoint(written) == {"step": 10}


def test_checkpoints_load_nothing_but_tensors_and_plain_values(tmp_path: Path) -> None:
    path = checkpoint.write_checkpoint(tmp_path, 1, {"step": Path("an object")}, keep=1)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_checkpoint(path)


def test_random_states_survive_a_checkpoint(tmp_path: Path) -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, ...]:
        return random.gauss(), float(np.random.normal()), float(torch.rand(()))

    checkpoint.seed_random(1, 2)
    draw()
    path = checkpoint.write_checkpoint(tmp_path, 1, {"random": checkpoint.random_state()}, keep=1)
    expected = draw()
    checkpoint.seed_random(3)
    checkpoint.restore_random_state(checkpoint.read_checkpoint(path)["random"])
    assert draw() == expected


def test_the_random_state_of_any_gpu_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    def imitate(kind: str | None, **generator: Any) -> None:
        module = SimpleNamespace(__name__=f"torch.{kind}", **generator)
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind or "cpu"))
        monkeypatch.setattr(torch, "get_device_module", lambda device: module)

    restored: list[Any] = []
    imitate("mps", get_rng_state=lambda: torch.tensor([7, 1]), set_rng_state=restored.append)
    state = checkpoint.random_state()
    checkpoint.restore_random_state(state)
    assert [part.tolist() for part in restored] == [[7, 1]]
    imitate("xpu", set_rng_state=restored.append)
    checkpoint.restore_random_state(state)  # the state of another kind of GPU is not restored
    imitate(None)
    checkpoint.restore_random_state(state)
    assert len(restored) == 1
    assert checkpoint.random_state()["gpu"] is None
    imitate("cuda")  # not initialised yet
    assert checkpoint.random_state()["gpu"] is None


def test_checkpoints_do_not_hold_frozen_weights(whole: Path) -> None:
    state = checkpoint.read_checkpoint(whole / "checkpoints" / "step-000030")
    assert not [name for name in state["stage"] if "frozen" in name]
    assert "model.frozen.0.weight" in state["frozen"]
    assert "head.weight" in state["stage"]


def test_a_checkpoint_with_other_frozen_weights_is_refused(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = ToyStage.build

    def build_other(settings: Any, init: Any, seed: int) -> ToyStage:
        stage = build(settings, init, seed)
        nn.init.zeros_(next(stage.model.frozen.parameters()))
        return stage

    monkeypatch.setattr(ToyStage, "build", build_other)
    os.rename(whole / "model", whole / "model-elsewhere")
    try:
        with pytest.raises(TrainingError, match="checkpoint of step 30 of toy was made with other frozen weights"):
            run(whole.parent, toy())
    finally:
        os.rename(whole / "model-elsewhere", whole / "model")


def test_two_runs_cannot_train_in_one_folder(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    code = (
        "import sys; from pathlib import Path; from refervos.files.locks import FolderLock;"
        "lock = FolderLock(Path(sys.argv[1]), 'x', ValueError); print('held'); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-u", "-c", code, str(tmp_path / "toy")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match="another process is training in"):
            run(tmp_path, toy())
        other.communicate("\n")


def test_a_kill_while_the_recipe_is_written_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A truncated recipe would count as another one, so that the stage could never resume."""
    (plan,) = make_plans(recipe_from_mapping({"name": "test", "stages": [toy()]}), tmp_path)
    plan.folder.mkdir()
    plan.write_recipe()
    before = (plan.folder / "recipe.yaml").read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: os._exit(9))
    child = os.fork()
    if not child:
        plan.write_recipe()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (plan.folder / "recipe.yaml").read_text() == before


# Refusals.


def test_an_output_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(TrainingError, match=r"file/toy' cannot be written \(Not a directory\)"):
        run(tmp_path / "file", toy())


@pytest.mark.parametrize(
    ("leak", "sentence"),
    [
        ("trainable", "model.frozen.0.weight is in a frozen part but requires gradients"),
        ("optimiser", "model.frozen.0.weight is in a frozen part but is given to the optimiser"),
        ("parameter", "model.frozen.0.weight is in a frozen part but changed before step 10"),
        ("buffer", "model.frozen.1.running_mean is in a frozen part but changed before step 10"),
    ],
)
def test_a_frozen_part_that_could_change_stops_training(leak: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, toy(settings={"leak": leak}))
    assert sentence in str(caught.value)
    assert not checkpoint.checkpoints_in(tmp_path / "toy" / "checkpoints")


def test_a_loss_that_is_not_finite_stops_training_before_it_reaches_the_disk(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"the loss is not finite at step 15 of toy .*last checkpoint is .*step-000010"
    ):
        run(tmp_path, toy(settings={"nan_at": 14}))
    state = checkpoint.read_checkpoint(tmp_path / "toy" / "checkpoints" / "step-000010")
    assert all(value.isfinite().all() for value in state["stage"].values())
    assert not (tmp_path / "toy" / "model").exists()


def test_a_precision_that_the_device_does_not_support_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU supports it")
    with pytest.raises(TrainingError, match="fp16 needs a GPU"):
        run(tmp_path, toy(precision="fp16"))


def test_bfloat16_trains(tmp_path: Path) -> None:
    (report,) = run(tmp_path, toy(steps=4, precision="bf16"))
    assert report.precision == "bf16"
    assert ("device", "cpu, mixed bf16") in report.rows() or torch.cuda.is_available()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name in ("accelerate", "ruamel.yaml") else True
    )
    with pytest.raises(
        MissingDependencyError, match=r"needs accelerate and ruamel\.yaml: pip install 'refervos\[train\]'"
    ):
        require_packages()


# The command.


def command(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["refervos", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


RECIPE = """
name: small
stages:
  - {name: toy, stage: "training_stages:ToyStage", steps: 40, batch: 4, log_every: 1, settings: {kill_at: 2}}
"""


def test_the_command_trains_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(RECIPE)
    assert command("none.yaml", monkeypatch=monkeypatch) == 2
    printed = capsys.readouterr().err
    assert printed == "refervos: the recipe none.yaml cannot be read (No such file or directory); give a YAML file.\n"
    monkeypatch.setenv("TOY_KILL", "SIGINT")
    assert command("small.yaml", "--steps", 6, "--quiet", monkeypatch=monkeypatch) == 130
    printed = capsys.readouterr().err
    assert printed.startswith("refervos: stopped at step 3 of toy; runs/small-6-steps/toy/checkpoints/step-000003 is")
    assert command("small.yaml", "--steps", 6, monkeypatch=monkeypatch) == 0
    captured = capsys.readouterr()
    assert "toy resumes from step 3." in captured.err
    assert "toy 6/6  loss " in captured.err
    assert "  steps               6\n" in captured.out
    assert not (tmp_path / "runs" / "small").exists()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
    ],
)
def test_running_out_of_memory_says_which_settings_to_change(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, toy(steps=10))

    def full(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(ToyStage, "forward", full)
    with pytest.raises(TrainingError) as caught:
        run(tmp_path, toy(steps=20))
    sentence = str(caught.value)
    assert sentence.startswith("cpu ran out of memory in toy after 10 steps; set accumulate, which is 1, to a greater")
    assert "start over with --stage toy --restart" in sentence
    assert sentence.endswith("resumes from " + str(tmp_path / "toy" / "checkpoints" / "step-000010") + ".")


def test_other_errors_of_a_stage_are_not_mistaken_for_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(ToyStage, "forward", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(tmp_path, toy(steps=2))


def test_training_and_configuration_errors_are_refervos_errors() -> None:
    assert issubclass(TrainingError, RefervosError)
    assert issubclass(ConfigError, RefervosError)
