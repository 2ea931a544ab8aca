"""Download files from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refervos.errors import CheckpointError, is_out_of_memory

_FILES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".onnx", ".json", ".yaml", ".zip"})
"""File suffixes; a name with one of them is a path."""


def is_hub_id(name: str) -> bool:
    """Return whether a name that is not an existing path can be a hub id, ``owner/name``.

    A misspelt path must not become a request: a name with the suffix of a weight file, or with an existing parent
    folder, counts as a path.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) or Path(name).suffix.lower() in _FILES:
        return False
    return not Path(name).parent.exists()


def fetch(repository: str, patterns: Sequence[str], advice: str, *, revision: str | None = None) -> Path:
    """Download files of a repository, or find them in the local cache.

    Args:
        repository: ``owner/name``.
        patterns: Glob patterns of the files.
        advice: Remedy for the error message.
        revision: Branch, tag or commit; default the main branch.

    Returns:
        The folder of the files.

    Raises:
        CheckpointError: When the name is not a hub id (no request is made), or they cannot be downloaded.
    """
    if not is_hub_id(repository):
        parent = Path(repository).parent
        reason = f"the folder {parent} exists, so it counts as a path" if str(parent) != "." else "it is not owner/name"
        raise CheckpointError(f"{repository} does not exist and is not a hub id ({reason}); {advice}.")
    from huggingface_hub import snapshot_download

    chosen: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns), **chosen))
    except Exception as error:  # errors of the hub, its client, the network and the disk have no common base class
        if is_out_of_memory(error):
            raise
        raise CheckpointError(
            f"{repository} is not a local folder and cannot be downloaded from the hub ({_reason(repository, error)}); "
            f"{advice}."
        ) from error


def _reason(repository: str, error: Exception) -> str:
    """Describe why a download failed and what to do, without a full stop."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if "No space left" in str(error):
        return f"no space is left on the disk of {constants.HF_HUB_CACHE}: free some, or set HF_HOME to another disk"
    if constants.HF_HUB_OFFLINE:
        return "it is not in the cache, and HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE"
    if isinstance(error, GatedRepoError):
        return (
            f"its owners grant access on request: ask at https://huggingface.co/{repository}, then run 'hf auth login'"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such public repository: check the name; for a private one, run 'hf auth login'"
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return f"the hub replies with status {status}: try again later"
        return "the hub cannot be reached and it is not in the cache: check the network"
    return " ".join(str(error).split())[:160]
