"""``benchmarks/gpu.py``: every part on a CPU, and parts that fail, hang or exceed the time limit."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from refervos.bench.cases import Case
from refervos.training.recipe import read_recipe

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.py"

sys.path.append(str(SCRIPT.parent))  # last: its other files have common names
gpu: Any = import_module("gpu")
checks: Any = import_module("on_gpu.checks")
context: Any = import_module("on_gpu.context")
report: Any = import_module("on_gpu.report")
runner: Any = import_module("on_gpu.runner")
speed: Any = import_module("on_gpu.speed")
training: Any = import_module("on_gpu.training")
wheels: Any = import_module("on_gpu.wheels")


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--quick", "--out", str(tmp_path), "--commit", "here"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    found = json.loads((tmp_path / "gpu.json").read_text())
    statuses = {name: part["status"] for name, part in found["parts"].items()}
    assert statuses == {part.name: "ok" for part in gpu.PARTS}, result.stdout + result.stderr
    assert result.returncode == 0
    assert found["commit"] == "here"
    assert f"torch {torch.__version__.partition('+')[0]}" in found["machine"]["versions"]
    assert found["goal"]["reached"] is None  # a goal of base-plus, which quick does not run
    parts = {name: part["values"] for name, part in found["parts"].items()}
    reached = [bound["reached"] for bound in parts["parity"]["goldens"]["absent"]["float32"]]
    assert 0 < max(reached) < 1.5e-3
    cases = parts["speed"]["models"]["miniature"]
    assert {case["case"]["compiled"] for case in cases["speed"]} == {False, True}
    assert all(case["times_plain_sam2"] for case in cases["speed"][1:])
    assert all(case["floor_milliseconds"] for case in cases["stages"])
    assert len(parts["memory"]["megabytes"]) == 5
    assert [recipe["loss"] > 0 for recipe in parts["training"]["recipes"].values()] == [True] * 5
    assert parts["videoglamm"]["precisions"]["bfloat16"]["a token"] > 0
    assert set(parts["resize"]["frames"]) == {"854x480", "1920x1080"}
    page = (tmp_path / "gpu.md").read_text()
    assert page.strip() in result.stdout
    assert all(
        f"## {part.name}: {part.title}" in page for part in gpu.PARTS if part.name != "twins"
    )  # twins has no table
    assert "**not measured**" in page


# The runner.


def test_failed_parts_are_reported_and_the_others_run(tmp_path: Path) -> None:
    write = (
        "import sys, time; from pathlib import Path; sys.path.append(sys.argv[1]); "
        "from on_gpu.runner import write_results; write_results(Path(sys.argv[2]), {'short': 'something'}"
    )
    programs = {
        "raises": "print('before'); raise ValueError('that is wrong')",
        "reports": f"{write}, 'ValueError: reported', ['line 1', 'line 2']); sys.exit(1)",
        "hangs": f"{write}); time.sleep(60)",
        "dies": "import os; os.kill(os.getpid(), 9)",
        "silent": "pass",
        "fine": f"{write})",
    }

    def command(part: Any, seconds: float, path: Path) -> list[str]:
        return [sys.executable, "-c", programs[part.name], str(SCRIPT.parent), str(path)]

    parts = [runner.Part(name, name, 2.0 if name == "hangs" else 5.0) for name in programs]
    start = time.monotonic()
    found = {outcome.part.name: outcome for outcome in runner.run_parts(parts, command, 20.0)}
    assert time.monotonic() - start < 22
    assert {name: outcome.status for name, outcome in found.items()} == {
        name: "ok" if name == "fine" else "failed" for name in programs
    }
    assert found["raises"].reason == "its process ended with exit code 1"
    assert found["raises"].trace[0] == "before"
    assert found["raises"].trace[-1] == "ValueError: that is wrong"
    assert (found["reports"].reason, found["reports"].trace) == ("ValueError: reported", ("line 1", "line 2"))
    assert "its limit" in found["hangs"].reason
    assert found["hangs"].values == {"short": "something"}  # its results before it hung
    assert found["dies"].reason == "its process ended with exit code -9"
    assert found["silent"].reason == "it wrote no results"
    run = report.Run("gpu.py", "1234", "cpu", False, 8.0, outcomes=list(found.values()))
    page = report.write(run, tmp_path)
    assert run.failed == ["raises", "reports", "hangs", "dies", "silent"]
    assert "ValueError: that is wrong" in page
    assert json.loads((tmp_path / "gpu.json").read_text())["parts"]["hangs"]["values"] == {"short": "something"}


def test_processes_of_a_part_end_with_it(tmp_path: Path) -> None:
    number = tmp_path / "number"
    program = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '60']); "
        f"open({str(number)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    (outcome,) = runner.run_parts([runner.Part("hangs", "", 2.0)], lambda *_: [sys.executable, "-c", program], 2.0)
    assert outcome.status == "failed"
    status = Path(f"/proc/{number.read_text()}/status")
    end = time.monotonic() + 10  # a signal may be delayed
    while status.is_file() and "zombie" not in status.read_text():  # orphans may wait to be reaped
        assert time.monotonic() < end
        time.sleep(0.05)


def test_time_is_reserved_for_later_parts() -> None:
    parts = [runner.Part("a", "", 60), runner.Part("b", "", 30), runner.Part("c", "", 10)]
    assert runner.allowance(parts, 0, 200) == 160  # with the time that later parts do not need
    assert runner.allowance(parts, 0, 100) == 60
    assert runner.allowance(parts, 1, 100) == 90
    assert runner.allowance(parts, 0, 50) == 50  # earlier parts have precedence
    assert runner.allowance(parts, 1, 14) is None
    assert runner.allowance(parts, 2, 14) == 14
    assert sum(part.seconds for part in gpu.PARTS) <= 9 * 60


def test_a_part_that_no_longer_fits_is_not_run() -> None:
    sleep = "import time; time.sleep(60)"
    parts = [runner.Part("long", "", 1.0), runner.Part("late", "", 30.0)]
    first, second = runner.run_parts(parts, lambda *_: [sys.executable, "-c", sleep], 1.0)
    assert first.status == "failed"
    assert (second.status, second.reason) == ("not run", "no time left")


def test_a_part_that_fails_sets_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = runner.Part("broken", "without a function", 20)
    monkeypatch.setattr(gpu, "PARTS", {broken: "nowhere", runner.Part("resize", "resizing", 60): "on_gpu.speed"})
    options = argparse.Namespace(
        commit="1234", device="cpu", quick=True, minutes=5.0, parts=["broken", "resize"], out=tmp_path
    )
    assert gpu.run_all(options) == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {"broken": "failed", "resize": "ok"}
    assert "broken: failed" in capsys.readouterr().out
    with pytest.raises(argparse.ArgumentTypeError, match="no part 'speed'; there are broken, resize"):
        gpu.parse_parts("broken,speed")


def test_a_failed_part_writes_its_results_and_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(options: Any) -> None:
        options.keep({"short": "half"})
        raise MemoryError("too much")

    monkeypatch.setattr(speed, "memory", fail)
    assert gpu.run_one("memory", context.Context("cpu"), tmp_path / "results.json") == 1
    written = json.loads((tmp_path / "results.json").read_text())
    assert (written["values"], written["error"]) == ({"short": "half"}, "MemoryError: too much")
    assert written["trace"][-1] == "MemoryError: too much"


# The parts.


TWINS: Mapping[str, tuple[str, bool]] = {
    "pass": ("def test_it(device): pass", True),
    "fail": ("def test_it(device): assert device == 'cuda'", False),
    "skip": ("def test_it(device): pytest.skip('there is none')", False),
    "none": ("def test_it(): pass", False),
}


@pytest.mark.parametrize("kind", TWINS)
def test_the_twins_must_run_and_pass(kind: str, tmp_path: Path) -> None:
    body, passes = TWINS[kind]
    file = tmp_path / "test_twins.py"
    file.write_text(
        "import pytest\n\n@pytest.fixture(params=['cpu', 'cuda'])\n"
        f"def device(request): return request.param\n\n{body}\n"
    )
    program = (
        "import sys; sys.path.append(sys.argv[1]); from pathlib import Path; from on_gpu import checks, context; "
        "checks.ROOT = Path(sys.argv[2]); checks.TWINS = (checks.ROOT / 'test_twins.py',); "
        "print(checks.twins(context.Context('cpu'))['short'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(SCRIPT.parent), str(tmp_path)], capture_output=True, text=True
    )
    assert (result.returncode == 0) == passes, result.stdout + result.stderr
    if passes:
        assert "1 chosen, 1 passed, 0 failed, 0 skipped" in result.stdout
    else:
        assert "AssertionError: " in result.stderr


def test_a_golden_beyond_its_bound_fails_the_parity_part(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("absent", "float32", checks.Bound(("switch",), 0.0), 0.0)]
    found.append(("absent", "float32", checks.Bound(("memcond",), 1e-3), math.nan))
    ious = {"masks": 9, "mean": 0.94, "median": 1.0, "low": 0.1}
    monkeypatch.setattr(checks, "golden_differences", lambda _: iter(found))
    monkeypatch.setattr(checks, "bfloat16_ious", lambda _: iter([("miniature", ious)]))
    options = context.Context("cpu")
    with pytest.raises(AssertionError, match=r"memcond differ by nan.*mean IoU 0\.940, less than 0\.95"):
        checks.parity(options)
    assert options.kept["bfloat16"] == {"miniature": ious}
    assert "switch" in options.kept["markdown"]


def test_a_failed_case_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    good = Case(model="miniature", mode="online", frames=1, warm_up=1, stages=False)
    cases = [("speed", Case(model="nowhere", mode="online")), ("speed", good)]
    monkeypatch.setattr(speed, "speed_cases", lambda _: iter(cases))
    options = context.Context("cpu", quick=True)
    with pytest.raises(RuntimeError, match="1 cases failed, the first: nowhere"):
        speed.speed(options)
    assert [case["frames"] for case in options.kept["models"]["miniature"]["speed"]] == [1]
    assert "nowhere" in options.kept["markdown"]
    late = context.Context("cpu", quick=True, seconds=1.0)
    values = speed.speed(late)
    assert values["not run"] == ["nowhere, online, 1 sentence, float32", "miniature, online, 1 sentence, float32"]


def test_memory_may_grow_by_one_percent() -> None:
    assert speed.constant([500.0, 510.0, 505.0])
    assert not speed.constant([500.0, 500.0, 506.0])


class Small(nn.Module):
    """Stage with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.weight]}]


