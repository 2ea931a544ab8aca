"""Locks on folders: two runs in one folder would overwrite each other's results."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from refervos.errors import RefervosError

LOCK = ".lock"
"""Name of the lock file of a ``FolderLock``."""

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
"""Errors raised by file systems without locks."""


class FolderLock:
    """Lock on a folder, held until ``release`` or the end of the process, even if it is killed.

    Child processes forked in between do not hold it.

    Args:
        folder: An existing folder.
        activity: Activity named in the error, such as "training".
        error: Type of error to raise.

    Raises:
        RefervosError: Of that type, when another process, or another lock in this process, holds the folder.
        OSError: The folder is not writable.
    """

    def __init__(self, folder: Path, activity: str, error: type[RefervosError]) -> None:
        from filelock import FileLock, Timeout

        # Any thread may release it. The soft fallback for file systems without locks would survive a kill.
        self._lock = FileLock(folder / LOCK, blocking=False, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire()
        except Timeout as held:
            raise error(f"another process is {activity} in {folder}; wait for it or stop it.") from held
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:  # without locks, nothing is checked
                raise

    def release(self) -> None:
        """Release the folder; safe to call twice."""
        self._lock.release()


class FolderClaim:
    """Lock on a folder like ``FolderLock``, but without a lock file; not available on Windows.

    Args:
        folder: An existing folder.
        activity: Activity named in the error, such as "writing results".
        error: Type of error to raise.

    Raises:
        RefervosError: Of that type, when another process holds the folder.
    """

    def __init__(self, folder: Path, activity: str, error: type[RefervosError]) -> None:
        self._descriptor: int | None = None
        try:
            import fcntl

            self._descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            self.release()
            raise error(
                f"another process is {activity} in '{folder}'; wait for it, or choose another folder."
            ) from held
        except (ImportError, OSError):
            pass  # Windows, or a file system without locks: nothing is checked

    def release(self) -> None:
        """Release the folder; safe to call twice."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
