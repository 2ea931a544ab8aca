"""Commands killed at random moments: repeating the command gives the result of an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml
from safetensors.torch import load_file

import layouts
from judge import POSIX, incomplete_files, is_hidden
from predicted import perfect, write_masks
from refervos import load
from refervos.cli.entry import main
from refervos.evaluation.datasets import Part
from refervos.sam2.config import SAM2_PRESETS
from refervos.samwise.model import Samwise
from test_fuzz_models import LARGE_FRAMES, write_official, write_samwise
from test_fuzz_recipes import SHORT, SMALLEST
from video_files import decode

pytestmark = [POSIX, pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("one_thread")]

FRAMES = 24

PATIENCE = 120
"""Seconds after which a command counts as hanging."""


@dataclass(frozen=True)
class Job:
    """Command that writes files.

    Attributes:
        run: Function that runs it, given a folder with its inputs and additional arguments.
        kills: Number of kills.
    """

    run: Callable[[Path, list[str]], object]
    kills: int


def command(*arguments: str) -> Callable[[Path, list[str]], object]:
    """Return a function that runs a command line in the folder."""

    def run(folder: Path, more: list[str]) -> None:
        os.chdir(folder)
        sys.argv = ["refervos", *arguments, *more]
        main()

    return run


def save(folder: Path, more: list[str]) -> None:
    """Replace an existing model by another one."""
    load(folder / "model", device="cpu", cme=False).save_pretrained(folder / "out", overwrite=True)


JOBS = {
    "segment": Job(
        command(
            *("segment", "frames", "the red circle", "a dog", "--model", "model", "--device", "cpu", "--out", "out"),
            *("--save", "rle", "--save", "masks", "--save", "overlay", "--quiet"),
        ),
        9,
    ),
    "eval": Job(
        command(
            *("eval", "model", "mevis", "mevis", "--split", "valid_u", "--device", "cpu", "--out", "out", "--quiet"),
            *("--together", "1"),
        ),
        8,
    ),
    "train": Job(command("train", "recipe.yaml", "--out", "out", "--quiet"), 8),
    "convert": Job(command("convert", "official.pth", "out", "--tokenizer", "none"), 7),
    "export": Job(command("export", "model", "--time", "online", "--out", "out", "--quiet"), 4),
    "submit": Job(
        command(
            *("submit", "mevis", "predictions", "out/masks.zip", "--data", "mevis", "--split", "valid_u", "--quiet")
        ),
        7,
    ),
    "save_pretrained": Job(save, 7),
}


def test_the_jobs_have_fifty_kills_in_total() -> None:
    assert sum(job.kills for job in JOBS.values()) == 50


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the inputs of all jobs."""
    root = tmp_path_factory.mktemp("good") / "all"
    root.mkdir()
    write_samwise(root / "model")
    layouts.write_mevis(root / "mevis", "valid_u", videos=2, frames=6)
    write_masks(root / "predictions", Part("mevis", root / "mevis", "valid_u").open().samples(), perfect)
    layouts.write_frames(root / "frames", layouts.drawn_videos("x", videos=1, frames=FRAMES)[0].clip)
    write_official(root / "official.pth")
    short = {**SHORT, "steps": 6, "batch": 4, "checkpoint_every": 2, "optimiser": {"rate": 1e-3}}
    stages = [{**stage, **short} for stage in SMALLEST["stages"][:2]]
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "killed", "seed": 1, "stages": stages}))
    return root


