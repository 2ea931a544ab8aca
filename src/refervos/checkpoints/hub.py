"""Download files from the Hugging Face hub, and recognise them in its cache."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

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


@dataclass(frozen=True)
class HubOptions:
    """Options of a download from the hub, named as in huggingface_hub.

    Attributes:
        revision: Branch, tag or commit; default the main branch.
        token: Access token, ``False`` for none; default the one stored by ``hf auth login``.
        cache_dir: Cache to use; default huggingface_hub's.
        local_files_only: Make no request and use only what is in the cache.
        subfolder: Folder inside the repository, such as ``large`` or ``models/large``.

    Raises:
        CheckpointError: When the subfolder is not inside the repository.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    subfolder: str = ""

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.subfolder)
        if parts.is_absolute() or ".." in parts.parts or "\\" in self.subfolder:
            raise CheckpointError(
                f"subfolder is {self.subfolder!r}; it must be a folder inside the model's, such as 'large'."
            )


@dataclass(frozen=True)
class HubCommit:
    """A commit of a repository of the hub.

    Attributes:
        repository: ``owner/name``.
        commit: Hash of the commit.
    """

    repository: str
    commit: str

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit}"


def commit_of(path: Path) -> HubCommit | None:
    """Return the commit that a file or folder in huggingface_hub's cache belongs to; None for other paths."""
    for folder in (path, *path.parents):
        kept = folder.parent
        if kept.name == "snapshots" and kept.parent.name.startswith("models--"):
            return HubCommit(kept.parent.name.removeprefix("models--").replace("--", "/"), folder.name)
    return None


def fetch(repository: str, patterns: Sequence[str], advice: str, options: HubOptions | None = None) -> Path:
    """Download files of a repository, or find them in the local cache.

    Args:
        repository: ``owner/name``.
        patterns: Glob patterns of the files.
        advice: Remedy for the error message.
        options: Revision, token, cache and subfolder; default the main branch in the default cache.

    Returns:
        The folder of the files.

    Raises:
        CheckpointError: When the name is not a hub id (no request is made), or they cannot be downloaded.
    """
    chosen = options or HubOptions()
    if not is_hub_id(repository):
        parent = Path(repository).parent
        reason = f"the folder {parent} exists, so it counts as a path" if str(parent) != "." else "it is not owner/name"
        raise CheckpointError(f"{repository} does not exist and is not a hub id ({reason}); {advice}.")
    from huggingface_hub import snapshot_download

    inside = f"{chosen.subfolder.strip('/')}/" if chosen.subfolder else ""
    try:
        snapshot = snapshot_download(
            repository,
            allow_patterns=[f"{inside}{pattern}" for pattern in patterns],
            revision=chosen.revision,
            token=chosen.token,
            cache_dir=None if chosen.cache_dir is None else Path(chosen.cache_dir),
            local_files_only=chosen.local_files_only,
        )
    except Exception as error:  # errors of the hub, its client, the network and the disk have no common base class
        if is_out_of_memory(error):
            raise
        reason = _reason(repository, chosen, error)
        raise CheckpointError(
            f"{repository} is not a local folder and cannot be downloaded from the hub ({reason}); {advice}."
        ) from error
    folder = Path(snapshot) / inside
    if not folder.is_dir():
        raise CheckpointError(f"{repository} has no folder {chosen.subfolder} with a model; {advice}.")
    return folder


def _reason(repository: str, options: HubOptions, error: Exception) -> str:
    """Describe why a download failed and what to do, without a full stop."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cache = options.cache_dir or constants.HF_HUB_CACHE
    if "No space left" in str(error):
        return f"no space is left on the disk of {cache}: free some, or set HF_HOME to another disk"
    if options.local_files_only:
        revision = "" if options.revision is None else f" in revision {options.revision}"
        return f"it is not in the cache {cache}{revision}, and local_files_only forbids to fetch it"
    if constants.HF_HUB_OFFLINE:
        return "it is not in the cache, and HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE"
    if isinstance(error, GatedRepoError):
        return (
            f"its owners grant access on request: ask at https://huggingface.co/{repository}, then run 'hf auth login'"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {options.revision}: give a branch, a tag or a commit"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no such public repository: check the name; for a private one, run 'hf auth login'"
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return f"the hub replies with status {status}: try again later"
        return "the hub cannot be reached and it is not in the cache: check the network"
    return " ".join(str(error).split())[:160]


def upload(
    folder: Path,
    repository: str,
    *,
    message: str,
    replaced: Sequence[str],
    revision: str | None = None,
    create_pr: bool = False,
    private: bool = False,
    token: str | bool | None = None,
) -> str:
    """Upload the files of a folder to a repository in one commit; the repository and the branch are created if missing.

    Args:
        folder: The folder.
        repository: ``owner/name``, or a name in the user's own namespace.
        message: Commit message.
        replaced: Patterns of files of the repository that are deleted unless they are uploaded.
        revision: Branch to commit to, or on which a pull request is based; default the main branch.
        create_pr: Open a pull request instead of committing to the branch.
        private: Whether a new repository is private.
        token: Access token; default the one stored by ``hf auth login``.

    Returns:
        Address of the commit, or of the pull request.

    Raises:
        CheckpointError: When the upload fails; says why and what to do.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    try:
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(name, branch=revision, exist_ok=True)
        old = set(api.list_repo_files(name, revision=revision)) - {path.name for path in files}
        obsolete = sorted(file for file in old if any(fnmatch(file, pattern) for pattern in replaced))
        # Not upload_folder, which may split a large upload into several commits.
        commit = api.create_commit(
            name,
            [
                *(CommitOperationDelete(file) for file in obsolete),
                *(CommitOperationAdd(path.name, path) for path in files),
            ],
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # errors of the hub, its client, the network and the disk have no common base class
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{repository} cannot be written on the hub ({_upload_reason(error)}).") from error
    return commit.pr_url or commit.commit_url


def _upload_reason(error: Exception) -> str:
    """Describe why an upload failed and what to do, without a full stop."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set: unset HF_HUB_OFFLINE"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the hub needs an access token: run 'hf auth login', or give token"
    if status == 403:
        return "the token may not write there: use one with write access, or create_pr=True"
    if status is not None and status >= 500:
        return f"the hub replies with status {status}: try again later"
    if isinstance(error, HFValidationError):
        return "it is not owner/name"
    if status is None and "connect" in f"{type(error).__name__} {error}".lower():
        return "the hub cannot be reached: check the network"
    return " ".join(str(error).split())[:160].rstrip(".")
