"""Commands that are killed at any moment: the same command again comes to what an undisturbed one comes to."""

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
from judge import POSIX, is_hidden, torn_files
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
"""Seconds after which a command that goes on is taken for one that hangs."""


@dataclass(frozen=True)
class Job:
    """Something that writes files.

    Attributes:
        run: Does it, given a folder with all that it takes, and what to add to its command line.
        kills: How often it is killed.
    """

    run: Callable[[Path, list[str]], object]
    kills: int


def command(*arguments: str) -> Callable[[Path, list[str]], object]:
    """A command line, run in the folder."""

    def run(folder: Path, more: list[str]) -> None:
        os.chdir(folder)
        sys.argv = ["refervos", *arguments, *more]
        main()

    return run


def save(folder: Path, more: list[str]) -> None:
    """Put another model in the place of one that is there."""
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


def test_fifty_kills_are_tried() -> None:
    assert sum(job.kills for job in JOBS.values()) == 50


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what all of them take."""
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
    """A job in a forked process.

    Args:
        job: What is done.
        folder: Where.
        more: What is added to the command line.
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
        """Wait for it; returns its exit code, or the number of the signal that ended it below 0."""
        while time.monotonic() < self.begun + PATIENCE:
            found, status = os.waitpid(self.child, os.WNOHANG)
            if found:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)
        raise AssertionError(f"it goes on for more than {PATIENCE} seconds: {self.said}")

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._printed.read_text(errors="replace")


def again(job: Job, folder: Path) -> list[str]:
    """Give the same command again, with what its sentence says to add; returns all that was done."""
    told: list[str] = []
    more: list[str] = []
    for _ in range(2):
        run = Run(job, folder, more)
        code = run.end()
        told.append(f"{more}: {code} {run.said}")
        if code == 0:
            return told
        assert code == 2, told
        assert len(run.said.splitlines()) == 1, told
        # Of the two ways that segment tells, the one that loses nothing.
        more = next(([option] for option in ("--resume", "--overwrite") if option in run.said), [])
        assert more, f"the sentence does not say what to do: {told}"
    raise AssertionError(told)


OF_THE_RUN = "tensorboard|checkpoints|history|report|loss|timing"
"""What is kept for going on, and what tells of how a run went."""

VARYING = {"seconds", "masks_per_second", "machine"}
"""What differs from run to run."""


def results(folder: Path) -> dict[str, Any]:
    """What a job has come to, by file, without times and without what is only kept for going on."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or is_hidden(path, folder) or re.search(OF_THE_RUN, name):
            continue
        if path.suffix == ".safetensors":
            found[name] = {key: digest(tensor.numpy().tobytes()) for key, tensor in load_file(path).items()}
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                found[name] = {entry: digest(archive.read(entry)) for entry in archive.namelist()}
        elif path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix not in (".md", ".csv", ".html"):  # which are made of the JSON, with times
            found[name] = digest(path.read_bytes())
    return found


def without_times(value: Any) -> Any:
    """JSON without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in VARYING}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def prepared(place: Path, folder: Path, name: str) -> Path:
    """A fresh copy of what a job takes; for ``save_pretrained`` with the model that is to be replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(place, folder)
    if name == "save_pretrained":
        shutil.copytree(place / "model", folder / "out")
    return folder


def few_graphs(place: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have exports write two graphs of nine, which take seconds and not minutes, and import once what they need."""
    from refervos.export import onnx_export

    whole = onnx_export.streaming_step

    def some(model: Any) -> list[Any]:
        return [graph for graph in whole(model) if graph.name in ("pointer", "switch")]

    monkeypatch.setattr(onnx_export, "streaming_step", some)
    model = load(place / "model", device="cpu", time="online")
    assert isinstance(model, Samwise)
    onnx_export.export_onnx(model, folder)


@pytest.mark.parametrize("name", JOBS)
def test_what_was_killed_can_be_done_again(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SAM2_PRESETS, "micro", LARGE_FRAMES)  # what the official checkpoint is a size of
    if name == "export":
        few_graphs(place, tmp_path / "first", monkeypatch)
    job, moments = JOBS[name], random.Random(name)
    whole = prepared(place, tmp_path / "killed", name)  # of the same name, which results may tell
    run = Run(job, whole, [])
    assert run.end() == 0, run.said
    lasting = time.monotonic() - run.begun
    wanted = results(whole / "out")
    assert wanted
    before = results(prepared(place, tmp_path / "killed", name) / "out")
    for number in range(job.kills):
        how = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        folder = prepared(place, tmp_path / "killed", name)
        run = Run(job, folder, [])
        moment = moments.uniform(0, lasting)
        time.sleep(moment)
        os.kill(run.child, how)
        code = run.end()
        about = f"{name} after {moment:.2f} of {lasting:.2f} s, {how.name}, ended with {code}: {run.said}"
        # Training takes any signal for the wish to end after its step, as Ctrl-C is.
        assert code in (0, 128 + how, -how, *([128 + signal.SIGINT] if name == "train" else [])), about
        assert "Traceback" not in run.said, about
        torn = torn_files(folder, unfinished=True)
        assert not torn, f"{about}: {torn}"
        if name == "save_pretrained":
            assert results(folder / "out") in (before, wanted), f"{about}: neither the old model nor the new one"
        told = again(job, folder) if code else []
        left = [path for path in folder.rglob("*") if path.name.endswith(".part")]
        assert not left, f"{about}: {left} are left after {told}"
        found = results(folder / "out")
        if any(file.startswith("resumed-") for file in found):
            # A film cannot be gone on with: what was missing is in a film of its own.
            films = [folder / "out" / file for file in found if file.endswith(".mp4")]
            assert sum(len(decode(film)[0]) for film in films) == FRAMES, f"{about}: {films} after {told}"
            found = {file: content for file, content in found.items() if not file.endswith(".mp4")}
            found["overlay.mp4"] = wanted["overlay.mp4"]
        assert set(found) == set(wanted), f"{about}: other files after {told}"
        differing = [file for file in wanted if found[file] != wanted[file]]
        assert not differing, f"{about}: {differing} differ after {told}"
