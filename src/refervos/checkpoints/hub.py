"""Download files from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refervos.errors import CheckpointError


def fetch(repository: str, patterns: Sequence[str], advice: str) -> Path:
    """Download files of a repository, or find them in the local cache.

    Args:
        repository: ``owner/name``.
        patterns: Glob patterns of the files.
        advice: Remedy for the error message.

    Returns:
        The folder of the files.

    Raises:
        CheckpointError: When they cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{repository} is not a local folder and cannot be downloaded from the hub ({reason}); {advice}."
        ) from error
