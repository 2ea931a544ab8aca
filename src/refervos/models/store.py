"""The cache of fetched models: folders beside the hub's own cache, and the checksum of each file fetched first."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refervos.checkpoints.weight_files import read_settings
from refervos.errors import CheckpointError, RefervosError
from refervos.files.locks import LOCK, FolderLock
from refervos.files.writing import remove_leftovers, write_atomically, write_error
from refervos.models.registry import ASSETS, Bundled, HubRepository, NamedModel, named_model

HUB_FILES = ("*.json", "*.txt", "*.safetensors")
"""Files of a hub repository that a model is loaded from."""

_RECORDS, _DOWNLOADS = "records", "downloads"


def cache_folder() -> Path:
    """Return the folder of converted models.

    It is beside the folder ``hub`` of huggingface_hub, so that ``HF_HOME`` and ``HF_HUB_CACHE`` move both to the same
    disk; it is not inside, where huggingface_hub takes every folder for a repository of its own.
    """
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().parent / "refervos"


def download_folder(model: NamedModel) -> Path:
    """Return the folder that holds a model's unfinished download and the lock on it."""
    return cache_folder() / _DOWNLOADS / model.name


def record_file(model: NamedModel) -> Path:
    """Return the file with what is known about a model's first download."""
    return cache_folder() / _RECORDS / f"{model.name}.json"


def read_record(model: NamedModel) -> dict[str, Any]:
    """Read what is known about a model's first download; empty before it.

    Raises:
        CheckpointError: When the file is damaged.
    """
    file = record_file(model)
    if not file.exists():
        return {}
    record = read_settings(file)
    if not isinstance(record, dict):
        raise CheckpointError(f"{file} is not a JSON object; delete it, and the next download is pinned anew.")
    return record


def write_record(model: NamedModel, **values: Any) -> None:
    """Pin a model's first download: its source, and its checksum or revision."""
    file = record_file(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"model": model.name, "source": str(model.origin), **values}
    write_atomically(file, (json.dumps(content, indent=2) + "\n").encode(), error=CheckpointError)


def find_on_disk(model: NamedModel) -> Path | None:
    """Return the folder of a model that is bundled or was fetched; None if it was not. Makes no request."""
    if isinstance(model.origin, Bundled):
        return ASSETS / model.name
    if isinstance(model.origin, HubRepository):
        return _find_snapshot(model.origin, read_record(model).get("revision"))
    folder = cache_folder() / model.name
    return folder if (folder / "config.json").is_file() else None  # written whole, so the weights are there too


def _find_snapshot(repository: HubRepository, revision: object) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not isinstance(revision, str):
        return None
    try:
        found = snapshot_download(
            repository.id, revision=revision, allow_patterns=list(HUB_FILES), local_files_only=True
        )
    except (LocalEntryNotFoundError, ValueError):
        return None
    return Path(found)


class Busy(RefervosError):
    """Another process is fetching or removing the model."""


@contextlib.contextmanager
def locked(model: NamedModel) -> Iterator[Path]:
    """Hold a model's place in the cache against other processes and threads, without waiting.

    Yields:
        The folder for its download, which exists.

    Raises:
        Busy: When it is held.
        CheckpointError: When the cache is not writable.
    """
    folder = download_folder(model)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(folder, f"fetching {model.name}", Busy)
    except OSError as problem:
        raise write_error(folder, problem, CheckpointError) from problem
    try:
        yield folder
    finally:
        lock.release()


def clear_leftovers(model: NamedModel) -> None:
    """Remove what a killed run left of a model that is complete, unless another process is at work there."""
    if _has_download(model):
        with contextlib.suppress(Busy, CheckpointError), locked(model):
            discard_download(model)


def discard_download(model: NamedModel) -> None:
    """Remove a model's download and unfinished conversions; the caller holds the lock, whose file stays."""
    remove_leftovers(cache_folder())
    for path in download_folder(model).iterdir():
        if path.name != LOCK:
            path.unlink(missing_ok=True)


def _has_download(model: NamedModel) -> bool:
    folder = download_folder(model)
    return folder.is_dir() and any(path.name != LOCK for path in folder.iterdir())


def remove_model(name: str, *, forget: bool = False) -> bool:
    """Remove a fetched model from the cache; the checksum or revision of its files stays pinned.

    Args:
        name: Its name.
        forget: Also forget the checksum or revision, so that the next download may differ.

    Returns:
        Whether there was anything to remove.

    Raises:
        CheckpointError: When the model is unknown or bundled, or another process is fetching it.
    """
    model = named_model(name)
    if isinstance(model.origin, Bundled):
        raise CheckpointError(f"{name} is part of the package and cannot be removed.")
    found = find_on_disk(model)
    unfinished = _has_download(model)
    try:
        with locked(model):
            if found is not None:
                _remove_files(model, found)
            discard_download(model)
            if forget:
                record_file(model).unlink(missing_ok=True)
    except Busy as busy:
        raise CheckpointError(str(busy)) from busy
    except OSError as problem:
        raise CheckpointError(f"{name} cannot be removed ({problem.strerror or problem}).") from problem
    return found is not None or unfinished


def _remove_files(model: NamedModel, found: Path) -> None:
    if not isinstance(model.origin, HubRepository):
        (found / "config.json").unlink()  # killed from here on, it is no model any more
        shutil.rmtree(found)
        return
    from huggingface_hub import scan_cache_dir

    scan_cache_dir().delete_revisions(found.name).execute()
