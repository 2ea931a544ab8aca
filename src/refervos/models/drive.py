"""Download a file from Google Drive."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from refervos.errors import CheckpointError, require_installed
from refervos.models.registry import DriveFile, NamedModel
from refervos.progress import Bar

_MEGABYTE = 10**6

_RETRIES = 3
"""How often a broken connection is taken up again before the command gives up."""

_TIMEOUT = (15, 60)
"""Seconds to wait for a connection, and for data on it."""


def download(model: NamedModel, origin: DriveFile, target: Path, *, show_progress: bool | None) -> None:
    """Download a model's checkpoint; a download that was broken off is continued.

    Args:
        model: The model, for error messages.
        origin: The file on Google Drive.
        target: File to write, which exists only when it is complete. Until then ``<target>????????.part`` is beside it.
        show_progress: Show a progress bar; default only on a terminal.

    Raises:
        CheckpointError: When it cannot be downloaded; says what to do.
        MissingDependencyError: When gdown is not installed.
    """
    require_installed(f"fetching {model.name} from Google Drive", "drive", "gdown")
    import gdown
    from gdown.exceptions import DownloadError

    with Bar("MB", show=show_progress, description=model.name) as bar:
        shown = 0

        def advance(done: int, total: int | None) -> None:
            nonlocal shown
            if total is not None:
                bar.expect(total // _MEGABYTE)
            bar.advance(done // _MEGABYTE - shown)
            shown = done // _MEGABYTE

        def attempt() -> None:
            # Without its file of cookies, which it would write into the home folder.
            gdown.download(
                id=origin.id,
                output=str(target),
                quiet=True,
                resume=True,
                use_cookies=False,
                progress=advance,
                timeout=_TIMEOUT,
                retries=_RETRIES,
            )

        try:
            try:
                attempt()
            except DownloadError as error:
                if "byte range" not in str(error):
                    raise
                for part in unfinished(target):  # the server cannot continue it, or has another file by now
                    part.unlink()
                attempt()
        except Exception as error:  # gdown reads untrusted pages, and requests has errors of many kinds
            raise _described(model, origin, target, error) from error


def unfinished(target: Path) -> list[Path]:
    """List the unfinished downloads of a file."""
    return sorted(target.parent.glob(f"{target.name}????????.part"))


def _described(model: NamedModel, origin: DriveFile, target: Path, error: Exception) -> CheckpointError:
    """Return the error that says why a download failed and what to do."""
    by_hand = f"open {origin} in a browser and run 'refervos models fetch {model.name} --from FILE'"
    text = " ".join(str(error).split())
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full_disk(model, target)
    if isinstance(error, OSError) and error.filename is not None:
        return CheckpointError(f"'{target}' cannot be written ({error.strerror}); set HF_HOME to a writable folder.")
    if re.search(r"too many users|quota", text, re.IGNORECASE) or status in (403, 429):
        return CheckpointError(
            f"{model.name} cannot be fetched now: Google Drive's quota for this file is exhausted; try again in a day, "
            f"or {by_hand}."
        )
    if "file url" in text or "public link" in text or status in (404, 410):
        return CheckpointError(
            f"{model.name} cannot be fetched: Google Drive shows a web page instead of the file, which was removed, is "
            f"not public any more, or needs a browser; {by_hand}."
        )
    if any(part.stat().st_size for part in unfinished(target)):
        return CheckpointError(
            f"the connection broke while {model.name} was fetched ({text[:160]}); what was received is kept, and "
            "the same command continues."
        )
    return CheckpointError(
        f"{model.name} cannot be fetched: Google Drive cannot be reached ({text[:160]}); check the network, or on a "
        f"machine with one {by_hand} here."
    )


def full_disk(model: NamedModel, path: Path) -> CheckpointError:
    """Return the error for a disk that is full."""
    return CheckpointError(
        f"{model.name} cannot be kept: no space is left on the disk of '{path.parent}'; it takes about "
        f"{2 * 4 * model.parameters / 1000:.1f} GB while it is converted and half of that afterwards. Free as much and "
        "run the command again, or set HF_HOME to a folder on another disk."
    )
