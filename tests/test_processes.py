"""Worker processes: none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refervos.processes import run_in_processes

SCRIPT = """
import signal, time
from refervos.processes import run_in_processes

def setup():
    def sleep(seconds):
        time.sleep(seconds)
        yield seconds
    return sleep

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # even where the test run ignores it
    for number, _ in enumerate(run_in_processes([setup], {seconds}, 2)):
        if number == 0:
            print("begun", flush=True)
"""


def run_and_end(folder: Path, seconds: str, end: Callable[[int], None]) -> tuple[int, str]:
    """Start a script of many tasks, end it after the first result, and wait until it and its processes are gone.

    All of them hold its standard output, which therefore closes only with the last of them.
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


def test_one_process_runs_the_tasks_in_order_after_a_single_setup() -> None:
    processes: list[int] = []

    def setup() -> Callable[[int], list[int]]:
        processes.append(os.getpid())
        return lambda task: [task, 10 * task]

    assert list(run_in_processes([setup], [3, 1, 2], 1)) == [3, 30, 1, 10, 2, 20]
    assert list(run_in_processes([setup], [], 4)) == []
    assert processes == [os.getpid()]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups to signal")
@pytest.mark.parametrize("seconds", ["[0.1] * 10_000", "[0.5, 2.5]"], ids=["all busy", "one idle"])
def test_ctrl_c_ends_all_processes_and_only_the_parent_reports_it(tmp_path: Path, seconds: str) -> None:
    """As in a terminal, the signal goes to the whole process group."""
    code, errors = run_and_end(tmp_path, seconds, lambda pid: os.killpg(pid, signal.SIGINT))
    assert code == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    code, _ = run_and_end(tmp_path, "[0, 1000, 1000, 1000]", lambda pid: os.kill(pid, signal.SIGKILL))
    assert code == -signal.SIGKILL
