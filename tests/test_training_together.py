"""Two processes train every stage to the result of one, accumulate, resume at another size, and notice a lost one."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from refervos.errors import TrainingError
from refervos.training import trainer
from refervos.training.checkpoint import checkpoints_in
from small_stages import small_recipe, small_stage
from test_trainer import toy
from training_runs import history

pytestmark = pytest.mark.timeout(1800)

RESUMED = {"steps": 4, "checkpoint_every": 2, "keep": 5, "log_every": 4, "batch": 4, "accumulate": 2}
"""A run with a checkpoint in the middle, before the first row of the history."""


@dataclass(frozen=True)
class Job:
    """A run of one stage.

    Attributes:
        out: Name of its folder.
        stage: The stage's recipe.
        signal_at: Name of the signal that ends the process that draws the first sample of a certain step (``toy``).
    """

    out: str
    stage: dict[str, Any]
    signal_at: str = ""

    def run(self, folder: Path) -> None:
        os.environ.pop("TOY_KILL", None)
        if self.signal_at:
            os.environ["TOY_KILL"] = self.signal_at
        trainer.train(small_recipe(self.stage), folder / self.out, show_progress=False)


def one_of_two(rank: int, port: int, folder: Path, jobs: Sequence[Job]) -> None:
    """Run jobs as one of two processes, and write what was seen to ``folder``."""
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    exchanges, find_unused = count_exchanges()
    seen: dict[str, Any] = {}
    for job in jobs:
        exchanges.clear()
        written = watch_writes(folder / job.out)
        began = time.monotonic()
        try:
            job.run(folder)
            seen[job.out] = {"exchanges": len(exchanges), "find_unused": find_unused[-1], "written": written()}
        except TrainingError as error:
            seen[job.out] = {"error": str(error), "seconds": time.monotonic() - began}
        (folder / f"seen-{rank}.json").write_text(json.dumps(seen))


def count_exchanges() -> tuple[list[int], list[bool]]:
    """Count the buckets of gradients that are exchanged; also note DDP's ``find_unused_parameters`` of each run."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    exchanges: list[int] = []
    find_unused: list[bool] = []
    build = trainer.StageRun._build

    def counted(state: Any, bucket: Any) -> Any:
        exchanges.append(1)
        return allreduce_hook(state, bucket)

    def built(run: Any) -> None:
        build(run)
        find_unused.append(run.wrapped.find_unused_parameters)
        run.wrapped.register_comm_hook(None, counted)

    counted.__annotations__.clear()  # strings, which DDP does not understand
    trainer.StageRun._build = built  # type: ignore[assignment,method-assign]
    return exchanges, find_unused


def watch_writes(folder: Path) -> Any:
    """Watch which files this process opens for writing below a folder; returns a function that lists them."""
    import sys

    names: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and str(folder) in arguments[0]:
            mode, flags = arguments[1], arguments[2]
            if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR):
                names.append(arguments[0])

    sys.addaudithook(hook)
    return lambda: list(names)


