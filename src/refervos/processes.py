"""Processes: work shared among several that each prepare for it once, and what all of ours have in common."""

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
"""Prepares, and gives what does one piece of work; picklable where there are several processes."""

POLL_INTERVAL = 1.0
"""Seconds between two looks at whether all processes are alive."""


def run_in_processes(begins: Sequence[Setup[T, R]], pieces: Sequence[T], processes: int) -> Iterator[R]:
    """Do pieces of work, each in one of several processes.

    An error, Ctrl-C or the end of this process ends all others at once, so what they write must bear that.

    Args:
        begins: One is called in each process, in turn where there are more processes; with one process, the first of
            them here. They may prepare for different devices, but not for different work.
        pieces: What to do, picklable; given out in order.
        processes: At most how many.

    Yields:
        What the pieces yield, as it comes; in order with one process only.

    Raises:
        RefervosError: Whatever a piece raises, as it was raised.
        EvaluationError: When a process dies, as it does when memory runs out.
    """
    processes = min(processes, len(pieces))
    if processes <= 1:
        if pieces:
            work = begins[0]()
            for piece in pieces:
                yield from work(piece)
        return
    context = multiprocessing.get_context("spawn")
    waiting, done = context.Queue(), context.Queue()
    for piece in pieces:
        waiting.put(piece)
    for _ in range(processes):
        waiting.put(None)
    threads = max(1, usable_cpus() // processes)
    workers = [
        context.Process(target=_work, args=(begin, threads, waiting, done), daemon=True)
        for begin in islice(cycle(begins), processes)
    ]
    try:
        with sigint_blocked():
            for worker in workers:
                worker.start()
        yield from _gathered(done, workers)
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
        for worker in workers:
            if worker.pid is not None:
                worker.join()
        waiting.cancel_join_thread()


def _work(begin: Setup[Any, Any], threads: int, waiting: Any, done: Any) -> None:
    """What a process does: prepare, then take pieces until there are none."""
    exit_with_parent()
    try:
        if torch := sys.modules.get("torch"):  # what prepares with a model has imported it
            torch.set_num_threads(threads)
        work = begin()
        while (piece := waiting.get()) is not None:
            for result in work(piece):
                done.put((False, result))
        done.put((True, None))
    except Exception as error:
        error.add_note(traceback.format_exc())
        done.put((True, error))


def _gathered(done: Any, workers: Sequence[Any]) -> Iterator[Any]:
    """What comes from the processes, until all have said that they are through."""
    running = len(workers)
    while running:
        try:
            last, result = done.get(timeout=POLL_INTERVAL)
        except Empty:
            if any(worker.exitcode for worker in workers) or not any(worker.is_alive() for worker in workers):
                raise EvaluationError(
                    "a process died, perhaps for want of memory; the same command with fewer --processes goes on."
                ) from None
            continue
        if isinstance(result, Exception):
            raise result
        if last:
            running -= 1
        else:
            yield result


def usable_cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Ctrl-C takes effect afterwards, and never in processes started meanwhile: they inherit that it is blocked."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent() -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows it is not blocked yet
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
