"""Measurement of each case in a fresh process, with its own peak memory and a cold start."""

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


def measure_in_processes(cases: Iterable[Case], measure: Measure | None = None) -> Iterator[Measurement | Failure]:
    """Measure cases one after another, each in its own process, which Ctrl-C ends.

    Args:
        cases: The cases to measure.
        measure: A picklable function, default ``refervos.bench.measuring.measure``.

    Yields:
        The results in order; a process that dies, for instance for lack of memory, is a failure of its case.

    Raises:
        RefervosError: When the input is wrong.
    """
    for case in cases:
        # With an empty cache, compiling takes as long as it takes a user the first time.
        with tempfile.TemporaryDirectory(prefix="refervos-bench-", ignore_cleanup_errors=True) as compiler_cache:
            result = _measure_in_process(case, measure or _measure, compiler_cache)
        if isinstance(result, RefervosError):
            raise result
        yield result


def _measure_in_process(case: Case, measure: Measure, compiler_cache: str) -> Measurement | Failure | RefervosError:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(case, measure, compiler_cache, sender))
    try:
        with sigint_blocked():
            process.start()
        sender.close()  # the process has the only other end, so its death is the end of the pipe
        result: Measurement | Failure | RefervosError = receiver.recv()
    except EOFError:
        process.join()
        result = Failure(case, _reason_of_death(process.exitcode))
    finally:
        process.kill()
        process.join()
        receiver.close()
    return result


def _run(case: Case, measure: Measure, compiler_cache: str, sender: Connection) -> None:
    """Measure a case in the new process and send the result."""
    exit_with_parent()
    # Before torch is imported: libraries read these once.
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


def _reason_of_death(exit_code: int | None) -> str:
    if exit_code == -9:  # SIGKILL
        return "the process was killed, perhaps for lack of memory"
    return f"the process ended with exit code {exit_code}"
