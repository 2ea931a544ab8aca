"""What a machine with a GPU but without a package registry lacks, brought along as wheels.

    python benchmarks/on_gpu/wheels.py              # where there is a registry: wheels for the other one, into wheels/
    python benchmarks/on_gpu/wheels.py --install    # on the other one: what is missing, into build/

``benchmarks/gpu.py`` does the second by itself. What a machine has is left alone, torch above all.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WHEELS = ROOT / "wheels"
PACKAGES = ROOT / "build" / f"gpu-packages-{sys.version_info.major}.{sys.version_info.minor}"

NEEDED = ("av", "pycocotools", "tqdm", "typer", "ruamel-yaml", "pytest", "pytest-timeout")
"""What measuring and the tests import, besides torch, transformers and what these bring."""

LEFT_ALONE = re.compile(r"(torch|triton|numpy|nvidia|cuda)(-|$)")
"""Whoever has torch for the machine's GPU has these."""

PYTHON = "3.12"
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(17, 29)))


def download(names: Sequence[str], folder: Path) -> None:
    """Fetch wheels of packages and of what they need, for Python 3.12 on Linux.

    Args:
        names: The packages.
        folder: Where wheels go.
    """
    command = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--python-version", PYTHON]
    command += ["--implementation", "cp", *(word for name in PLATFORMS for word in ("--platform", name))]
    subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), "-d", str(folder), *names], check=True)
    for wheel in folder.glob("*.whl"):
        if LEFT_ALONE.match(package_of(wheel)):
            wheel.unlink()


def install_missing(folder: Path = WHEELS, target: Path = PACKAGES) -> list[str]:
    """Install the wheels of packages that this Python lacks, without a registry and without touching any other.

    Args:
        folder: Holds wheels, or does not exist.
        target: Where to.

    Returns:
        Which of ``NEEDED`` are still missing.
    """
    present = installed([*sys.path, str(target)])
    wheels = [wheel for wheel in sorted(folder.glob("*.whl")) if not skipped(package_of(wheel), present)]
    if wheels:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target)]
        subprocess.run([*command, *map(str, wheels)], check=True)
        present = installed([*sys.path, str(target)])
    return [name for name in NEEDED if name not in present]


def skipped(name: str, present: Iterable[str]) -> bool:
    """Whether a package is not to be installed: it is there, or it is none of our business."""
    return name in present or LEFT_ALONE.match(name) is not None


def installed(paths: Sequence[str]) -> set[str]:
    """Names of the packages that Python finds in these folders."""
    return {_plain(found.metadata["Name"]) for found in distributions(path=list(paths)) if found.metadata["Name"]}


def package_of(wheel: Path) -> str:
    """The package that a wheel holds."""
    return _plain(wheel.name.partition("-")[0])


def _plain(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Fetch or install."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NEEDED, help=f"packages to fetch, default {' '.join(NEEDED)}")
    parser.add_argument("--install", action="store_true")
    options = parser.parse_args()
    if not options.install:
        download(options.names, WHEELS)
    elif missing := install_missing():
        sys.exit(
            f"missing: {', '.join(missing)}; run 'make gpu-wheels' where there is a registry, bring the folder wheels"
        )


if __name__ == "__main__":
    main()
