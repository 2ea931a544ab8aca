"""Checkpoints of a run: written whole or not at all, verified when read, and loaded without executing code.

A checkpoint is a folder ``step-000200`` with ``state.pt`` (read by ``torch.load(weights_only=True)``) and
``manifest.json`` (its SHA-256).
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from refervos.checkpoints.weight_files import unreadable_error
from refervos.errors import CheckpointError
from refervos.files.writing import atomic_folder, write_error

STATE = "state.pt"
MANIFEST = "manifest.json"
FORMAT = 2
"""Version of the layout. Version 1 used other checksums of the frozen weights."""
PREFIX = "step-"


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write a checkpoint, then remove the oldest ones.

    Args:
        folder: Holds the checkpoints of one stage.
        step: Number of optimiser steps made.
        state: Tensors and plain values, nested in dicts, lists and tuples.
        keep: Number of checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: When it cannot be written; earlier checkpoints are kept.
    """
    target = folder / f"{PREFIX}{step:06d}"  # exists already if the run resumed from an older checkpoint
    try:
        with atomic_folder(target, error=CheckpointError) as staged:
            with (staged / STATE).open("wb") as file:
                torch.save(dict(state), file)
                _to_disk(file)
            manifest = {"format": FORMAT, "step": step, "sha256": {STATE: _sha256(staged / STATE)}}
            with (staged / MANIFEST).open("w", encoding="utf-8") as text:
                json.dump(manifest, text)
                _to_disk(text)
    except RuntimeError as error:  # torch reports a full disk like this
        raise write_error(target, error, CheckpointError) from error
    for old in checkpoints_in(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def checkpoints_in(folder: Path) -> list[Path]:
    """List the complete checkpoints in a folder, oldest first."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def read_newest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Read the newest intact checkpoint.

    Damaged ones are reported and skipped; the steps since the last intact one are then repeated.

    Args:
        folder: Holds the checkpoints of one stage.
        warn: Called with a sentence about each damaged checkpoint.

    Returns:
        The saved state, or None when there is no checkpoint.

    Raises:
        CheckpointError: When there are checkpoints and all are damaged, or of another format.
    """
    reasons: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            warn(f"{error} It is skipped.")
            reasons.append(str(error))
    if reasons:
        raise CheckpointError(
            f"no checkpoint in {folder} can be resumed from; start the stage over with --restart "
            f"(the newest: {reasons[0].removesuffix('.')})."
        )
    return None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: Its folder.

    Returns:
        The saved state, with tensors on the CPU.

    Raises:
        CheckpointError: When it is incomplete, damaged or of an unknown format.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        intact = manifest["sha256"][STATE] == _sha256(path / STATE)
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint {path} is incomplete.") from error
    if not intact:
        raise CheckpointError(f"the checkpoint {path} is damaged: its contents do not match its SHA-256.")
    if version != FORMAT:
        raise CheckpointError(f"the checkpoint {path} has format {version}; this version reads format {FORMAT}.")
    try:
        # Not memory-mapped as model weights are: the file may be removed while the run continues.
        state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise unreadable_error(path / STATE, error) from error
    return state


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(file: Any) -> None:
    """Flush a file to disk, so that its rename never gets there before its contents."""
    file.flush()
    os.fsync(file.fileno())


# Random numbers.


def seed_random(*numbers: int) -> None:
    """Seed Python's, NumPy's and torch's generators, on all devices, from a tuple of numbers."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's generators in this process, as tensors and plain values."""
    gpu = _gpu()
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
        "torch": torch.get_rng_state(),
        # Only of this process's GPU: querying the others would initialise each of them in every process.
        "gpu": None if gpu is None else gpu.get_rng_state(),
        "gpu_kind": None if gpu is None else gpu.__name__,
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to a state from ``random_state``."""
    random.setstate(state["python"])
    numpy = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy["key"].numpy().astype(np.uint32), "pos": numpy["pos"]},
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    gpu = _gpu()
    if gpu is not None and gpu.__name__ == state["gpu_kind"]:
        gpu.set_rng_state(state["gpu"])


@contextmanager
def torch_random_state_kept() -> Iterator[None]:
    """Restore torch's generators after the block, that of this process's GPU included."""
    gpu = _gpu()
    own, of_gpu = torch.get_rng_state(), None if gpu is None else gpu.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(own)
        if gpu is not None:
            gpu.set_rng_state(of_gpu)


def _gpu() -> Any:
    """Return torch's module for this machine's kind of GPU, such as ``torch.cuda``; None if no GPU is in use."""
    if not torch.accelerator.is_available():
        return None
    kind = torch.accelerator.current_accelerator()
    if kind is None or (kind.type == "cuda" and not torch.cuda.is_initialized()):
        return None
    return torch.get_device_module(kind)
