"""One run at a time in a folder: two would overwrite each other's results."""

from __future__ import annotations

import os
from pathlib import Path

from refervos.errors import RefervosError


class FolderLock:
    """Held from its making until ``release`` or the end of the process, however that comes.

    Args:
        folder: An existing folder.
        doing: What is done in it, such as "training", for the error.
        error: The kind of error to raise.

    Raises:
        RefervosError: Of that kind, when another process holds it.
    """

    def __init__(self, folder: Path, doing: str, error: type[RefervosError]) -> None:
        self._file = (folder / ".lock").open("a")
        try:
            import fcntl

            # Not flock: forked workers would share the lock and keep it for a while when this process is killed.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as held:
            self._file.close()
            raise error(f"another process is {doing} in {folder}; wait for it or stop it.") from held
        except (ImportError, OSError):
            pass  # Windows, or a file system without locks: then nobody watches

    def release(self) -> None:
        """Let others in."""
        self._file.close()


class FolderClaim:
    """Held from its making until ``release`` or the end of the process; unlike a ``FolderLock`` it leaves no file.

    Args:
        folder: An existing folder.
        doing: What is done in it, such as "writing results", for the error.
        error: The kind of error to raise.

    Raises:
        RefervosError: Of that kind, when another process holds it.
    """

    def __init__(self, folder: Path, doing: str, error: type[RefervosError]) -> None:
        self._descriptor: int | None = None
        try:
            import fcntl

            self._descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            self.release()
            raise error(f"another process is {doing} in '{folder}'; wait for it, or choose another folder.") from held
        except (ImportError, OSError):
            pass  # Windows, or a file system without locks: then nobody watches

    def release(self) -> None:
        """Let others in; safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
