"""Requirements for every input, however damaged: a result or one sentence, within limits of time and memory.

Each input is tried in a forked process, so that hangs, crashes and lack of memory are reported like any other failure
and do not affect the tests.
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

REASON = "inputs run in forked processes with the resource limits of Linux"
POSIX = pytest.mark.skipif(sys.platform != "linux", reason=REASON)

SECONDS = 10
"""CPU time that an input may take; the wall-clock limit is three times as long."""

MEMORY = 1 << 30
"""Bytes of memory that an input may take above the idle process."""

ADDRESSES = 4 << 30
"""Bytes of address space that an input may claim, which protects the machine."""

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
"""Number of random inputs of each kind; 0 for the few fixed ones of every test run."""

FINDINGS = os.environ.get("FUZZ_FINDINGS")
"""Folder that collects failing inputs, so that a long run continues after a failure."""


def inputs(few: int) -> settings:
    """Return the hypothesis settings of a test.

    Args:
        few: Number of inputs in a normal test run, always the same ones.
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
    """Empty a folder and return the path in it for the next input."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return folder / "input"


@dataclass(frozen=True)
class Outcome:
    """Result of an input.

    Attributes:
        fault: Violated requirement, or empty.
        refused: Whether it was refused with a sentence.
        output: That sentence, or the printed output.
        seconds: Wall-clock time.
        memory: Peak memory in bytes above the idle process.
        stalled: Whether it timed out with little CPU time: it blocks, or the machine was busy.
    """

    fault: str
    refused: bool
    output: str
    seconds: float
    memory: int
    stalled: bool = False


def judge(call: Callable[[], object], scratch: Path, *, out: Path | None = None, about: str = "") -> Outcome:
    """Try an input and check the requirements.

    Args:
        call: Uses the input; it may raise only ``RefervosError``.
        scratch: Folder of the input, copied to ``FINDINGS`` on failure.
        out: Folder of the results, if any: no file in it may be incomplete.
        about: Description of the input, for the report.

    Returns:
        The outcome.

    Raises:
        AssertionError: When a requirement is violated and findings are not collected.
    """
    outcome = tried(call, scratch)
    if outcome.stalled:  # a busy machine can be the cause, but hardly twice
        outcome = tried(call, scratch)
    incomplete = "" if outcome.fault or out is None else incomplete_files(out)
    fault = outcome.fault or incomplete
    event("refused" if outcome.refused else "fault" if fault else "accepted")
    note(f"{about}: {outcome}")
    if fault and FINDINGS:
        _keep(fault, about, scratch, Path(FINDINGS))
        return outcome
    assert not fault, f"{about}\n{fault}"
    return outcome


def tried(call: Callable[[], object], scratch: Path) -> Outcome:
    """Use an input in a forked process and return the outcome."""
    _import_commands()
    printed = scratch.with_name(f"{scratch.name}.printed")
    reader, writer = os.pipe()
    begun = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # otherwise the child could collect a video decoder and wait for its threads forever
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
        os.killpg(child, signal.SIGKILL)  # processes that it has started
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
    fault, refused, output = pickle.loads(report[8:])
    if not fault and memory > MEMORY:
        fault = f"it takes {memory / 2**20:.0f} MB above the idle process; output: {output}"
    return Outcome(fault, refused, output, seconds, memory)


@functools.cache
def _import_commands() -> None:
    """Import once the modules that every forked process would import."""
    CliRunner().invoke(app, ["info", "--json", "absent"])


def _use(call: Callable[[], object], printed: Path, writer: int) -> NoReturn:
    """Use the input in the forked process, report the outcome, and exit without cleanup."""
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
        fault, refused, output = "", False, ""
        try:
            output = str(call() or "")
        except RefervosError as error:
            refused, output = True, str(error)
            fault = sentence_fault(output)
        except BaseException:
            fault = traceback.format_exc()
        os.write(writer, pickle.dumps((fault, refused, output[:5000])))
    finally:
        os._exit(0)


def _received(reader: int, until: float) -> bytes | None:
    """Return the report of the process, empty when it ended without one, None on a timeout."""
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


def sentence_fault(sentence: str) -> str:
    """Return the fault of an error message, or an empty string."""
    if not sentence.strip():
        return "the message is empty"
    if odd := [letter for letter in sentence if letter != "\n" and not _safe(letter)]:
        return f"the message has the control characters {odd[:5]}: {sentence!r}"
    if any(line and not line.startswith("  ") for line in sentence.split("\n")[1:]):
        return f"the message has several lines: {sentence!r}"
    if len(sentence) > 10_000:
        return f"the message has {len(sentence)} characters: {sentence[:300]!r}"
    if re.search(r"Traceback|File \"|weights_only=", sentence):
        return f"the message is for programmers: {sentence!r}"
    return ""


def _safe(letter: str) -> bool:
    return unicodedata.category(letter) not in ("Cc", "Cs")


def command(*arguments: object) -> Callable[[], str]:
    """Return a function that runs a command line: exit code 0, 2 with one sentence, or 1 for reported problems.

    Args:
        arguments: Arguments after ``refervos``.

    Returns:
        Function that runs it in the current process and returns its output.
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
            sentences = [line for line in printed.splitlines() if line.startswith(("refervos: ", "Error: "))]
            if len(sentences) != 1 and "Usage:" not in printed and "problem" not in printed:
                raise AssertionError(f"exit code 2 with {len(sentences)} sentences: {printed!r}")
            raise RefervosError(sentences[0] if sentences else "the problems were listed.")
        if code not in (0, None) and not (code == 1 and " problem" in printed):
            raise AssertionError(f"exit code {code}: {printed!r}")
        return printed

    return run


def _logged(printed: str) -> str:
    """Return the traceback that the command line wrote to a log file."""
    found = re.search(r"the details are in (\S+);", printed)
    if not found:
        return ""
    log = Path(found[1])
    text = log.read_text()
    log.unlink()
    return text


def incomplete_files(folder: Path, *, allow_hidden: bool = False) -> str:
    """List results that are incomplete or have a temporary name; empty when there are none.

    Args:
        folder: Folder of the results.
        allow_hidden: Whether hidden files may be incomplete, as after a kill.
    """
    incomplete = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or (allow_hidden and is_hidden(path, folder)):
            continue
        try:
            _read_to_end(path)
        except Exception as error:
            incomplete.append(f"{path.relative_to(folder)} ({type(error).__name__}: {error})")
    return f"these files are incomplete: {', '.join(incomplete)}" if incomplete else ""


def is_hidden(path: Path, folder: Path) -> bool:
    """Return whether a path below a folder is hidden or in a hidden folder."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _read_to_end(path: Path) -> None:
    """Read a result completely, according to its suffix."""
    if path.name.endswith(".part"):
        raise ValueError("it has a temporary name")
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
    """Keep a failing input, one per place in the code."""
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
    """Return the names that cannot be copied: pipes and devices."""
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]
