"""The judge of fuzzed inputs detects every violation."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import judge
from judge import POSIX, command, incomplete_files, tried
from refervos.errors import DataError

pytestmark = POSIX


def refuse(sentence: str) -> Callable[[], object]:
    def call() -> object:
        raise DataError(sentence)

    return call


def fail(*_: object, **__: object) -> None:
    raise KeyError("deep inside")


def hold(size: int) -> int:
    return int(np.ones(size, np.uint8).sum())


def test_results_and_refusals_are_accepted(tmp_path: Path) -> None:
    result = tried(lambda: "a result", tmp_path)
    assert (result.fault, result.refused, result.output) == ("", False, "a result")
    refusal = tried(refuse("a.png is damaged; give an image.\n  a.png"), tmp_path)
    assert (refusal.fault, refusal.refused) == ("", True)
    assert refusal.output.startswith("a.png is damaged")


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (fail, "KeyError: 'deep inside'"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "ends the process with"),
        (lambda: os._exit(3), "ends the process with code 3"),
        (lambda: hold(judge.MEMORY + 2**27), "MB above the idle process"),
        (lambda: hold(2 * judge.ADDRESSES), "MemoryError"),
        (refuse(" "), "the message is empty"),
        (refuse("Traceback of nothing"), "is for programmers"),
        (refuse("one\ntwo"), ""),  # RefervosError escapes the line break
    ],
)
def test_a_violation_is_reported(call: Callable[[], object], fault: str, tmp_path: Path) -> None:
    found = tried(call, tmp_path).fault
    assert fault in found
    assert bool(fault) == bool(found)


def block() -> None:
    time.sleep(60)


def compute() -> None:
    until = time.process_time() + 60
    while time.process_time() < until:
        sum(range(1000))


@pytest.mark.parametrize("call", [block, compute])
def test_a_hang_is_reported_with_its_place_in_the_code(
    call: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "SECONDS", 0.5)
    found = tried(call, tmp_path)
    assert "it hangs after" in found.fault
    assert call.__name__ in found.fault
    assert found.seconds < 30


def test_an_input_that_blocks_is_tried_a_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "SECONDS", 0.5)
    monkeypatch.setattr(judge, "event", lambda _: None)
    monkeypatch.setattr(judge, "note", lambda _: None)

    def hang_at_first() -> None:
        mark = tmp_path / "tried"
        if not mark.exists():
            mark.touch()
            block()

    assert not judge.judge(hang_at_first, tmp_path).fault
    for call in (block, compute):
        with pytest.raises(AssertionError, match="it hangs after"):
            judge.judge(call, tmp_path)


def test_command_lines_are_judged_by_exit_code_and_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried(command("--version"), tmp_path).output.startswith("refervos ")
    refused = tried(command("info", tmp_path / "absent"), tmp_path)
    assert (refused.fault, refused.refused) == ("", True)
    assert "does not exist" in refused.output
    assert tried(command("info", "--no-such-option"), tmp_path).refused
    monkeypatch.setattr("refervos.loading.load", fail)
    unexpected = tried(command("info", tmp_path), tmp_path).fault
    assert "KeyError: 'deep inside'" in unexpected
    assert "exit code" not in unexpected
    monkeypatch.setattr("refervos.loading.load", lambda *_, **__: print("\x1b[31m"))
    assert "control characters" in tried(command("info", tmp_path), tmp_path).fault


def test_incomplete_files_are_reported(tmp_path: Path) -> None:
    for name, content in {
        "a.jsonl": b'{"a": 1}\n{"a"',
        "b.json": b"{",
        "c.png": b"\x89PNG\r\n\x1a\n",
        "d.mp4": b"",
        "e.safetensors": b"\x08",
        ".f.png.0123abcd.part": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert name in incomplete_files(tmp_path)
    assert not incomplete_files(tmp_path / "absent")
