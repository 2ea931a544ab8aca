"""Files and folders are written completely or not at all, by one process at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refervos.errors import CheckpointError, OutputError, RefervosError, VideoError
from refervos.files import writing
from refervos.files.locks import FolderLock
from refervos.files.writing import PartialFolder, atomic_folder, prepare_folder, remove_leftovers, write_atomically

POSIX = pytest.mark.skipif(os.name == "nt", reason="kills and forks")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Run code in another process until it prints a line."""
    words = [sys.executable, "-u", "-c", code, *map(str, arguments)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


FILLING = """
import sys
from pathlib import Path
from refervos.files.writing import PartialFolder
part = PartialFolder(Path(sys.argv[1]))
part.add("a.txt", b"half")
print("ready")
sys.stdin.read()
"""


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_replaces_an_old_one(exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchanges:
        monkeypatch.setattr(writing, "_exchange", lambda one, other: False)
    for name in ("a.txt", "b.txt"):
        with atomic_folder(tmp_path / "deep" / "out") as staged:
            assert list(staged.iterdir()) == []
            (staged / name).write_text(name)
        assert contents(tmp_path) == {f"deep/out/{name}": name}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_error_while_writing_leaves_the_old_folder_unchanged(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out") as staged:
        (staged / "a.txt").write_text("old")

    def fail(error: Exception) -> None:
        with atomic_folder(tmp_path / "out") as staged:
            (staged / "a.txt").write_text("new")
            raise error

    for error, raised in ((KeyError("mine"), KeyError), (OSError(28, "No space left on device"), OutputError)):
        with pytest.raises(raised):
            fail(error)
        assert contents(tmp_path) == {"out/a.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_not_put_in_place_is_discarded(tmp_path: Path) -> None:
    with PartialFolder(tmp_path / "out") as part:
        part.add("a.txt", b"a")
        part.put_in_place()
    with PartialFolder(tmp_path / "out") as part:
        part.add("b.txt", b"b")
    assert contents(tmp_path) == {"out/a.txt": "a"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_files_is_not_overwritten_unless_allowed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out", overwrite=False) as staged:
        (staged / "a.txt").write_text("a")
    with pytest.raises(CheckpointError, match="out is not empty; give a new folder, or allow overwriting"):
        atomic_folder(tmp_path / "out", overwrite=False, error=CheckpointError).__enter__()
    with pytest.raises(OutputError, match=r"a\.txt is a file; give a folder"):
        atomic_folder(tmp_path / "out" / "a.txt").__enter__()


@POSIX
def test_a_folder_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    other = start(FILLING, tmp_path / "out")
    with pytest.raises(CheckpointError, match="another process is writing"):
        PartialFolder(tmp_path / "out", error=CheckpointError)
    PartialFolder(tmp_path / "another").discard()
    remove_leftovers(tmp_path)
    assert contents(tmp_path)[".out.part/new/a.txt"] == "half"
    kill(other)
    with atomic_folder(tmp_path / "out") as staged:
        (staged / "b.txt").write_text("whole")
    assert contents(tmp_path) == {"out/b.txt": "whole"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@POSIX
def test_leftover_folders_of_killed_runs_are_removed(tmp_path: Path) -> None:
    kill(start(FILLING, tmp_path / "out"))
    (tmp_path / ".mine.part").mkdir()
    (tmp_path / ".mine.part" / "a.txt").write_text("not of this package")
    (tmp_path / ".begun.part").mkdir()  # killed before it was locked
    (tmp_path / ".elsewhere.part").symlink_to(tmp_path / ".mine.part")
    prepare_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".mine.part", ".elsewhere.part"}
    assert (tmp_path / ".mine.part" / "a.txt").exists()


@POSIX
def test_a_forked_worker_does_not_keep_the_lock_of_a_process_that_was_killed(tmp_path: Path) -> None:
    """Data loading workers of a killed training run live on for a moment."""
    code = """
import os, sys, time
from pathlib import Path
from refervos.files.locks import FolderLock
lock = FolderLock(Path(sys.argv[1]), "training", ValueError)
worker = os.fork()
if not worker:
    time.sleep(60)
    os._exit(0)
Path(sys.argv[1], "worker").write_text(str(worker))
time.sleep(0.2)
print("ready")
sys.stdin.read()
"""
    other = start(code, tmp_path)
    with pytest.raises(OutputError, match="another process is training in"):
        FolderLock(tmp_path, "training", OutputError)
    other.kill()
    other.wait()
    worker = int((tmp_path / "worker").read_text())
    try:
        os.kill(worker, 0)  # it lives
        FolderLock(tmp_path, "training", OutputError).release()
    finally:
        os.kill(worker, signal.SIGKILL)
        other.communicate()


def test_a_second_lock_in_the_same_process_is_refused(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "training", OutputError)
    with pytest.raises(OutputError, match="another process is training in"):
        FolderLock(tmp_path, "training", OutputError)
    lock.release()
    lock.release()
    FolderLock(tmp_path, "training", OutputError).release()


@POSIX
def test_a_folder_never_mixes_the_files_of_two_writers(tmp_path: Path) -> None:
    """Two processes that write a folder in turns are either refused or hold it alone."""
    code = """
import random, sys, time
from pathlib import Path
from refervos.errors import OutputError
from refervos.files.writing import atomic_folder
print("ready")
while not Path(sys.argv[3]).exists():
    try:
        with atomic_folder(Path(sys.argv[1])) as staged:
            for name in "abc":
                (staged / name).write_text(sys.argv[2])
    except OutputError as error:
        assert "another process is writing" in str(error), error
    time.sleep(random.uniform(0, 0.01))  # the other one's turn; not in step with it
"""
    stop, out = tmp_path / "stop", tmp_path / "results" / "out"
    others = [start(code, out, name, stop) for name in ("one", "two")]
    seen: set[str] = set()
    begin = time.monotonic()
    while time.monotonic() < begin + 1 or (len(seen) < 2 and time.monotonic() < begin + 30):
        try:
            folder = os.open(out, os.O_RDONLY)  # the same folder for all files, also if it is replaced meanwhile
        except FileNotFoundError:
            continue
        try:
            found = {read_in(folder, name) for name in "abc"}
        except FileNotFoundError:
            continue
        finally:
            os.close(folder)
        assert len(found) == 1
        seen |= found
    stop.touch()
    for other in others:
        other.communicate()
        assert other.returncode == 0
    assert seen == {"one", "two"}
    assert len(set(contents(out).values())) == 1
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def read_in(folder: int, name: str) -> str:
    with os.fdopen(os.open(name, os.O_RDONLY, dir_fd=folder)) as file:
        return file.read()


@pytest.mark.parametrize("error", [OutputError, CheckpointError])
def test_a_failed_write_raises_the_given_type_of_error(error: type[RefervosError], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(error, match=r"'.*file/a' cannot be written \(Not a directory\); choose a writable place"):
        write_atomically(tmp_path / "file" / "a", b"", error=error)
    with pytest.raises(
        error, match=r"'.*file/a' cannot be written \((Not a directory|File exists)\); choose a writable place"
    ):
        atomic_folder(tmp_path / "file" / "a", error=error).__enter__()


def test_an_output_error_is_a_video_error(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="cannot be written"):
        write_atomically(tmp_path / "absent" / "a", b"")
