"""What a measurement was taken on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "bf16")
"""Instruction sets that matter to matrix products, as Linux names them (the last is ARM's)."""

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Any of these multiplies bfloat16; without, it is emulated and slower than float32."""


@dataclass(frozen=True)
class Machine:
    """A machine and what runs on it.

    Attributes:
        processor: Its name.
        flags: Those of ``FLAGS`` that it has.
        cores: How many this process may use.
        memory_gigabytes: Of the whole machine, None where the system does not tell.
        system: Operating system and release.
        python: Version.
        torch: Version.
        transformers: Version.
        refervos: Version.
        gpu: Name, None without.
        gpu_gigabytes: Its memory, None without.
        cuda: Version that torch was built for, None without.
    """

    processor: str
    flags: tuple[str, ...]
    cores: int
    memory_gigabytes: float | None
    system: str
    python: str
    torch: str
    transformers: str
    refervos: str
    gpu: str | None
    gpu_gigabytes: float | None
    cuda: str | None

    @property
    def multiplies_bfloat16(self) -> bool:
        """Whether the processor has instructions for bfloat16."""
        return not BFLOAT16_FLAGS.isdisjoint(self.flags)


def this_machine() -> Machine:
    """Describe the machine that this runs on."""
    import transformers

    import refervos
    from refervos.metrics.parallel import usable_processors

    processor, flags = read_cpuinfo(Path("/proc/cpuinfo"))
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return Machine(
        processor=processor or platform.processor() or platform.machine(),
        flags=flags,
        cores=usable_processors(),
        memory_gigabytes=_memory_gigabytes(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        refervos=refervos.__version__,
        gpu=gpu.name if gpu else None,
        gpu_gigabytes=round(gpu.total_memory / 1e9, 1) if gpu else None,
        cuda=torch.version.cuda if gpu else None,
    )


def read_cpuinfo(path: Path) -> tuple[str, tuple[str, ...]]:
    """Name and flags of the first processor that Linux lists.

    Args:
        path: Usually ``/proc/cpuinfo``.

    Returns:
        The name, empty where there is none, and those of ``FLAGS`` that are listed.
    """
    if not path.is_file():
        return "", ()
    entries: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        entries.setdefault(name.strip(), value.strip())
    present = set((entries.get("flags") or entries.get("Features") or "").split())
    return entries.get("model name", ""), tuple(flag for flag in FLAGS if flag in present)


def _memory_gigabytes() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
