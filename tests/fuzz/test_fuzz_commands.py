"""Random command lines: every command with valid and invalid options and values."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st

import layouts
from judge import POSIX, command, fresh, inputs, judge
from predicted import perfect, write_masks
from refervos.cli.entry import app
from refervos.errors import RefervosError
from refervos.evaluation.datasets import Part
from spoil import TEXTS, Draw, one_of
from test_fuzz_models import write_samwise, write_videoglamm
from test_fuzz_recipes import STAGES
from video_files import write_video

pytestmark = [POSIX, pytest.mark.usefixtures("one_thread")]


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that call it."""
    for name, part in group.commands.items():
        if hasattr(part, "commands"):
            yield from commands(part, (*path, name))
        else:
            yield (*path, name), part


COMMANDS = dict(commands(typer.main.get_command(app)))

QUICK: dict[str, list[str]] = {
    "segment": ["--frames", "2", "--no-reconnect"],
    "ask": ["--frames", "2", "--limit", "20"],
    "train": ["--steps", "1"],
    "diagnose": ["--count", "1", "--split", "motion"],
    "eval": ["--count", "1", "--processes", "1"],
    "score": ["--count", "1", "--processes", "1"],
    "bench": ["--frames", "1", "--warm-up", "1", "--threads", "1", "--no-stages"],
}
"""Options that keep a successful run short; the last value of a repeated option counts."""

DISABLED = (
    "refervos.bench.processes.measure_in_processes",
    "refervos.export.onnx_export.export_onnx",
    "uvicorn.Server.run",  # a server runs until it is stopped
    "webbrowser.open",
)
"""Functions that take longer than an input may, or leave the process."""

SLOW = {"compiled", "baseline", "flops", "processes"}
"""Options that take minutes or start other processes."""

VALID: dict[str, tuple[str, ...]] = {
    "video": ("film.mp4", "frames", "frames/000.png", "film.mp4", "absent.mp4", "http://localhost:1/x", "rtsp:/u:p@x"),
    "expressions": ("the red circle", "a dog", "film.mp4", ""),
    "out": ("out", "out/deep/er", "words.txt", "frames", "/dev/full", "/proc/x", "-"),
    "save": ("rle", "masks", "overlay", "binary", "cutout"),
    "questions": ("What is happening here?", "which one ?", "<|end|>", "film.mp4", "red " * 10_000, ""),
    "model": (
        "model",
        "talker",
        "talker",
        "miniature",
        "model/config.json",
        "film.mp4",
        "owner/name",
        "absent",
        "tiny",
    ),
    "models": ("model", "absent", "results.json", "owner/name"),
    "device": ("cpu", "cuda", "cuda:7", "mps", "meta", "banana"),
    "dtype": ("float32", "bfloat16", "float16"),
    "point": ("10,10", "10,10,0", "1,2,0.5", "nan,1", "1e400,3", "999,999"),
    "box": ("1,2,30,40", "30,40,1,2", "0,0,0,0", "-9,-9,999,999"),
    "sentences": ("words.txt", "1", "8", "pipe"),
    "session_file": ("a.session", "absent/a.session", "film.mp4"),
    "protocol": ("published", "default"),
    "dataset": ("mevis", "worlds", "json-lines", "cvat"),
    "name": ("mevis", "cvat", "json-lines"),
    "benchmark": ("mevis", "ref-youtube-vos"),
    "path": ("mevis", "frames", "pipe", "absent"),
    "data": ("mevis", "frames", "absent"),
    "split": ("valid_u", "valid", "train", "all"),
    "predictions": ("predictions", "frames", "absent"),
    "a": ("predictions", "absent"),
    "b": ("predictions", "frames"),
    "expression": ("valid_u00/0", "x/y", "valid_u00"),
    "recipe": ("recipe.yaml", "words.txt", "pipe"),
    "stage": ("toy", "x"),
    "checkpoint": ("model/model.safetensors", "film.mp4", "pipe", "model"),
    "folder": ("converted", "model", "frames"),
    "tokenizer": ("none", "model", "absent", "owner/name"),
    "settings": ("cme=false", "image_size=0", "image_size=1e9", "clip_length=-1", "x=1", "=", "cme"),
    "frame_size": ("64x48", "0x0", "9999999x9999999", "x", "64x"),
    "mode": ("online", "clip"),
    "drawings": ("frames", "absent"),
    "sheet": ("sheet", "film.mp4"),
    "markdown": ("table.md", "frames", "/dev/full"),
}

