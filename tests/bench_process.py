"""Functions that tests run in processes of the benchmark; a separate file, so that they start without torch."""

from __future__ import annotations

import os
import signal

import numpy as np

from refervos.bench.cases import Case, Failure
from refervos.bench.memory import peak_resident_megabytes
from refervos.errors import ConfigError

DEADLY, FAULTY = 98, 99
"""Numbers of sentences with which the process dies, or the input is wrong."""


def take_memory(case: Case) -> Failure:
    """Allocate 240 MB a sentence; return peak memory, process id and number of threads as the reason of a failure."""
    if case.sentences == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
    if case.sentences == FAULTY:
        raise ConfigError("the case is wrong.")
    np.ones(30_000_000 * case.sentences)
    return Failure(case, f"{peak_resident_megabytes() or 0:.0f} {os.getpid()} {os.environ['OMP_NUM_THREADS']}")
