"""The judge of inputs notices each thing that it is there to notice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import judge
from judge import POSIX, command, torn_files, tried
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


def test_answers_and_sentences_are_fine(tmp_path: Path) -> None:
    answer = tried(lambda: "an answer", tmp_path)
    assert (answer.fault, answer.refused, answer.said) == ("", False, "an answer")
    refusal = tried(refuse("a.png is broken; give a picture.\n  a.png"), tmp_path)
    assert (refusal.fault, refusal.refused) == ("", True)
    assert refusal.said.startswith("a.png is broken")


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (fail, "KeyError: 'deep inside'"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "ends the process with"),
        (lambda: os._exit(3), "ends the process with code 3"),
        (lambda: hold(judge.MEMORY + 2**27), "MB above the idle process"),
        (lambda: hold(2 * judge.ADDRESSES), "MemoryError"),
        (refuse(" "), "the error says nothing"),
        (refuse("Traceback of nothing"), "is for programmers"),
        (refuse("one\ntwo"), ""),  # what a RefervosError says is made safe
    ],
)
def test_faults_are_told(call: Callable[[], object], fault: str, tmp_path: Path) -> None:
    found = tried(call, tmp_path).fault
    assert fault in found
    assert bool(fault) == bool(found)


def wait_long() -> None:
    time.sleep(60)


def work_long() -> None:
    until = time.process_time() + 60
    while time.process_time() < until:
        sum(range(1000))


@pytest.mark.parametrize("call", [wait_long, work_long])
def test_a_hang_is_told_with_its_place(
    call: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "SECONDS", 0.5)
    found = tried(call, tmp_path)
    assert "it hangs after" in found.fault
    assert call.__name__ in found.fault
    assert found.seconds < 30


def test_what_hangs_without_work_is_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "SECONDS", 0.5)
    monkeypatch.setattr(judge, "event", lambda _: None)
    monkeypatch.setattr(judge, "note", lambda _: None)

    def hang_at_first() -> None:
        mark = tmp_path / "tried"
        if not mark.exists():
            mark.touch()
            wait_long()

    assert not judge.judge(hang_at_first, tmp_path).fault
    for call in (wait_long, work_long):
        with pytest.raises(AssertionError, match="it hangs after"):
            judge.judge(call, tmp_path)


def test_command_lines_are_judged_by_their_exit_code_and_what_they_print(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tried(command("--version"), tmp_path).said.startswith("refervos ")
    refused = tried(command("info", tmp_path / "absent"), tmp_path)
    assert (refused.fault, refused.refused) == ("", True)
    assert "does not exist" in refused.said
    assert tried(command("info", "--no-such-option"), tmp_path).refused
    monkeypatch.setattr("refervos.loading.load", fail)
    unexpected = tried(command("info", tmp_path), tmp_path).fault
    assert "KeyError: 'deep inside'" in unexpected
    assert "exit code" not in unexpected
    monkeypatch.setattr("refervos.loading.load", lambda *_, **__: print("\x1b[31m"))
    assert "control characters" in tried(command("info", tmp_path), tmp_path).fault


def test_torn_files_are_told(tmp_path: Path) -> None:
    for name, content in {
        "a.jsonl": b'{"a": 1}\n{"a"',
        "b.json": b"{",
        "c.png": b"\x89PNG\r\n\x1a\n",
        "d.mp4": b"",
        "e.safetensors": b"\x08",
        ".f.png.0123abcd.part": b"",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert name in torn_files(tmp_path)
    assert not torn_files(tmp_path / "absent")
