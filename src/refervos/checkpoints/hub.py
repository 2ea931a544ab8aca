"""Files from the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from refervos.errors import CheckpointError


def fetch(repository: str, patterns: Sequence[str], advice: str) -> Path:
    """Download some files of a repository, or find them in the local cache.

    Args:
        repository: ``owner/name``.
        patterns: Which files.
        advice: What would be right, for the error message.

    Returns:
        The folder with the files.

    Raises:
        CheckpointError: When they cannot be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{repository} is no folder here and cannot be had from the hub ({reason}); {advice}."
        ) from error
