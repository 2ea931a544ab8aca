"""Atomic writing of files and folders: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

from refervos.errors import OutputError, RefervosError
from refervos.files.locks import LOCK, FolderLock

# Names of unfinished files and folders: hidden, and with a suffix that no result has.
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_PART_FOLDER = re.compile(r"\..+\.part")


class PartialFile:
    """File written under a temporary name beside its final one until it is complete.

    While it is held here, other runs do not mistake it for a leftover of a killed run.

    Args:
        path: The final name.

    Attributes:
        temporary: Path to write to; an empty file exists there.

    Raises:
        OSError: The file cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        while True:
            self.temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            self._held: int | None = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            # Between the two calls another run may have removed it as a leftover.
            if _lock(self._held, shared=True) and os.fstat(self._held).st_nlink:
                return
            self._release()

    def put_in_place(self, overwrite: bool) -> None:
        """Rename the finished file to its final name.

        Args:
            overwrite: Whether to replace an existing file of that name.

        Raises:
            OutputError: Renaming failed; the finished file is kept under another name, given in the message.
        """
        try:
            self.rename(overwrite)
        except OSError as error:
            # Neither hidden nor named like a leftover.
            kept = self.temporary.with_name(self.temporary.name.lstrip("."))
            with contextlib.suppress(OSError):
                self.temporary.rename(kept)
            raise OutputError(
                f"'{self._path}' cannot be put in place ({error.strerror or 'it exists by now'}); "
                f"the output is in '{kept if kept.exists() else self.temporary}'; rename it yourself."
            ) from error
        finally:
            self._release()

    def rename(self, overwrite: bool) -> None:
        """Rename the file to its final name.

        Args:
            overwrite: Whether to replace an existing file of that name.

        Raises:
            OSError: Renaming failed.
        """
        if os.name == "nt":
            self._release()  # Windows cannot rename open files
        if overwrite:
            self.temporary.replace(self._path)
            return
        try:
            os.link(self.temporary, self._path)  # unlike a rename, fails if the name exists
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
        """Remove the temporary file if it still exists."""
        self._release()
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    def _release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held)


def _lock(descriptor: int, *, shared: bool) -> bool:
    """Lock an open file without waiting; True also on systems without locks."""
    try:
        import fcntl

        # Not lockf: its locks end when this process closes any descriptor of the file.
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return True
    return True


class UnbufferedFile(io.FileIO):
    """File whose writes are complete or raise; on a full disk the system silently writes a part."""

    def write(self, data: Any) -> int:
        """Write all of the data.

        Args:
            data: A bytes-like object.

        Returns:
            Number of bytes written.

        Raises:
            OSError: A part, or nothing, was written.
        """
        left = memoryview(data)
        while left:
            left = left[super().write(left) :]
        return len(data)


