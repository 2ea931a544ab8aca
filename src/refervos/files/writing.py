"""Puts files and folders in place whole: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from refervos.errors import OutputError, RefervosError
from refervos.files.locks import LOCK, FolderLock

# The names that PartialFile and PartialFolder give: hidden, and never ending as what is looked for among results.
_PART = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_PART_FOLDER = re.compile(r"\..+\.part")


class PartialFile:
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
            OutputError: It cannot; the finished file then stays under another name, which the sentence tells.
        """
        try:
            self.rename(overwrite)
        except OSError as error:
            # No longer hidden, and no longer taken for a leftover.
            kept = self.temporary.with_name(self.temporary.name.lstrip("."))
            with contextlib.suppress(OSError):
                self.temporary.rename(kept)
            raise OutputError(
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


class PartialFolder:
    """A folder that is filled under a temporary name beside its final one, until it is complete.

    As long as it is held here, no other process writes the same folder. What a killed one has left is removed first.
    As a context it is discarded at the end unless it was put in place.

    Args:
        folder: The final name; where it is a link to a folder, that folder is written.
        keep: Whether files of an old folder of that name stay unless they are written anew.
        marker: Name of a file without which the folder counts for nothing. Where a file system cannot exchange two
            folders, the files of an old one that stays are replaced one by one, while this one is absent.
        error: The kind of error to raise.

    Attributes:
        temporary: The folder to write into; it is empty.

    Raises:
        RefervosError: Of that kind, when another process is writing the folder, or it cannot be written.
    """

    def __init__(
        self, folder: Path, *, keep: bool = False, marker: str = "", error: type[RefervosError] = OutputError
    ) -> None:
        self._folder, self._keep, self._marker, self._error = folder, keep, marker, error
        self._lock: FolderLock | None = None
        try:
            self._target = folder.resolve()  # where a link leads
            self._target.parent.mkdir(parents=True, exist_ok=True)
            # Always of the same name, so that the next run finds what a killed one has left.
            place = _beside(self._target) if keep else self._target.parent
            self._around = place / f".{self._target.name}.part"
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
            name: Its name in the folder.
            content: What it holds.

        Raises:
            RefervosError: It cannot be written.
        """
        try:
            (self.temporary / name).write_bytes(content)
        except OSError as problem:
            raise write_error(self._folder / name, problem, self._error) from problem

    def put_in_place(self) -> None:
        """Give the finished folder its name. Killed at any moment, there is the old folder or the new one.

        Where the file system cannot exchange two folders, there may be none; see ``marker`` for one that stays.

        Raises:
            RefervosError: It cannot; the folder is discarded.
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
        """Remove what was not put in place; safe to call twice."""
        lock, self._lock = self._lock, None
        if lock is not None:
            _remove_around(self._around, lock)

    def _replace(self) -> None:
        new, old = self.temporary, self._target
        if not old.exists():
            os.replace(new, old)
            return
        if self._keep:
            for other in old.iterdir():
                if not (new / other.name).exists() and other != self._around:
                    _link(other, new / other.name)
        if _exchange(new, old):
            return
        if not self._keep:
            shutil.rmtree(old)
            os.replace(new, old)
            return
        if self._marker:
            (old / self._marker).unlink(missing_ok=True)
        for file in sorted(new.iterdir(), key=lambda file: file.name == self._marker):  # that one last
            if not (old / file.name).is_dir():
                os.replace(file, old / file.name)


def _beside(folder: Path) -> Path:
    """Where a folder can be prepared that shall take another one's place: beside it, or else in it."""
    beside = os.access(folder.parent, os.W_OK) and not folder.is_mount()
    return folder.parent if beside or not folder.is_dir() else folder


def _lock_around(around: Path, doing: str, error: type[RefervosError]) -> FolderLock:
    """Make the folder around an unfinished one and lock it."""
    tries = 100
    while True:
        try:
            around.mkdir(exist_ok=True)
            return FolderLock(around, doing, error)
        except (FileNotFoundError, FileExistsError):  # whoever had it last may be removing it at this very moment
            tries -= 1
            if not tries:
                raise


def _remove_contents(around: Path) -> None:
    """Remove all that is in the folder around an unfinished one, but not the lock."""
    for entry in around.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _remove_around(around: Path, lock: FolderLock) -> None:
    """Remove the folder around an unfinished one, and let others in."""
    try:
        _remove_contents(around)
        if os.name == "nt":
            lock.release()  # there, open files cannot be removed
        # Last, for from here on another process can begin.
        with contextlib.suppress(OSError):
            (around / LOCK).unlink()
            around.rmdir()
    finally:
        lock.release()


def _link(source: Path, target: Path) -> None:
    """The same file or folder under another name, copied where it cannot be linked."""
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
    """Let two folders take each other's place in one step; False where the system cannot."""
    if sys.platform != "linux" or other in one.parents:
        return False
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
    return rename is not None and rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def remove_leftovers(folder: Path) -> None:
    """Removes what killed runs left in a folder: files and folders that were never finished and that nobody holds.

    Args:
        folder: The folder, not deeper.
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
        os.unlink(path)  # refused where another has it open


def _remove_leftover_folder(around: Path) -> None:
    if not _PART_FOLDER.fullmatch(around.name):
        return
    if not (around / LOCK).is_file():
        around.rmdir()  # which fails where it holds something, and then it is someone else's
        return
    with contextlib.suppress(OutputError):  # held by a run that goes on
        _remove_around(around, FolderLock(around, "writing", OutputError))


def prepare_folder(folder: Path) -> None:
    """Makes a folder and its parents and makes sure that files can be written into it.

    What killed runs left in it is removed.

    Args:
        folder: The folder.

    Raises:
        OutputError: It cannot be made or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        PartialFile(folder / "probe").discard()
    except (OSError, ValueError) as error:
        raise write_error(folder, error) from error
    remove_leftovers(folder)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Guards a file against being overwritten unasked.

    Args:
        path: The file to be written.
        overwrite: Whether it may be replaced.

    Raises:
        OutputError: It exists and may not be replaced, or is a folder.
    """
    if path.is_dir():
        raise OutputError(f"'{path}' is a folder; give the name of a file to write.")
    if path.exists() and not overwrite:
        raise OutputError(f"'{path}' exists already; choose another name or --overwrite (overwrite=True).")


def refuse_nonempty(folder: Path, overwrite: bool, error: type[RefervosError] = OutputError) -> None:
    """Guards a folder that has files against being written unasked.

    Args:
        folder: The folder to be written.
        overwrite: Whether its files may be replaced.
        error: The kind of error to raise.

    Raises:
        RefervosError: Of that kind, when it has files that may not be replaced, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise error(f"{folder} is a file; give a folder to write to.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise error(f"{folder} is not empty; give a new folder, or allow overwriting (--overwrite).")


def write_atomically(
    path: Path, data: bytes, *, overwrite: bool = True, error: type[RefervosError] = OutputError
) -> None:
    """Writes a file in one step: it is there complete or, after an interruption, not at all.

    Args:
        path: The file.
        data: Its content.
        overwrite: Whether an old one of that name is replaced.
        error: The kind of error to raise.

    Raises:
        RefervosError: Of that kind, when it cannot be written.
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
    marker: str = "",
    error: type[RefervosError] = OutputError,
) -> Iterator[Path]:
    """Writes a folder in one step: it is there complete or, after an interruption, as it was.

    Args:
        folder: The folder, made with its parents.
        overwrite: Whether a folder that has files may be written.
        keep: See ``PartialFolder``, like the others.
        marker: See ``PartialFolder``.
        error: The kind of error to raise.

    Yields:
        An empty folder to fill, which then takes that name.

    Raises:
        RefervosError: Of that kind, when the folder has files and may not be written, another process is writing it, or
            it cannot be written.
    """
    refuse_nonempty(folder, overwrite, error)
    with PartialFolder(folder, keep=keep, marker=marker, error=error) as part:
        try:
            yield part.temporary
        except OSError as problem:
            raise write_error(folder, problem, error) from problem
        part.put_in_place()


def write_error(path: Path, problem: Exception, error: type[RefervosError] = OutputError) -> RefervosError:
    """The error for an output that the system refuses to take.

    Args:
        path: The file or folder.
        problem: What the system, or a library that writes files, says.
        error: The kind of error.
    """
    reason = getattr(problem, "strerror", None) or " ".join(str(problem).split())[:160]
    return error(f"'{path}' cannot be written ({reason}); choose a place that can be written and has room.")
