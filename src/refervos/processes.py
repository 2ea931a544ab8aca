"""Worker processes: a pool whose workers are set up once, and signal handling common to all child processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from queue import Empty
from typing import Any, TypeVar

from refervos.errors import EvaluationError

T = TypeVar("T")
R = TypeVar("R")

Setup = Callable[[], Callable[[T], Iterable[R]]]
"""Returns the function that does one task, after setting up; must be picklable if there are several processes."""

POLL_INTERVAL = 1.0
"""Seconds between two checks that all processes are alive."""


def run_in_processes(setups: Sequence[Setup[T, R]], tasks: Sequence[T], processes: int) -> Iterator[R]:
    """Run tasks in several processes.

    An error, Ctrl-C or the end of this process terminates all workers at once, so their output must survive that.

    Args:
        setups: One is called in each worker, in turn if there are more workers; with one process, the first is called
            in this process. They may set up different devices, but must do the same work.
        tasks: Picklable tasks, handed out in order.
        processes: Maximum number of processes.

    Yields:
        Results of the tasks as they arrive; in order only with one process.

    Raises:
        RefervosError: Any error raised by a task, unchanged.
        EvaluationError: When a process dies, for example for lack of memory.
    """
    processes = min(processes, len(tasks))
    if processes <= 1:
        if tasks:
            run = setups[0]()
            for task in tasks:
                yield from run(task)
        return
    context = multiprocessing.get_context("spawn")
    waiting, done = context.Queue(), context.Queue()
    for task in tasks:
        waiting.put(task)
    for _ in range(processes):
        waiting.put(None)
    threads = max(1, usable_cpus() // processes)
    workers = [
        context.Process(target=_work, args=(setup, threads, waiting, done), daemon=True)
        for setup in islice(cycle(setups), processes)
    ]
    try:
        with sigint_blocked():
            for worker in workers:
                worker.start()
        yield from _results(done, workers)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
        for worker in workers:
            if worker.pid is not None:
                worker.join()
        waiting.cancel_join_thread()


def _work(setup: Setup[Any, Any], threads: int, waiting: Any, done: Any) -> None:
    """Set up, then run tasks until none is left."""
    exit_with_parent()
    try:
        if torch := sys.modules.get("torch"):  # imported if the setup uses a model
            torch.set_num_threads(threads)
        run = setup()
        while (task := waiting.get()) is not None:
            for result in run(task):
                done.put((False, result))
        done.put((True, None))
    except Exception as error:
        error.add_note(traceback.format_exc())
        done.put((True, error))


def _results(done: Any, workers: Sequence[Any]) -> Iterator[Any]:
    """Yield results until every worker has finished."""
    running = len(workers)
    while running:
        try:
            last, result = done.get(timeout=POLL_INTERVAL)
        except Empty:
            if any(worker.exitcode for worker in workers) or not any(worker.is_alive() for worker in workers):
                raise EvaluationError(
                    "a process died, perhaps for lack of memory; the same command with fewer --processes continues."
                ) from None
            continue
        if isinstance(result, Exception):
            raise result
        if last:
            running -= 1
        else:
            yield result


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Delay Ctrl-C until the end of the block; processes started inside never receive it (they inherit the mask)."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """Ignore Ctrl-C, which a terminal sends to every process, and exit when the parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows it is not blocked yet
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
