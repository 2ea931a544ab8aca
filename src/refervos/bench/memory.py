"""What memory a process takes, and the most that it ever took."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_megabytes() -> float | None:
    """Resident memory of this process now, in units of 10^6 bytes; None where the system does not tell."""
    return _status_line("VmRSS")


def peak_resident_megabytes() -> float:
    """The most resident memory that this process ever had, in units of 10^6 bytes."""
    # On Linux ru_maxrss also counts what the parent had when it started this process.
    peak = _status_line("VmHWM")
    if peak is not None:
        return peak
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def peak_device_megabytes(device: str) -> float | None:
    """The most memory that tensors ever had on a GPU, in units of 10^6 bytes.

    Args:
        device: As torch names it.

    Returns:
        None on a CPU, and on GPUs of which torch does not tell.
    """
    import torch

    where = torch.device(device)
    tell = None if where.type == "cpu" else getattr(torch.get_device_module(where), "max_memory_allocated", None)
    return None if tell is None else tell(where) / 1e6


def _status_line(name: str) -> float | None:
    if not STATUS.is_file():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None
