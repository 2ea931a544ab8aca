"""Puts files in place whole: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from refervos.errors import VideoError


def temporary_beside(path: Path) -> Path:
    """A name in the same folder that nothing else uses, hidden and never ending in the target's suffix."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def prepare_folder(folder: Path) -> None:
    """Makes a folder and its parents and makes sure that files can be written into it.

    Args:
        folder: The folder.

    Raises:
        VideoError: It cannot be made or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = temporary_beside(folder / "probe")
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        raise not_writable(folder, error) from error


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Guards a file against being overwritten unasked.

    Args:
        path: The file to be written.
        overwrite: Whether it may be replaced.

    Raises:
        VideoError: It exists and may not be replaced, or is a folder.
    """
    if path.is_dir():
        raise VideoError(f"'{path}' is a folder; give the name of a file to write.")
    if path.exists() and not overwrite:
        raise VideoError(f"'{path}' exists already; choose another name or allow that (overwrite=True).")


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file in one step: it is there complete or, after an interruption, not at all.

    Args:
        path: The file; an old one of that name is replaced.
        data: Its content.

    Raises:
        VideoError: It cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException as error:
        discard(temporary)
        if isinstance(error, OSError):
            raise not_writable(path, error) from error
        raise


def put_in_place(temporary: Path, path: Path, overwrite: bool) -> None:
    """Renames a finished file to its final name.

    Args:
        temporary: The finished file.
        path: Its final name, in the same folder.
        overwrite: Whether a file that has come to be there meanwhile may be replaced.

    Raises:
        VideoError: It cannot; the finished file then stays under its temporary name, which the sentence
            tells.
    """
    try:
        if overwrite:
            temporary.replace(path)
            return
        try:
            os.link(temporary, path)  # unlike a rename, fails where the name has been taken
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if path.exists():
                raise FileExistsError(path) from None
            temporary.replace(path)
            return
        discard(temporary)
    except OSError as error:
        raise VideoError(
            f"'{path}' cannot be put in place ({error.strerror or 'it has come to exist meanwhile'}); "
            f"what was written is in '{temporary}', to be renamed by hand."
        ) from error


def discard(path: Path) -> None:
    """Removes a file if it is there and can be removed."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def not_writable(path: Path, error: Exception) -> VideoError:
    """The error for an output that the system refuses to take."""
    reason = getattr(error, "strerror", None) or str(error)
    return VideoError(f"'{path}' cannot be written ({reason}); choose a place that can be written and has room.")