@pytest.mark.parametrize(("room", "fits"), [(8, 8), (3, 2), (0, None)])
def test_a_step_that_does_not_fit_accumulates_smaller_batches(
    room: int, fits: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, int]] = []

    def step(stage: object, optimiser: object, recipe: object, at_once: int, accumulate: int, device: str) -> Any:
        tried.append((at_once, accumulate))
        if at_once > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0, 2.0, 3.0

    monkeypatch.setattr(training, "published_stage", lambda *_: Small())
    monkeypatch.setattr(training, "make_step", step)
    if fits is None:
        with pytest.raises(torch.OutOfMemoryError):
            training.training_step("samwise-refcoco", context.Context("cpu"))
        return
    found = training.training_step("samwise-refcoco", context.Context("cpu"))
    assert (found["batch"], found["recipe at once"], found["at once"]) == (32, 8, fits)
    assert tried[-2:] == [(fits, 32 // fits)] * 2


def test_a_failed_recipe_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"at once": 1, "recipe at once": 1, "batch": 1, "step seconds": 1.0, "peak megabytes": None, "loss": 1.0}
    steps: dict[str, Callable[[], Any]] = dict.fromkeys(training.RECIPES, lambda: found | {"gradient norm": 1.0})
    steps["samwise-mevis"] = lambda: found | {"gradient norm": math.inf}
    steps["refsam-refcoco"] = lambda: 1 // 0
    monkeypatch.setattr(training, "training_step", lambda name, options: steps[name]())
    options = context.Context("cpu")
    with pytest.raises(RuntimeError, match=r"samwise-mevis: loss 1.0, gradient norm inf; refsam-refcoco: ZeroDiv"):
        training.training(options)
    assert list(options.kept["recipes"]) == list(training.RECIPES)


@pytest.mark.parametrize(
    ("name", "frames", "tokens", "total"),
    [
        ("samwise-refcoco", 1, 13, None),
        ("samwise-mevis", 8, 13, 171_000_000),
        ("refsam-ref-youtube-vos", 3, 12, 1_240_909_824),
    ],
)
def test_recipes_have_their_published_sizes(name: str, frames: int, tokens: int, total: int | None) -> None:
    (recipe,) = read_recipe(ROOT / "recipes" / f"{name}.yaml").stages
    stage = training.published_stage(recipe, context.Context("meta"))
    batch = training.random_batch(stage, 1)
    assert batch["pixels"].shape == (1, frames, 3, 1024, 1024)
    assert batch["ground_truth"].shape == (1, frames, 1024, 1024)
    assert batch["ids"].shape == (1, tokens)
    assert sum(parameter.numel() for parameter in stage.parameters()) > (total or 0)


# The report.


def result(mode: str = "online", **changes: Any) -> dict[str, Any]:
    case = {"mode": mode, "sentences": 1, "dtype": "bfloat16", "compiled": False, **changes.pop("case", {})}
    return {"case": case, "frames_per_second": 150.0, "times_plain_sam2": 1.05, **changes}


def goal_of(*results: dict[str, Any]) -> Any:
    return report.evaluate_goal({"speed": {"models": {"base-plus": {"speed": list(results)}}}})


def test_the_goal_is_reached_by_one_mode_that_meets_both_bounds() -> None:
    slow, costly = result(frames_per_second=119.9), result(times_plain_sam2=1.11, case={"compiled": True})
    assert goal_of(result())["reached"] is True
    assert goal_of(slow, costly)["reached"] is False  # neither meets both
    assert goal_of(slow, costly, result("clip"))["reached"] is True
    assert goal_of()["reached"] is None
    assert report.evaluate_goal({})["reached"] is None
    others = (
        result(case={"sentences": 8}),
        result(case={"dtype": "float32"}),
        result("plain-sam2", times_plain_sam2=None),
        {"case": result()["case"], "reason": "out of memory"},
    )
    assert goal_of(*others)["ways"] == []
    lines = report.goal_lines(goal_of(slow, costly))
    assert "**not reached**" in lines
    assert "- online, compiled: 150.0 frames/s, 1.11 times plain SAM2: not reached" in lines


# Wheels.


def test_only_missing_packages_are_installed(tmp_path: Path) -> None:
    folder, target = tmp_path / "wheels", tmp_path / "packages"
    folder.mkdir()
    for name in ("brought_along", "torch", "nvidia_cublas", "pytest"):
        about = f"{name}-9.9.dist-info"
        with zipfile.ZipFile(folder / f"{name}-9.9-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
    assert wheels.install_missing(folder, target) == []
    assert (target / "brought_along.py").is_file()
    assert not any((target / f"{name}.py").exists() for name in ("torch", "nvidia_cublas", "pytest"))
    before = (target / "brought_along.py").stat().st_mtime_ns
    assert wheels.install_missing(folder, target) == []  # nothing is left to install
    assert (target / "brought_along.py").stat().st_mtime_ns == before
    assert wheels.skipped("numpy", ())  # even if it is missing


def test_missing_packages_without_wheels_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "NEEDED", ("pytest", "no-such-package"))
    assert wheels.install_missing(tmp_path / "none", tmp_path / "packages") == ["no-such-package"]
