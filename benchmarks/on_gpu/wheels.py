"""Wheels of packages for a GPU machine without access to a package registry.

    python benchmarks/on_gpu/wheels.py              # on a machine with a registry: download wheels into wheels/
    python benchmarks/on_gpu/wheels.py --install    # on the GPU machine: install missing packages into build/

``benchmarks/gpu.py`` does the second step by itself. Installed packages are never replaced, torch in particular.
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
"""Packages that measurements and tests import, besides torch, transformers and their dependencies."""

NEVER_INSTALLED = re.compile(r"(torch|triton|numpy|nvidia|cuda)(-|$)")
"""Packages that come with torch for the machine's GPU."""

PYTHON = "3.12"
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in range(17, 29)))


def download(names: Sequence[str], folder: Path) -> None:
    """Download wheels of packages and their dependencies, for Python 3.12 on Linux.

    Args:
        names: Names of the packages.
        folder: Folder of the wheels.
    """
    command = [sys.executable, "-m", "pip", "download", "--only-binary=:all:", "--python-version", PYTHON]
    command += ["--implementation", "cp", *(word for name in PLATFORMS for word in ("--platform", name))]
    subprocess.run([*command, "-c", str(ROOT / "constraints.txt"), "-d", str(folder), *names], check=True)
    for wheel in folder.glob("*.whl"):
        if NEVER_INSTALLED.match(package_of(wheel)):
            wheel.unlink()


def install_missing(folder: Path = WHEELS, target: Path = PACKAGES) -> list[str]:
    """Install the wheels of packages that this Python lacks, without a registry, and change no other package.

    Args:
        folder: Folder of the wheels; may not exist.
        target: Folder to install into.

    Returns:
        The packages of ``NEEDED`` that are still missing.
    """
    present = installed([*sys.path, str(target)])
    wheels = [wheel for wheel in sorted(folder.glob("*.whl")) if not skipped(package_of(wheel), present)]
    if wheels:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(target)]
        subprocess.run([*command, *map(str, wheels)], check=True)
        present = installed([*sys.path, str(target)])
    return [name for name in NEEDED if name not in present]


def skipped(name: str, present: Iterable[str]) -> bool:
    """Return True if a package is installed already, or must never be installed."""
    return name in present or NEVER_INSTALLED.match(name) is not None


def installed(paths: Sequence[str]) -> set[str]:
    """List the names of the packages that Python finds in these folders."""
    return {_plain(found.metadata["Name"]) for found in distributions(path=list(paths)) if found.metadata["Name"]}


def package_of(wheel: Path) -> str:
    """Return the name of a wheel's package."""
    return _plain(wheel.name.partition("-")[0])


def _plain(name: str) -> str:
    """Normalise a package's name like registries."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """Download or install wheels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NEEDED, help=f"packages to download, default {' '.join(NEEDED)}")
    parser.add_argument("--install", action="store_true")
    options = parser.parse_args()
    if not options.install:
        download(options.names, WHEELS)
    elif missing := install_missing():
        sys.exit(
            f"missing: {', '.join(missing)}; run 'make gpu-wheels' on a machine with a registry and copy wheels/ here"
        )


if __name__ == "__main__":
    main()
