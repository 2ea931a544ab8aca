"""Runs each case in a fresh process, so that its peak memory is its own and nothing is warm from the one before."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection

from refervos.bench.cases import Case, Failure, Measurement
from refervos.errors import RefervosError
from refervos.processes import exit_with_parent, sigint_blocked

Measure = Callable[[Case], Measurement | Failure]


def measured_apart(cases: Iterable[Case], measure: Measure | None = None) -> Iterator[Measurement | Failure]:
    """Measure cases one after another, each in a process of its own; Ctrl-C ends the one that runs.

    Args:
        cases: What to measure.
        measure: A function of a module, default ``refervos.bench.measuring.measure``.

    Yields:
        What came out, in order; a process that dies, as it does when memory runs out, is a failure of its case.

    Raises:
        RefervosError: When the input is at fault.
    """
    for case in cases:
        # Where nothing is cached, compiling takes the time that it takes a user the first time.
        with tempfile.TemporaryDirectory(prefix="refervos-bench-", ignore_cleanup_errors=True) as compiler_cache:
            result = _measured_in_process(case, measure or _measure, compiler_cache)
        if isinstance(result, RefervosError):
            raise result
        yield result


def _measured_in_process(case: Case, measure: Measure, compiler_cache: str) -> Measurement | Failure | RefervosError:
    context = multiprocessing.get_context("spawn")
    answer, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(case, measure, compiler_cache, sender))
    try:
        with sigint_blocked():
            process.start()
        sender.close()  # the process has the only other end, so its death is the end of the pipe
        result: Measurement | Failure | RefervosError = answer.recv()
    except EOFError:
        process.join()
        result = Failure(case, _death(process.exitcode))
    finally:
        process.kill()
        process.join()
        answer.close()
    return result


def _run(case: Case, measure: Measure, compiler_cache: str, sender: Connection) -> None:
    """What the process does."""
    exit_with_parent()
    # Before torch is there: libraries read these once.
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(case.threads)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(case.threads)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiler_cache
    try:
        sender.send(measure(case))
    except RefervosError as error:
        sender.send(error)


def _measure(case: Case) -> Measurement | Failure:
    from refervos.bench.measuring import measure

    return measure(case)


def _death(exit_code: int | None) -> str:
    if exit_code == -9:  # the signal KILL
        return "the process was killed, perhaps for want of memory"
    return f"the process ended with exit code {exit_code}"