class PartialFolder:
    """Folder filled under a temporary name beside its final one until it is complete.

    While it is held, no other process can write the same folder. Leftovers of a killed process are removed first.
    As a context manager it is discarded at the end unless it was put in place.

    Args:
        folder: The final name; if it is a link to a folder, that folder is written.
        keep: Whether to keep files of an existing folder that are not written again.
        obsolete: Patterns of files that are replaced together: a new file that matches one of them removes all old
            ones that match.
        marker: Name of a file without which the folder is considered incomplete. If a file system cannot exchange two
            folders and ``keep`` is set, files are replaced one by one while the marker is absent.
        error: Type of error to raise.

    Attributes:
        temporary: Empty folder to write into.

    Raises:
        RefervosError: Of that type, when another process is writing the folder, or it is not writable.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: bool = False,
        obsolete: Sequence[str] = (),
        marker: str = "",
        error: type[RefervosError] = OutputError,
    ) -> None:
        self._folder, self._keep, self._marker, self._error = folder, keep, marker, error
        self._obsolete = tuple(obsolete)
        self._lock: FolderLock | None = None
        try:
            self._target = folder.resolve()  # follows links
            self._target.parent.mkdir(parents=True, exist_ok=True)
            # A fixed name, so that the next run finds the leftovers of a killed one.
            parent = _staging_parent(self._target) if keep else self._target.parent
            self._around = parent / f".{self._target.name}.part"
            self._lock = _lock_around(self._around, f"writing {folder}", error)
            _remove_contents(self._around)
            self.temporary = self._around / "new"
            self.temporary.mkdir()
        except OSError as problem:
            if self._lock is not None:
                self._lock.release()
            raise write_error(folder, problem, error) from problem

    def add(self, name: str, content: bytes) -> None:
        """Write one file.

        Args:
            name: Name of the file in the folder.
            content: Its content.

        Raises:
            RefervosError: The file cannot be written.
        """
        try:
            (self.temporary / name).write_bytes(content)
        except OSError as problem:
            raise write_error(self._folder / name, problem, self._error) from problem

    def put_in_place(self) -> None:
        """Rename the finished folder to its final name. If killed at any moment, the old or the new folder exists.

        On file systems that cannot exchange two folders, neither may exist; with ``keep``, see ``marker``.

        Raises:
            RefervosError: Renaming failed; the folder is discarded.
        """
        try:
            self._replace()
        except OSError as problem:
            raise write_error(self._folder, problem, self._error) from problem
        finally:
            self.discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def discard(self) -> None:
        """Remove the temporary folder; safe to call twice."""
        lock, self._lock = self._lock, None
        if lock is not None:
            _remove_around(self._around, lock)

    def _replace(self) -> None:
        new, old = self.temporary, self._target
        if not old.exists():
            os.replace(new, old)
            return
        obsolete = self._matching(old) if self._matching(new) else []
        if self._keep:
            for other in old.iterdir():
                if not (new / other.name).exists() and other != self._around and other not in obsolete:
                    _link(other, new / other.name)
        if _exchange(new, old):
            return
        if not self._keep:
            shutil.rmtree(old)
            os.replace(new, old)
            return
        if self._marker:
            (old / self._marker).unlink(missing_ok=True)
        for other in obsolete:
            other.unlink()
        for file in sorted(new.iterdir(), key=lambda file: file.name == self._marker):  # the marker last
            if not (old / file.name).is_dir():
                os.replace(file, old / file.name)

    def _matching(self, folder: Path) -> list[Path]:
        """List the files of a folder that are replaced together."""
        files = [file for file in folder.iterdir() if not file.is_dir()]
        return [file for file in files if any(fnmatch(file.name, pattern) for pattern in self._obsolete)]


def _staging_parent(folder: Path) -> Path:
    """Return the parent for a replacement of a folder: the folder's own parent, or else the folder itself."""
    beside = os.access(folder.parent, os.W_OK) and not folder.is_mount()
    return folder.parent if beside or not folder.is_dir() else folder


def _lock_around(around: Path, activity: str, error: type[RefervosError]) -> FolderLock:
    """Create the folder around an unfinished one and lock it."""
    tries = 100
    while True:
        try:
            around.mkdir(exist_ok=True)
            return FolderLock(around, activity, error)
        except (FileNotFoundError, FileExistsError):  # its previous owner may be removing it right now
            tries -= 1
            if not tries:
                raise


def _remove_contents(around: Path) -> None:
    """Empty the folder around an unfinished one, except for the lock."""
    for entry in around.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _remove_around(around: Path, lock: FolderLock) -> None:
    """Remove the folder around an unfinished one, and release it."""
    try:
        _remove_contents(around)
        if os.name == "nt":
            lock.release()  # Windows cannot remove open files
        # Last, because from here on another process can start.
        with contextlib.suppress(OSError):
            (around / LOCK).unlink()
            around.rmdir()
    finally:
        lock.release()


def _link(source: Path, target: Path) -> None:
    """Hard-link a file, or all files of a folder; copy where links are not supported."""
    if source.is_dir() and not source.is_symlink():
        target.mkdir()
        for inside in source.iterdir():
            _link(inside, target / inside.name)
        return
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders atomically; False if the system cannot."""
    if sys.platform != "linux" or other in one.parents:
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def remove_leftovers(folder: Path) -> None:
    """Remove leftovers of killed runs: unfinished files and folders that no process holds.

    Args:
        folder: Folder to clean, not recursively.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    _remove_leftover_folder(Path(entry.path))
                elif _PART.fullmatch(entry.name):
                    _remove_leftover_file(entry.path)