class Run:
    """Job in a forked process.

    Args:
        job: The job.
        folder: Folder of its inputs.
        more: Additional arguments.
    """

    def __init__(self, job: Job, folder: Path, more: list[str]) -> None:
        self._printed = folder.with_name(f"{folder.name}.printed")
        self._printed.write_text("")
        self.begun = time.monotonic()
        self.child = os.fork()
        if not self.child:
            self._do(job, folder, more)

    def _do(self, job: Job, folder: Path, more: list[str]) -> NoReturn:
        code = 1
        try:
            file = os.open(self._printed, os.O_WRONLY)
            os.dup2(file, 1)
            os.dup2(file, 2)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", errors="backslashreplace", closefd=False) for n in (1, 2))
            job.run(folder, more)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def end(self) -> int:
        """Wait for it and return its exit code, or the negative number of the signal that ended it."""
        while time.monotonic() < self.begun + PATIENCE:
            found, status = os.waitpid(self.child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        raise AssertionError(f"it runs for more than {PATIENCE} seconds: {self.output}")

    @property
    def output(self) -> str:
        """Its output."""
        return self._printed.read_text(errors="replace")


def again(job: Job, folder: Path) -> list[str]:
    """Repeat a command with the option that its message suggests, and return a log."""
    log: list[str] = []
    more: list[str] = []
    for _ in range(2):
        run = Run(job, folder, more)
        code = run.end()
        log.append(f"{more}: {code} {run.output}")
        if code == 0:
            return log
        assert code == 2, log
        assert len(run.output.splitlines()) == 1, log
        # Of the two options that segment suggests, prefer the one that keeps results.
        more = next(([option] for option in ("--resume", "--overwrite") if option in run.output), [])
        assert more, f"the message suggests no option: {log}"
    raise AssertionError(log)


RUN_FILES = "tensorboard|checkpoints|history|report|loss|timing"
"""Files for resuming, and files that describe the run."""

VARYING = {"seconds", "masks_per_second", "machine"}
"""Fields that differ between runs."""


def results(folder: Path) -> dict[str, Any]:
    """Return the results of a job by file, without times and without files for resuming."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or is_hidden(path, folder) or re.search(RUN_FILES, name):
            continue
        if path.suffix == ".safetensors":
            found[name] = {key: digest(tensor.numpy().tobytes()) for key, tensor in load_file(path).items()}
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                found[name] = {entry: digest(archive.read(entry)) for entry in archive.namelist()}
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix not in (".md", ".csv", ".html"):  # written from the JSON, with times
            found[name] = digest(path.read_bytes())
    return found


def without_times(value: Any) -> Any:
    """Remove the fields that differ between runs."""
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in VARYING}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def prepared(place: Path, folder: Path, name: str) -> Path:
    """Copy the inputs of a job; for ``save_pretrained`` also the model to be replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place, folder)
    if name == "save_pretrained":
        shutil.copytree(place / "model", folder / "out")
    return folder


def few_graphs(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make exports write two of nine graphs, which takes seconds instead of minutes, and import their modules once."""
    from refervos.export import onnx_export

    whole = onnx_export.streaming_step

    def some(model: Any) -> list[Any]:
        return [graph for graph in whole(model) if graph.name in ("pointer", "switch")]

    monkeypatch.setattr(onnx_export, "streaming_step", some)
    model = load(place / "model", device="cpu", time="online")
    assert isinstance(model, Samwise)
    onnx_export.export_onnx(model, folder)


@pytest.mark.parametrize("name", JOBS)
def test_a_killed_command_can_be_repeated(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAM2_PRESETS, "micro", LARGE_FRAMES)  # the size of the official checkpoint
    if name == "export":
        few_graphs(place, tmp_path / "first", monkeypatch)
    job, moments = JOBS[name], random.Random(name)
    whole = prepared(place, tmp_path / "killed", name)  # the same name, as results may contain it
    run = Run(job, whole, [])
    assert run.end() == 0, run.output
    duration = time.monotonic() - run.begun
    expected = results(whole / "out")
    assert expected
    before = results(prepared(place, tmp_path / "killed", name) / "out")
    for number in range(job.kills):
        how = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        folder = prepared(place, tmp_path / "killed", name)
        run = Run(job, folder, [])
        moment = moments.uniform(0, duration)
        time.sleep(moment)
        os.kill(run.child, how)
        code = run.end()
        about = f"{name} after {moment:.2f} of {duration:.2f} s, {how.name}, ended with {code}: {run.output}"
        # Training handles every signal like Ctrl-C: it ends after its step.
        assert code in (0, 128 + how, -how, *([128 + signal.SIGINT] if name == "train" else [])), about
        assert "Traceback" not in run.output, about
        incomplete = incomplete_files(folder, allow_hidden=True)
        assert not incomplete, f"{about}: {incomplete}"
        if name == "save_pretrained":
            assert results(folder / "out") in (before, expected), f"{about}: neither the old model nor the new one"
        log = again(job, folder) if code else []
        left = [path for path in folder.rglob("*") if path.name.endswith(".part")]
        assert not left, f"{about}: {left} are left after {log}"
        found = results(folder / "out")
        if any(file.startswith("resumed-") for file in found):
            # A movie file cannot be continued: the remaining frames are in a file of their own.
            movies = [folder / "out" / file for file in found if file.endswith(".mp4")]
            assert sum(len(decode(movie)[0]) for movie in movies) == FRAMES, f"{about}: {movies} after {log}"
            found = {file: content for file, content in found.items() if not file.endswith(".mp4")}
            found["overlay.mp4"] = expected["overlay.mp4"]
        assert set(found) == set(expected), f"{about}: other files after {log}"
        differing = [file for file in expected if found[file] != expected[file]]
        assert not differing, f"{about}: {differing} differ after {log}"
