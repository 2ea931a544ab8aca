"""Stores: folders on a disk or an object store, with exclusive creation as the only guarantee that work rests on."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any, Protocol

from refervos.errors import MissingDependencyError, OutputError
from refervos.files.writing import PartialFile, remove_leftovers, write_error


class Store(Protocol):
    """Folder of files, each complete or absent. Paths are relative, with ``/``.

    Attributes:
        address: Path or address of the folder, for ``open_store``.
    """

    address: str

    def names(self, folder: str) -> list[str]:
        """List the names of the files in a sub-folder, sorted; empty if it does not exist."""
        ...

    def read(self, path: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: When it does not exist.
        """
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a file durably unless it exists; return whether it was written."""
        ...

    def replace(self, path: str, data: bytes) -> None:
        """Write a file, or replace it."""
        ...

    def append(self, path: str, data: bytes) -> None:
        """Append to a file that only this process writes."""
        ...

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""
        ...


def open_store(address: str | Path) -> Store:
    """Open a folder of results.

    Args:
        address: Path of a folder, or an address that fsspec understands, such as ``s3://bucket/masks``.

    Returns:
        The store.

    Raises:
        OutputError: When the folder cannot be used.
        MissingDependencyError: When the package for this kind of address is not installed.
    """
    text = str(address)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    if not is_address(text):
        return LocalStore(Path(text).expanduser().absolute())
    file_system, root = open_file_system(text)
    return ObjectStore(text.rstrip("/"), file_system, root)


def is_address(text: str) -> bool:
    """Return whether a text is an address, not a path of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None and not text.startswith("file://")


def open_file_system(address: str) -> tuple[Any, str]:
    """Return fsspec's file system of an address, and the path in it.

    Args:
        address: An address, whose credentials come from the environment.

    Raises:
        MissingDependencyError: When the package for this kind of address is not installed.
        OutputError: When fsspec does not know this kind of address.
    """
    import fsspec

    scheme = address.partition("://")[0]
    try:
        file_system, root = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise MissingDependencyError(f"'{scheme}://' addresses: {str(error).rstrip('.')}.") from error
    except ValueError as error:
        raise OutputError(f"'{scheme}://' is no kind of address that fsspec knows ({error}).") from error
    return file_system, root


def reason_of(error: Exception) -> str:
    """Return the reason of an error of a file system in one short line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


class LocalStore:
    """Folder of this machine or of a shared file system."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder)
        self._folder = folder

    def names(self, folder: str) -> list[str]:
        """See ``Store``."""
        try:
            return sorted(name for name in os.listdir(self._folder / folder) if not name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, path: str) -> bytes:
        """See ``Store``."""
        return (self._folder / path).read_bytes()

    def create(self, path: str, data: bytes) -> bool:
        """See ``Store``; the file and its name survive a power failure."""
        try:
            self._write(path, data, overwrite=False)
        except FileExistsError:
            return False
        return True

    def replace(self, path: str, data: bytes) -> None:
        """See ``Store``."""
        self._write(path, data, overwrite=True)

    def _write(self, path: str, data: bytes, *, overwrite: bool) -> None:
        target = self._folder / path
        part = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            part = PartialFile(target)
            with part.temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.rename(overwrite)
            _sync_folder(target.parent)
        except FileExistsError:
            raise
        except OSError as error:
            raise write_error(target, error) from error
        finally:
            if part is not None:
                part.discard()

    def append(self, path: str, data: bytes) -> None:
        """See ``Store``."""
        target = self._folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("ab") as file:
                file.write(data)
        except OSError as error:
            raise write_error(target, error) from error

    def remove(self, path: str) -> None:
        """See ``Store``."""
        with contextlib.suppress(OSError):
            (self._folder / path).unlink(missing_ok=True)

    def remove_leftovers(self, folder: str) -> None:
        """Remove unfinished files of killed processes from a sub-folder."""
        remove_leftovers(self._folder / folder)


def _sync_folder(folder: Path) -> None:
    """Make new names in a folder durable, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class ObjectStore:
    """Folder of an object store, or of any other file system of fsspec, where a single upload is the commit."""

    def __init__(self, address: str, file_system: Any, root: str) -> None:
        self.address = address
        self._files = file_system
        self._root = root.rstrip("/")
        self._appended: dict[str, bytes] = {}

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def names(self, folder: str) -> list[str]:
        """See ``Store``."""
        self._files.invalidate_cache()
        try:
            found = self._files.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._error(folder, "listed", error) from error
        return sorted(name for name in (path.rstrip("/").rpartition("/")[2] for path in found) if name)

    def read(self, path: str) -> bytes:
        """See ``Store``."""
        try:
            return self._files.cat_file(self._path(path))
        except FileNotFoundError:
            raise
        except Exception as error:
            raise self._error(path, "read", error) from error

    def create(self, path: str, data: bytes) -> bool:
        """See ``Store``.

        Uploads on the condition that the object does not exist (``If-None-Match: *``), if the file system can. If not,
        the last of two writers at the same moment wins; both wrote the same bytes.
        """
        target = self._path(path)
        try:
            try:
                self._files.pipe_file(target, data, mode="create")
            except (TypeError, NotImplementedError):  # a file system without conditional uploads
                if self._files.exists(target):
                    return False
                self._files.pipe_file(target, data)
        except FileExistsError:
            return False
        except Exception as error:
            self._files.invalidate_cache()
            with contextlib.suppress(Exception):
                if self._files.exists(target):  # how some stores report the failed condition
                    return False
            raise self._error(path, "written", error) from error
        return True

    def replace(self, path: str, data: bytes) -> None:
        """See ``Store``."""
        try:
            self._files.pipe_file(self._path(path), data)
        except Exception as error:
            raise self._error(path, "written", error) from error

    def append(self, path: str, data: bytes) -> None:
        """See ``Store``; objects cannot grow, so the whole file is uploaded again."""
        self._appended[path] = self._appended.get(path, b"") + data
        self.replace(path, self._appended[path])

    def remove(self, path: str) -> None:
        """See ``Store``."""
        with contextlib.suppress(Exception):
            self._files.rm_file(self._path(path))

    def _error(self, path: str, done: str, error: Exception) -> OutputError:
        """Return the error of an operation; each file system has classes of its own."""
        where = f"{self.address}/{path}".rstrip("/")
        return OutputError(f"'{where}' cannot be {done} ({reason_of(error)}); check the address and the credentials.")
