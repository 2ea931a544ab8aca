"""One run at a time in a folder: two would overwrite each other's checkpoints."""

from __future__ import annotations

from pathlib import Path

from refervos.errors import TrainingError


class FolderLock:
    """Held from its making until ``release`` or the end of the process, however that comes.

    Args:
        folder: An existing folder.

    Raises:
        TrainingError: When another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / ".lock").open("a")
        try:
            import fcntl

            # Not flock: forked workers would share the lock and keep it for a while when this process is killed.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            self._file.close()
            raise TrainingError(f"another process is training in {folder}; wait for it or stop it.") from error
        except (ImportError, OSError):
            pass  # Windows, or a file system without locks: then nobody watches

    def release(self) -> None:
        """Let others in."""
        self._file.close()
