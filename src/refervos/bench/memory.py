"""Current and peak memory of this process."""

from __future__ import annotations

import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def resident_megabytes() -> float | None:
    """Return the resident memory of this process in units of 10^6 bytes; None if the system does not report it."""
    return _status_line("VmRSS")


def peak_resident_megabytes() -> float | None:
    """Return the peak resident memory of this process in units of 10^6 bytes; None if the system does not report it.

    Linux reports it in ``/proc``, other POSIX systems through the module ``resource``, which Windows lacks.
    """
    # On Linux ru_maxrss also counts the parent's memory at the start of this process.
    peak = _status_line("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def peak_device_megabytes(device: str) -> float | None:
    """Return the peak memory of tensors on a GPU in units of 10^6 bytes.

    Args:
        device: Name of the device in torch.

    Returns:
        None on a CPU, and on GPUs whose peak torch does not report.
    """
    import torch

    gpu = torch.device(device)
    peak = None if gpu.type == "cpu" else getattr(torch.get_device_module(gpu), "max_memory_allocated", None)
    return None if peak is None else peak(gpu) / 1e6


def _status_line(name: str) -> float | None:
    if not STATUS.is_file():
        return None
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    return None
