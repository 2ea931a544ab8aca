"""Description of the machine that a measurement ran on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from refervos.ops.linear import has_one_dnn

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "bf16")
"""Instruction sets relevant to matrix products, by their names in Linux (the last is ARM's)."""

BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Instruction sets that multiply bfloat16."""


@dataclass(frozen=True)
class Machine:
    """Hardware and software versions of a machine.

    Attributes:
        processor: Name of the processor.
        flags: Those of ``FLAGS`` that it has.
        cores: Number of cores that this process may use.
        memory_gigabytes: Memory of the whole machine; None if the system does not report it.
        system: Operating system and release.
        python: Version of Python.
        torch: Version of torch.
        transformers: Version of transformers; None if it is not installed.
        refervos: Version of refervos.
        gpu: Name of the measured GPU, or else of the first one; None without one.
        gpu_gigabytes: Memory of the GPU; None without one, and if torch does not report it.
        cuda: Version of CUDA that torch was built for; None without a CUDA GPU.
        one_dnn_bfloat16: True if oneDNN multiplies bfloat16 on this processor, natively or emulated.
    """

    processor: str
    flags: tuple[str, ...]
    cores: int
    memory_gigabytes: float | None
    system: str
    python: str
    torch: str
    transformers: str | None
    refervos: str
    gpu: str | None
    gpu_gigabytes: float | None
    cuda: str | None
    one_dnn_bfloat16: bool

    @property
    def bfloat16_note(self) -> str | None:
        """Caveat of bfloat16 results on this processor as a sentence; None if there is none."""
        if not self.one_dnn_bfloat16:
            return (
                "oneDNN multiplies no bfloat16 on this processor, which lacks AVX-512 and ARM's bf16: torch's own "
                "products are used, many times slower than float32."
            )
        if self.flags and BFLOAT16_FLAGS.isdisjoint(self.flags):
            return "This processor has no instructions for bfloat16: oneDNN emulates it, slower than float32."
        return None


def this_machine(device: str = "cpu") -> Machine:
    """Describe this machine.

    Args:
        device: Name of the measured device in torch.
    """
    import refervos
    from refervos.processes import usable_cpus

    processor, flags = read_cpuinfo(Path("/proc/cpuinfo"))
    gpu, gigabytes, cuda = _gpu(torch.device(device))
    return Machine(
        processor=processor or platform.processor() or platform.machine(),
        flags=flags,
        cores=usable_cpus(),
        memory_gigabytes=_memory_gigabytes(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=_version("transformers"),
        refervos=refervos.__version__,
        gpu=gpu,
        gpu_gigabytes=gigabytes,
        cuda=cuda,
        one_dnn_bfloat16=has_one_dnn(torch.bfloat16),
    )


def _version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu(device: torch.device) -> tuple[str | None, float | None, str | None]:
    """Return name and memory of a GPU, or of the first one if the device is none, and the version of CUDA."""
    if device.type == "mps":
        return "Apple GPU (mps)", None, None
    if device.type == "cpu" and not torch.cuda.is_available():
        return None, None, None
    module = torch.cuda if device.type == "cpu" else torch.get_device_module(device)
    about = module.get_device_properties(0 if device.type == "cpu" else device)
    return about.name, round(about.total_memory / 1e9, 1), torch.version.cuda if module is torch.cuda else None


def read_cpuinfo(path: Path) -> tuple[str, tuple[str, ...]]:
    """Read name and flags of the first processor that Linux lists.

    Args:
        path: Usually ``/proc/cpuinfo``.

    Returns:
        The name, empty if there is none, and those of ``FLAGS`` that are listed.
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
