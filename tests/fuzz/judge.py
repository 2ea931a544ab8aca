"""What must hold for every input, however broken: an answer or one sentence, soon, in bounded memory, nothing torn.

An input is tried in a forked process, so that one that hangs, takes all memory or ends the process is seen and told
like any other, and leaves the tests as they were.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import json
import os
import pickle
import re
import resource
import select
import shutil
import signal
import sys
import time
import traceback
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import HealthCheck, Phase, event, note, settings
from typer.testing import CliRunner

from refervos.cli.entry import app, main
from refervos.errors import RefervosError

POSIX = pytest.mark.skipif(sys.platform != "linux", reason="inputs are tried in forked processes with Linux's limits")

SECONDS = 10
"""How long an input may keep a process busy, in the process' own time; waiting, it gets three times that."""

MEMORY = 1 << 30
"""Bytes that an input may take above what the process has when idle."""

ADDRESSES = 4 << 30
"""Bytes of addresses that an input may claim, so that one that claims all does not take the machine with it."""

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Inputs of each kind when run by hand; 0 for the fixed few of every test run."""

FINDINGS = os.environ.get("FUZZ_FINDINGS")
"""Folder in which inputs that fail are kept, so that a long run goes on and ends with all of them."""


def inputs(few: int) -> settings:
    """How many inputs of a kind are tried.

    Args:
        few: In every test run, where they are always the same ones.
    """
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate] if FINDINGS else [Phase.explicit, Phase.generate, Phase.shrink],
        print_blob=False,
    )


def fresh(folder: Path) -> Path:
    """Empty a folder; returns where in it the next input shall be."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return folder / "input"


@dataclass(frozen=True)
class Outcome:
    """What came of an input.

    Attributes:
        fault: What is wrong with how it was dealt with, empty where nothing is.
        refused: Whether it was refused with a sentence.
        said: That sentence, or what was printed.
        seconds: How long it took.
        memory: Bytes above the idle process, at most.
        stalled: Whether its time was up although it hardly did anything: it waits for ever, or was not let.
    """

    fault: str
    refused: bool
    said: str
    seconds: float
    memory: int
    stalled: bool = False


def judge(call: Callable[[], object], scratch: Path, *, out: Path | None = None, about: str = "") -> Outcome:
    """Try an input and check that it is dealt with as every input must be.

    Args:
        call: Uses the input. What it raises must be a ``RefervosError``.
        scratch: The folder with the input, kept where ``FINDINGS`` are collected.
        out: The folder that results are written to, if any: no file in it may be torn.
        about: What was done to the input, for the report.

    Returns:
        What came of it.

    Raises:
        AssertionError: When something is wrong and findings are not collected.
    """
    outcome = tried(call, scratch)
    if outcome.stalled:  # on a machine that stood still it would not be the input's fault, and not happen twice
        outcome = tried(call, scratch)
    torn = "" if outcome.fault or out is None else torn_files(out)
    fault = outcome.fault or torn
    event("refused" if outcome.refused else "fault" if fault else "answered")
    note(f"{about}: {outcome}")
    if fault and FINDINGS:
        _keep(fault, about, scratch, Path(FINDINGS))
        return outcome
    assert not fault, f"{about}\n{fault}"
    return outcome


def tried(call: Callable[[], object], scratch: Path) -> Outcome:
    """Use an input in a process of its own, and tell what came of it."""
    _import_commands()
    printed = scratch.with_name(f"{scratch.name}.printed")
    reader, writer = os.pipe()
    begun = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # else the child would free a video decoder that is garbage, and wait for its threads for ever
    child = os.fork()
    if not child:
        os.close(reader)
        _use(call, printed, writer)
    gc.unfreeze()
    os.close(writer)
    report = _received(reader, begun + 3 * SECONDS + 5)
    if report is None:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it has started itself
    seconds = time.monotonic() - begun
    text = printed.read_text(errors="replace") if printed.exists() else ""
    printed.unlink(missing_ok=True)
    begun_with = int.from_bytes((report or b"")[:8], "little")
    memory = max(0, used.ru_maxrss * 1024 - begun_with)
    if not report or len(report) == 8:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"code {os.waitstatus_to_exitcode(status)}"
        late = seconds > 3 * SECONDS or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF)
        kind = "hangs" if late else f"ends the process with {how}"
        stalled = late and used.ru_utime + used.ru_stime < SECONDS / 2
        return Outcome(f"it {kind} after {seconds:.1f} s\n{text}", False, text, seconds, memory, stalled)
    fault, refused, said = pickle.loads(report[8:])
    if not fault and memory > MEMORY:
        fault = f"it takes {memory / 2**20:.0f} MB above the idle process; it says: {said}"
    return Outcome(fault, refused, said, seconds, memory)


@functools.cache
def _import_commands() -> None:
    """Import once what every forked process would import for itself."""
    CliRunner().invoke(app, ["info", "--json", "absent"])