def _remove_leftover_file(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        left = _lock(descriptor, shared=False)
        if left and os.name != "nt":
            os.unlink(path)
    finally:
        os.close(descriptor)
    if left and os.name == "nt":
        os.unlink(path)  # refused if another process has it open


def _remove_leftover_folder(around: Path) -> None:
    if not _PART_FOLDER.fullmatch(around.name):
        return
    if not (around / LOCK).is_file():
        around.rmdir()  # fails if it is not empty, and then it is not ours
        return
    with contextlib.suppress(OutputError):  # held by a live run
        _remove_around(around, FolderLock(around, "writing", OutputError))


def prepare_folder(folder: Path) -> None:
    """Create a folder and its parents, check that it is writable, and remove leftovers of killed runs.

    Args:
        folder: The folder.

    Raises:
        OutputError: The folder cannot be created or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        PartialFile(folder / "probe").discard()
    except (OSError, ValueError) as error:
        raise write_error(folder, error) from error
    remove_leftovers(folder)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse to overwrite an existing file unless that is allowed.

    Args:
        path: File to write.
        overwrite: Whether it may be replaced.

    Raises:
        OutputError: It exists and may not be replaced, or is a folder.
    """
    if path.is_dir():
        raise OutputError(f"'{path}' is a folder; give the name of a file to write.")
    if path.exists() and not overwrite:
        raise OutputError(f"'{path}' exists already; choose another name or --overwrite (overwrite=True).")


def refuse_nonempty(folder: Path, overwrite: bool, error: type[RefervosError] = OutputError) -> None:
    """Refuse to write to a non-empty folder unless that is allowed.

    Args:
        folder: Folder to write.
        overwrite: Whether its files may be replaced.
        error: Type of error to raise.

    Raises:
        RefervosError: Of that type, when it has files that may not be replaced, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise error(f"{folder} is a file; give a folder to write to.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise error(f"{folder} is not empty; give a new folder, or allow overwriting (--overwrite).")


def write_atomically(
    path: Path, data: bytes, *, overwrite: bool = True, error: type[RefervosError] = OutputError
) -> None:
    """Write a file atomically: after an interruption it exists completely or not at all.

    Args:
        path: The file.
        data: Its content.
        overwrite: Whether to replace an existing file.
        error: Type of error to raise.

    Raises:
        RefervosError: Of that type, when the file cannot be written.
    """
    part = None
    try:
        part = PartialFile(path)
        part.temporary.write_bytes(data)
        part.rename(overwrite)
    except OSError as problem:
        raise write_error(path, problem, error) from problem
    finally:
        if part is not None:
            part.discard()


@contextlib.contextmanager
def atomic_folder(
    folder: Path,
    *,
    overwrite: bool = True,
    keep: bool = False,
    obsolete: Sequence[str] = (),
    marker: str = "",
    error: type[RefervosError] = OutputError,
) -> Iterator[Path]:
    """Write a folder atomically: after an interruption it is complete or unchanged.

    Args:
        folder: The folder, created with its parents.
        overwrite: Whether a non-empty folder may be written.
        keep: See ``PartialFolder``.
        obsolete: See ``PartialFolder``.
        marker: See ``PartialFolder``.
        error: Type of error to raise.

    Yields:
        An empty folder to fill, which is then renamed.

    Raises:
        RefervosError: Of that type, when the folder is not empty and may not be written, another process is writing it,
            or it is not writable.
    """
    refuse_nonempty(folder, overwrite, error)
    with PartialFolder(folder, keep=keep, obsolete=obsolete, marker=marker, error=error) as part:
        try:
            yield part.temporary
        except OSError as problem:
            raise write_error(folder, problem, error) from problem
        part.put_in_place()


def write_error(path: Path, problem: Exception, error: type[RefervosError] = OutputError) -> RefervosError:
    """Build the error for an output that cannot be written.

    Args:
        path: The file or folder.
        problem: Exception of the system, or of a library that writes files.
        error: Type of the error.

    Returns:
        The error to raise.
    """
    reason = getattr(problem, "strerror", None) or " ".join(str(problem).split())[:160]
    return error(f"'{path}' cannot be written ({reason}); choose a writable place with enough free space.")
