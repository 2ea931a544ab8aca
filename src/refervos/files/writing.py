"""Puts files in place whole: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from pathlib import Path

from refervos.errors import VideoError

# The name that Part gives: hidden, and never ending as what is looked for among results.
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")


class Part:
    """A file that is written under a temporary name beside its final one, until it is complete.

    As long as it is held here, the next run does not take it for what a killed one left behind.

    Args:
        path: The final name.

    Attributes:
        temporary: The name to write to; an empty file is there.

    Raises:
        OSError: No file can be made there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        while True:
            self.temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            self._held: int | None = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            # Between the two lines it may have been taken for a leftover and removed.
            if _lock(self._held, shared=True) and os.fstat(self._held).st_nlink:
                return
            self._release()

    def put_in_place(self, overwrite: bool) -> None:
        """Gives the finished file its final name.

        Args:
            overwrite: Whether a file that has come to be there meanwhile may be replaced.

        Raises:
            VideoError: It cannot; the finished file then stays under another name, which the sentence tells.
        """
        try:
            self.rename(overwrite)
        except OSError as error:
            # No longer hidden, and no longer taken for a leftover.
            kept = self.temporary.with_name(self.temporary.name.lstrip("."))
            with contextlib.suppress(OSError):
                self.temporary.rename(kept)
            raise VideoError(
                f"'{self._path}' cannot be put in place ({error.strerror or 'it has come to exist meanwhile'}); "
                f"what was written is in '{kept if kept.exists() else self.temporary}', to be renamed by hand."
            ) from error
        finally:
            self._release()

    def rename(self, overwrite: bool) -> None:
        """Gives the file its final name.

        Args:
            overwrite: Whether a file that has come to be there meanwhile may be replaced.

        Raises:
            OSError: It cannot.
        """
        if os.name == "nt":
            self._release()  # there, open files cannot be renamed
        if overwrite:
            self.temporary.replace(self._path)
            return
        try:
            os.link(self.temporary, self._path)  # unlike a rename, fails where the name has been taken
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            if self._path.exists():
                raise FileExistsError(self._path) from None
            self.temporary.replace(self._path)
            return
        with contextlib.suppress(OSError):
            self.temporary.unlink()

    def discard(self) -> None:
        """Removes the file if it is there and can be removed."""
        self._release()
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held)


def _lock(descriptor: int, *, shared: bool) -> bool:
    """Locks an open file unless another has it; True also where there are no locks."""
    try:
        import fcntl

        # Not lockf, whose locks end when this process closes any descriptor of the file.
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


def remove_leftovers(folder: Path) -> None:
    """Removes what killed runs left in a folder: files that were never finished and that nobody holds.

    Args:
        folder: The folder, not deeper.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if not _PART.fullmatch(entry.name):
                continue
            with contextlib.suppress(OSError):
                descriptor = os.open(entry.path, os.O_RDWR)
                try:
                    left = _lock(descriptor, shared=False)
                    if left and os.name != "nt":
                        os.unlink(entry.path)
                finally:
                    os.close(descriptor)
                if left and os.name == "nt":
                    os.unlink(entry.path)  # refused where another has it open


def prepare_folder(folder: Path) -> None:
    """Makes a folder and its parents and makes sure that files can be written into it.

    What killed runs left in it is removed.

    Args:
        folder: The folder.

    Raises:
        VideoError: It cannot be made or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Part(folder / "probe").discard()
    except (OSError, ValueError) as error:
        raise not_writable(folder, error) from error
    remove_leftovers(folder)


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
        raise VideoError(f"'{path}' exists already; choose another name or --overwrite (overwrite=True).")


def write_whole(path: Path, data: bytes, *, overwrite: bool = True) -> None:
    """Writes a file in one step: it is there complete or, after an interruption, not at all.

    Args:
        path: The file.
        data: Its content.
        overwrite: Whether an old one of that name is replaced.

    Raises:
        VideoError: It cannot be written.
    """
    part = None
    try:
        part = Part(path)
        part.temporary.write_bytes(data)
        part.rename(overwrite)
    except OSError as error:
        raise not_writable(path, error) from error
    finally:
        if part is not None:
            part.discard()


def not_writable(path: Path, error: Exception) -> VideoError:
    """The error for an output that the system refuses to take."""
    reason = getattr(error, "strerror", None) or str(error)
    return VideoError(f"'{path}' cannot be written ({reason}); choose a place that can be written and has room.")
