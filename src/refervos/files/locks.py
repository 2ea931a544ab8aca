"""One run at a time in a folder: two would overwrite each other's results."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from refervos.errors import RefervosError

LOCK = ".lock"
"""The file in a folder by which a ``FolderLock`` holds it."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""What file systems say that have no locks."""


class FolderLock:
    """Held from its making until ``release`` or the end of the process, however that comes.

    Processes forked meanwhile do not hold it.

    Args:
        folder: An existing folder.
        doing: What is done in it, such as "training", for the error.
        error: The kind of error to raise.

    Raises:
        RefervosError: Of that kind, when another process, or another lock in this one, holds it.
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path, doing: str, error: type[RefervosError]) -> None:
        from filelock import FileLock, Timeout

        # Whatever thread made it may release it. What stands in for locks where there are none would outlive a kill.
        self._lock = FileLock(folder / LOCK, blocking=False, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout as held:
            raise error(f"another process is {doing} in {folder}; wait for it or stop it.") from held
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:  # else nobody watches
                raise

    def release(self) -> None:
        """Let others in; safe to call twice."""
        self._lock.release()


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