def run_as_two(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Run jobs in two processes; return what each has seen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=one_of_two, args=(rank, port, folder, jobs)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(1500)
        process.kill()
    return [json.loads(path.read_text()) for path in sorted(folder.glob("seen-*.json"))]


def halved(folder: Path, whole: str, half: str) -> None:
    """Copy a run as it was at its checkpoint in the middle."""
    shutil.copytree(folder / whole, folder / half)
    (stage,) = (path for path in (folder / half).iterdir() if path.is_dir())
    shutil.rmtree(stage / "model")
    shutil.rmtree(checkpoints_in(stage / "checkpoints")[-1])
    assert [path.name for path in checkpoints_in(stage / "checkpoints")] == ["step-000002"]


DYING = toy(steps=12, checkpoint_every=4, validation_batches=0, settings={"dropout": 0.0, "kill_at": 9})


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> tuple[Path, list[dict[str, Any]]]:
    """Runs of a few stages in one process, in two, and in both one after the other."""
    folder = tmp_path_factory.mktemp("together")
    names = ("track", "conversation")
    for name in names:
        Job(f"one-{name}", small_stage(name)).run(folder)
        Job(f"parts-{name}", small_stage(name, accumulate=2)).run(folder)
    track = small_stage("track", **RESUMED)
    Job("whole", track).run(folder)
    halved(folder, "whole", "one-then-two")
    jobs = [Job(f"two-{name}", small_stage(name)) for name in names]
    jobs += [Job("both-parts", small_stage("track", accumulate=2)), Job("one-then-two", track), Job("both", track)]
    idle = toy(steps=2, batch=4, settings={"idle": True, "dropout": 0.0}, validation_batches=0)
    jobs += [Job("idle", idle), Job("dying", DYING, signal_at="SIGKILL")]
    seen = run_as_two(folder, jobs)
    halved(folder, "both", "two-then-one")
    Job("two-then-one", track).run(folder)
    return folder, seen


def trained(folder: Path) -> dict[str, Tensor]:
    """Read the weights of the only stage of a run."""
    (stage,) = (path for path in folder.iterdir() if path.is_dir())
    return {name: value for path in (stage / "model").glob("*.safetensors") for name, value in load_file(path).items()}


def assert_same_training(one: Path, other: Path, kinds: Sequence[str] = ("train", "validation")) -> None:
    """The same losses at every row, and the same weights, to 1e-5."""
    (stage,) = (path.name for path in one.iterdir() if path.is_dir())
    rows, others = history(one / stage), history(other / stage)
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, found in zip(rows, others, strict=True):
        assert found.keys() == row.keys()
        for kind in kinds:
            assert found.get(kind, {}) == pytest.approx(row.get(kind, {}), rel=1e-5, abs=1e-5), kind
    weights, found_weights = trained(one), trained(other)
    assert weights.keys() == found_weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(found_weights[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", ["track", "conversation"])
def test_two_processes_and_accumulated_batches_equal_one_process(
    name: str, together: tuple[Path, list[dict[str, Any]]]
) -> None:
    folder, _ = together
    assert_same_training(folder / f"one-{name}", folder / f"two-{name}")
    # Validation averages over batches, which are smaller here.
    assert_same_training(folder / f"one-{name}", folder / f"parts-{name}", ["train"])


def test_both_together_equal_one_process(together: tuple[Path, list[dict[str, Any]]]) -> None:
    assert_same_training(together[0] / "one-track", together[0] / "both-parts", ["train"])


@pytest.mark.parametrize("run", ["one-then-two", "two-then-one", "both"])
def test_a_run_resumes_with_another_number_of_processes(run: str, together: tuple[Path, list[dict[str, Any]]]) -> None:
    assert_same_training(together[0] / "whole", together[0] / run)


def test_gradients_are_exchanged_once_a_step(together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, seen = together
    assert seen[0]["two-track"]["exchanges"] == seen[0]["both-parts"]["exchanges"] > 0


def test_unused_parameters_are_searched_for_only_where_there_are_some(
    together: tuple[Path, list[dict[str, Any]]],
) -> None:
    _, seen = together
    found = {name: seen[0][f"two-{name}"]["find_unused"] for name in ("track", "conversation")}
    assert found == {"track": True, "conversation": False}


def test_only_the_first_process_writes(together: tuple[Path, list[dict[str, Any]]]) -> None:
    _, seen = together
    assert seen[0]["two-track"]["written"]
    assert all(job.get("written", []) == [] for job in seen[1].values())


def test_a_parameter_without_a_gradient_is_named(together: tuple[Path, list[dict[str, Any]]]) -> None:
    for process in together[1]:
        sentence = process["idle"]["error"]
        assert "2 parameters of the stage got no gradient, model.idle.weight among them" in sentence
        assert "trains_everything_always" in sentence


def test_a_killed_process_ends_the_other_with_a_sentence_and_the_run_resumes(
    together: tuple[Path, list[dict[str, Any]]],
) -> None:
    folder, seen = together
    assert "dying" not in seen[0]  # process 0 drew the first sample
    assert seen[1]["dying"]["error"].startswith("process 1 of 2 lost its connection to another one")
    assert seen[1]["dying"]["seconds"] < 60
    assert [path.name for path in checkpoints_in(folder / "dying" / "toy" / "checkpoints")] == [
        "step-000004", "step-000008",
    ]  # fmt: skip
    Job("dying", DYING).run(folder)
    Job("undisturbed", DYING).run(folder)
    expected = trained(folder / "undisturbed")
    for name, value in trained(folder / "dying").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_two_processes_equal_one_in_every_other_stage(tmp_path: Path) -> None:
    names = ("language", "images", "video", "refsam", "vision", "conversation-first")
    for name in names:
        Job(f"one-{name}", small_stage(name)).run(tmp_path)
        Job(f"parts-{name}", small_stage(name, accumulate=2)).run(tmp_path)
    run_as_two(tmp_path, [Job(f"two-{name}", small_stage(name)) for name in names])
    for name in names:
        assert_same_training(tmp_path / f"one-{name}", tmp_path / f"two-{name}")
        assert_same_training(tmp_path / f"one-{name}", tmp_path / f"parts-{name}", ["train"])
