"""What the processes of a test do; a file of its own, so that they start without torch."""

from __future__ import annotations

import os
import signal

import numpy as np

from refervos.bench.cases import Case, Failure
from refervos.bench.memory import peak_resident_megabytes
from refervos.errors import ConfigError

DEADLY, FAULTY = 98, 99
"""So many sentences, and the process dies, or the input is at fault."""


def take_memory(case: Case) -> Failure:
    """Take 240 MB a sentence and tell the peak, the process and its number of threads."""
    if case.sentences == DEADLY:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
    if case.sentences == FAULTY:
        raise ConfigError("the case is at fault.")
    np.ones(30_000_000 * case.sentences)
    return Failure(case, f"{peak_resident_megabytes():.0f} {os.getpid()} {os.environ['OMP_NUM_THREADS']}")
