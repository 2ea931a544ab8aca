"""The tutorial on a model of one's own runs whole: clips, fine-tuning, evaluation, publishing, and back by its id."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

import refervos
from refervos.cli.entry import main
from refervos.loading import trained_words
from refervos.samwise.model import Samwise
from refervos.text.vocabulary import unknown_words
from refervos.training.recipe import read_recipe
from stand_ins import TOKEN, World, connect, serve

ROOT = Path(__file__).parents[1]
SCRIPT, PAGE = ROOT / "examples" / "own_model.py", ROOT / "docs" / "own-model.md"
ID = "me/toys"
NEW_WORDS = ("marble", "domino")
"""What the tutorial teaches."""


def run_script(out: Path, world: World, home: Path, *options: str) -> str:
    """Run the script with the stand-in as the hub; return what it prints."""
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--repository", ID, "--private", *options]
    hub = {
        "HF_ENDPOINT": f"http://127.0.0.1:{world.port}",
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    ended = subprocess.run(command, env={**os.environ, **hub}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_tutorial_runs_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "own"
    with serve(World()) as world:
        printed = run_script(out, world, tmp_path / "home", "--steps", "2")
        steps = re.findall(r"^(\d)\. (.+)$", printed, re.MULTILINE)
        assert [int(number) for number, _ in steps] == [1, 2, 3, 4, 5, 6]
        before, after = map(float, re.findall(r"J&F on the held-out clips: ([\d.]+)", printed))
        assert all(re.search(rf"the {toy}: segmented in \d+ of 16 frames", printed) for toy in NEW_WORDS)
        repository = world.repositories[ID]
        assert repository.private
        assert f"/{ID}/commit/{repository.refs['main']}" in printed
        connect(monkeypatch, world.port, tmp_path / "home")
        back: Any = refervos.load(ID, device="cpu")
    trained: Any = refervos.load(out / "runs" / "adapters" / "model", device="cpu")
    start: Any = refervos.load("miniature", device="cpu")
    assert isinstance(back, Samwise)
    assert back.fingerprint() == trained.fingerprint()
    assert not torch.equal(trained.state_dict()[NAME], start.state_dict()[NAME])  # the adapters have learnt
    assert all(torch.equal(one, other) for one, other in zip(frozen(trained), frozen(start), strict=True))
    new = set(back.config.words) - set(start.config.words)
    assert new == set(NEW_WORDS)

    card: Any = ModelCard(repository.files()["README.md"].decode())
    assert card.data.license == "apache-2.0"
    result = card.data.eval_results[0]
    assert (result.metric_name, result.dataset_name, result.dataset_split) == ("J&F", "json-lines", "val")
    assert result.metric_value == pytest.approx(after, abs=0.06)
    low, high = result.metric_args["interval_95"]
    assert low <= result.metric_value <= high
    assert result.metric_args["command"] == "refervos eval model json-lines my-clips --split val --online"
    assert before == pytest.approx(headline(out / "before"), abs=0.06)
    assert len((out / "my-clips" / "expressions.jsonl").read_text().splitlines()) == 20


NAME = "adapters.0.vision_down.weight"


def frozen(model: Samwise) -> list[torch.Tensor]:
    return [value for part in model.frozen_parts() for value in part.state_dict().values()]


def headline(folder: Path) -> float:
    summary = json.loads((folder / "summary.json").read_text())
    return float(next(iter(summary["groups"][0]["values"].values()))[0])


@pytest.mark.slow
def test_the_whole_recipe_teaches_the_new_words(tmp_path: Path) -> None:
    with serve(World()) as world:
        printed = run_script(tmp_path / "own", world, tmp_path / "home")
    before, after = map(float, re.findall(r"J&F on the held-out clips: ([\d.]+)", printed))
    assert before < 30
    assert after > 80


def test_the_miniature_does_not_know_the_words_that_the_tutorial_teaches() -> None:
    words = trained_words("miniature")
    assert unknown_words("the marble and the domino", words) == NEW_WORDS


def test_the_recipe_fits_the_model_that_it_starts_from() -> None:
    (stage,) = read_recipe(ROOT / "recipes" / "own-clips.yaml").stages
    assert stage.inits == {"model": "miniature"}
    config: Any = refervos.load("miniature", device="cpu").config
    model = dict(stage.settings["model"])
    assert {name: getattr(config, name) for name in model} == model


def test_files_and_commands_of_the_page_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?:examples|recipes)/[\w.-]+", page)):
        assert (ROOT / name).is_file(), name
    commands = set(re.findall(r"^refervos (\w+)", page, re.MULTILINE))
    assert {"data", "train", "eval", "segment"} <= commands
    for command in commands:
        monkeypatch.setattr(sys, "argv", ["refervos", command, "--help"])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
    capsys.readouterr()
