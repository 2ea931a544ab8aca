"""Scoring many expressions in several processes.

What is handed to the processes is small: a function without arguments that reads the masks where they are needed, such
as ``functools.partial(read_masks, folder, expression_id)``. Masks themselves are never sent.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from refervos.errors import EvaluationError
from refervos.metrics.region_boundary import BOUNDARY_TOLERANCE, Mask, Scores, video_scores

T = TypeVar("T")

MaskReader = Callable[[], tuple[Iterable[Mask], Iterable[Mask], Iterable[Mask | None] | None]]
"""Gives truth, prediction and void pixels of a video, as ``video_scores`` takes them. Several processes need it to be
picklable: a function of a module, a ``functools.partial`` of one, or an object with ``__call__``."""


def scores_of_videos(
    readers: Iterable[MaskReader], *, processes: int | None = None, tolerance: float = BOUNDARY_TOLERANCE
) -> Iterator[tuple[Scores, Scores]]:
    """J and F of every frame of many videos.

    Args:
        readers: One for each expression.
        processes: As in ``in_processes``.
        tolerance: As in ``boundary_accuracy``.

    Yields:
        J and F as ``video_scores`` returns them, in the order of the readers.

    Raises:
        EvaluationError: As ``video_scores`` and ``in_processes``.
    """
    return in_processes((partial(_scores_of, reader, tolerance) for reader in readers), processes=processes)


def in_processes(tasks: Iterable[Callable[[], T]], *, processes: int | None = None) -> Iterator[T]:
    """Call functions in several processes.

    Ctrl-C and an error of a task end all processes once they have finished what they are at; killing this process ends
    them at once.

    Args:
        tasks: Picklable functions without arguments, whose results are picklable.
        processes: How many; 1 calls them here; default one for each processor that this process may use.

    Yields:
        Their results, in order, as soon as they and all before are there.

    Raises:
        EvaluationError: When a process dies, as it does when memory runs out.
    """
    count = usable_processors() if processes is None else processes
    if count <= 1:
        yield from (task() for task in tasks)
        return
    waiting = list(tasks)
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=follow_parent)
    try:
        with ctrl_c_held_back():
            futures: list[Future[T]] = [pool.submit(task) for task in waiting]
        futures.reverse()
        while futures:
            yield futures.pop().result()  # and forget it: results of a whole benchmark need not be kept
    except BrokenProcessPool as error:
        raise EvaluationError(
            "a scoring process died, perhaps for want of memory; try again with fewer processes."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def usable_processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _scores_of(reader: MaskReader, tolerance: float) -> tuple[Scores, Scores]:
    return video_scores(*reader(), tolerance=tolerance)


@contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Ctrl-C takes effect afterwards, and never in processes started meanwhile: they inherit that it is blocked."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """Leave Ctrl-C, which a terminal sends to every process, to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows it is not blocked yet
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