OUT = {"submit": ("out.zip", "out"), "compare": ("out.png", "out.mp4")}
"""Output files of some commands."""

NUMBERS = ("1", "2", "-3", "0.5", "nan", "99999999999999999999")
ODD = (*(text.replace("\0", "") for text in TEXTS), *NUMBERS, "--", "-x", "pipe")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with valid inputs of every kind."""
    root = tmp_path_factory.mktemp("good") / "all"
    (root / "frames").mkdir(parents=True)
    write_video(root / "film.mp4", 3, audio="aac")
    for index, image in enumerate(layouts.drawn_videos("x", videos=1, frames=2)[0].clip.frames):
        layouts.write_image(root / "frames" / f"{index:03d}.png", image)
    write_samwise(root / "model")
    write_videoglamm(root / "talker")
    layouts.write_mevis(root / "mevis", "valid_u", videos=1, frames=2)
    write_masks(root / "predictions", Part("mevis", root / "mevis", "valid_u").open().samples(), perfect)
    (root / "words.txt").write_text("the red circle\na dog\n")
    (root / "results.json").write_text("{}")
    (root / "recipe.yaml").write_text(yaml.safe_dump({"name": "any", "seed": 1, "stages": [STAGES["toy"]]}))
    return root


def refuse(*_: object, **__: object) -> None:
    """Replace functions that take longer than an input may."""
    raise RefervosError("this function is disabled in this test.")


def line(draw: Draw, words: Sequence[str]) -> list[str]:
    """Draw the arguments of a command."""
    known = COMMANDS[tuple(words)]

    def value(name: str) -> str:
        valid = VALID.get(name, ("1", "2", "0")) + (OUT.get(words[0], ()) * 3 if name == "out" else ())
        return one_of(draw, *valid) if one_of(draw, *[True] * 5, False) else one_of(draw, *ODD)

    arguments: list[str] = []
    options = []
    for parameter in known.params:
        if parameter.param_type_name == "argument":
            count = one_of(draw, 0, 1, 1, 1, 2) if parameter.nargs == -1 else one_of(draw, *[1] * 15, 0, 2)
            arguments += [value(parameter.name) for _ in range(count)]
        elif parameter.name not in SLOW:
            options.append(parameter)
    needed = [option for option in options if option.required and one_of(draw, *[True] * 15, False)]
    for option in needed + [one_of(draw, *options) for _ in range(one_of(draw, 0, 0, 1, 1, 2, 4))]:
        name = one_of(draw, *option.opts, *option.secondary_opts)
        arguments += [name] if option.is_flag else [name, value(option.name)]
    if one_of(draw, *[False] * 19, True):
        arguments.append(one_of(draw, "--no-such-option", "-Z", "--help", "-h", *ODD))
    return arguments


@pytest.mark.parametrize("words", COMMANDS, ids="-".join)
@inputs(4)
@given(data=st.data())
def test_a_random_command_line_succeeds_or_is_refused_in_one_sentence(
    words: tuple[str, ...], good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for slow in DISABLED:
        monkeypatch.setattr(slow, refuse)
    folder = fresh(tmp_path)
    shutil.copytree(good, folder)
    os.mkfifo(folder / "pipe")
    arguments = line(data.draw, words)
    quick = [] if "--" in arguments else QUICK.get(words[0], [])

    def use() -> str:
        os.chdir(folder)
        return command(*words, *arguments, *quick)()

    judge(use, folder, out=folder, about=f"refervos {' '.join(words)} {arguments!r} {quick}")
