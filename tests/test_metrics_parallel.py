"""Several processes: the same numbers in the same order, and nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from refervos.errors import EvaluationError
from refervos.metrics import video_scores
from refervos.metrics.parallel import in_processes, scores_of_videos


@dataclass(frozen=True)
class Drawn:
    """Reads a video that its number tells how to draw; the later, the sooner it is there."""

    number: int
    width: int = 30

    def __call__(self) -> tuple[np.ndarray, np.ndarray, None]:
        time.sleep(0.3 / (1 + self.number))
        rng = np.random.default_rng(self.number)
        return rng.random((3 + self.number, 20, 30)) < 0.5, rng.random((3 + self.number, 20, self.width)) < 0.5, None


def test_several_processes_give_the_same_in_the_same_order() -> None:
    readers = [Drawn(number) for number in range(5)]
    expected = [video_scores(*reader(), tolerance=2) for reader in readers]
    for processes in (1, 2):
        found = list(scores_of_videos(readers, processes=processes, tolerance=2))
        assert len(found) == len(expected)
        for scores, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(scores, wanted)


def test_one_process_is_this_one() -> None:
    assert list(in_processes([os.getpid], processes=1)) == [os.getpid()]
    assert os.getpid() not in in_processes([os.getpid] * 3, processes=2)


def test_an_error_of_a_task_arrives() -> None:
    scores = scores_of_videos([Drawn(0), Drawn(1, width=31), Drawn(2)], processes=2)
    assert len(next(scores)[0]) == 3
    with pytest.raises(EvaluationError, match=r"prediction of frame 0 has shape \(20, 31\)"):
        next(scores)


def test_a_process_that_dies_is_said() -> None:
    with pytest.raises(EvaluationError, match="died"):
        list(in_processes([partial(os._exit, 1)], processes=2))


SCRIPT = """
import signal, time
from functools import partial
from refervos.metrics.parallel import in_processes

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even where the test run ignores it
    for number, _ in enumerate(in_processes([partial(time.sleep, s) for s in {seconds}], processes=2)):
        if number == 0:
            print("begun", flush=True)
"""


def run_and_end(folder: Path, seconds: str, end: Callable[[int], None]) -> tuple[int, str]:
    """Start a script of many tasks, end it after the first result, and wait until it and its processes are gone.

    They all hold its standard output, which therefore only closes with the last of them.
    """
    script = folder / "score.py"
    script.write_text(SCRIPT.format(seconds=seconds))
    pipe = subprocess.PIPE
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        end(process.pid)
        try:
            _, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, errors


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to signal")
@pytest.mark.parametrize("seconds", ["[0.1] * 10_000", "[0.5, 2.5]"], ids=["all busy", "one idle"])
def test_ctrl_c_ends_all_processes_and_only_the_parent_says_so(tmp_path: Path, seconds: str) -> None:
    """As from a terminal: the signal goes to the whole group."""
    code, errors = run_and_end(tmp_path, seconds, lambda pid: os.killpg(pid, signal.SIGINT))
    assert code == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    code, _ = run_and_end(tmp_path, "[0, 1000, 1000, 1000]", lambda pid: os.kill(pid, signal.SIGKILL))
    assert code == -signal.SIGKILL