def _use(call: Callable[[], object], printed: Path, writer: int) -> NoReturn:
    """What the forked process does: use the input, tell what came of it, end without any cleaning up."""
    try:
        os.setpgid(0, 0)
        os.write(writer, _resident().to_bytes(8, "little"))
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(file, standard)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", errors="backslashreplace", closefd=False) for n in (1, 2))
        faulthandler.enable(file)
        faulthandler.register(signal.SIGPROF, file, chain=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        faulthandler.dump_traceback_later(3 * SECONDS, exit=True, file=file)
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        fault, refused, said = "", False, ""
        try:
            said = str(call() or "")
        except RefervosError as error:
            refused, said = True, str(error)
            fault = wrong_with(said)
        except BaseException:
            fault = traceback.format_exc()
        os.write(writer, pickle.dumps((fault, refused, said[:5000])))
    finally:
        os._exit(0)


def _received(reader: int, until: float) -> bytes | None:
    """What the process has told, empty where it ended without a word, None when time is up."""
    parts = []
    try:
        while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
            parts.append(os.read(reader, 1 << 16))
            if not parts[-1]:
                return b"".join(parts)
    finally:
        os.close(reader)
    return None


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def wrong_with(sentence: str) -> str:
    """What is wrong with the sentence of an error; empty when nothing is."""
    if not sentence.strip():
        return "the error says nothing"
    if odd := [letter for letter in sentence if letter != "\n" and not _safe(letter)]:
        return f"the sentence has the control characters {odd[:5]}: {sentence!r}"
    if any(line and not line.startswith("  ") for line in sentence.split("\n")[1:]):
        return f"the sentence has several lines: {sentence!r}"
    if len(sentence) > 10_000:
        return f"the sentence has {len(sentence)} letters: {sentence[:300]!r}"
    if re.search(r"Traceback|File \"|weights_only=", sentence):
        return f"the sentence is for programmers: {sentence!r}"
    return ""


def _safe(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cc", "Cs")


def command(*arguments: object) -> Callable[[], str]:
    """A command line, to be judged: exit code 0, 2 with one sentence, or 1 where problems are what it reports.

    Args:
        arguments: What follows ``refervos``.

    Returns:
        What uses it in this very process, and gives back what it printed on standard output.
    """

    def run() -> str:
        sys.argv = ["refervos", *map(str, arguments)]
        code: Any = 0
        before = os.lseek(1, 0, os.SEEK_CUR)
        try:
            main()
        except SystemExit as end:
            code = end.code
        sys.stdout.flush()
        sys.stderr.flush()
        with open("/proc/self/fd/1", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.seek(before)
            printed = file.read()
        if odd := sorted({letter for letter in printed if letter not in "\n\t" and not _safe(letter)}):
            raise AssertionError(f"control characters {odd} are printed: {printed!r}")
        if "Traceback" in printed or "an unexpected error occurred" in printed:
            raise AssertionError(f"{printed}\n{_logged(printed)}")
        if code == 2:
            said = [line for line in printed.splitlines() if line.startswith(("refervos: ", "Error: "))]
            if len(said) != 1 and "Usage:" not in printed and "problem" not in printed:
                raise AssertionError(f"exit code 2 with {len(said)} sentences: {printed!r}")
            raise RefervosError(said[0] if said else "the problems were listed.")
        if code not in (0, None) and not (code == 1 and " problem" in printed):
            raise AssertionError(f"exit code {code}: {printed!r}")
        return printed

    return run


def _logged(printed: str) -> str:
    """The traceback that the command line has put into a file."""
    found = re.search(r"the details are in (\S+);", printed)
    if not found:
        return ""
    log = Path(found[1])
    text = log.read_text()
    log.unlink()
    return text


def torn_files(folder: Path, *, unfinished: bool = False) -> str:
    """Names of results that are not whole, or were left under a name for unfinished ones; empty when all are whole.

    Args:
        folder: Where results were written.
        unfinished: Whether there may be unfinished ones under hidden names, as after a kill.
    """
    torn = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or (unfinished and is_hidden(path, folder)):
            continue
        try:
            _open_whole(path)
        except Exception as error:
            torn.append(f"{path.relative_to(folder)} ({type(error).__name__}: {error})")
    return f"these files are not whole: {', '.join(torn)}" if torn else ""


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a path below a folder is hidden, or in a folder that is."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _open_whole(path: Path) -> None:
    """Read a result to its end, by its suffix."""
    if path.name.endswith(".part"):
        raise ValueError("it was left unfinished")
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".mp4":
        import av

        with av.open(str(path)) as container:
            if not sum(1 for _ in container.decode(video=0)):
                raise ValueError("it has no frame")
    elif path.suffix == ".jsonl":
        for line in path.read_text().splitlines():
            json.loads(line)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            list(file.keys())


def _keep(fault: str, about: str, scratch: Path, findings: Path) -> None:
    """Put an input that failed aside, once for each place in the code."""
    places = re.findall(r'File "([^"]+)", line (\d+)', fault)
    own = [f"{Path(file).stem}-{line}" for file, line in places if "/refervos/" in file]
    hangs = "most recent call first" in fault
    last = fault.strip().splitlines()[0 if hangs else -1]
    name = re.sub(r"[^\w.-]+", "_", f"{own[0 if hangs else -1] if own else 'x'}_{last}")[:100]
    folder = findings / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "faults.txt").open("a", errors="backslashreplace") as file:
        file.write(f"{'=' * 80}\n{about:.3000}\n{fault[:4000]}\n...\n{fault[-2000:]}\n")
    if not (folder / "input").exists():
        shutil.copytree(scratch, folder / "input", symlinks=True, ignore=_specials)


def _specials(folder: str, names: list[str]) -> list[str]:
    """What cannot be copied: pipes and devices."""
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]
