"""The errors a user can meet: each says in one sentence which input is wrong, why, and what would be right."""

from __future__ import annotations

import errno
import importlib.util

from refervos.safe_text import printable

_LONGEST = 2000
"""Letters of an error's sentence that are shown."""

_LISTED = "\n  "
"""What separates a sentence from the list of files that may follow it."""


class RefervosError(Exception):
    """Base of every error that is the input's fault, not the program's. The command line exits with code 2 on it.

    What it says can quote names and texts that someone else wrote. As text it has no control characters, which a
    terminal would obey, and no line much longer than a screen, the sentence first and then maybe a list.
    """

    def __str__(self) -> str:
        """What is wrong, safe to print."""
        return _LISTED.join(map(_bearable, super().__str__().split(_LISTED)))


def _bearable(text: str) -> str:
    """One line of bearable length."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-(_LONGEST // 2) :]}"
    return printable(text).replace("\n", "\\n")


class VideoError(RefervosError):
    """A video, image, folder or camera cannot be read, or an output cannot be written."""


class OutputError(VideoError):
    """A file or folder cannot be written. A ``VideoError``, as which every output was reported at first."""


class EndOfVideoError(VideoError):
    """A video ends before the frame from which on it is to be read."""


class FrameError(RefervosError):
    """A frame handed to a session has the wrong type, shape or size."""


class PromptError(RefervosError):
    """An expression, click, box or mask is not one the model can be asked with."""


class CheckpointError(RefervosError):
    """A checkpoint is unreadable, incomplete, or does not fit the model."""


class ConfigError(RefervosError):
    """A configuration value is out of range or contradicts another."""


class MissingDependencyError(RefervosError):
    """An optional package is needed for what was asked; the sentence says how to install it."""


class TrainingError(RefervosError):
    """Training cannot start, go on or be resumed as asked."""


class DataError(RefervosError):
    """A data set is not in its published layout, or a file of it is missing or damaged."""


class EvaluationError(RefervosError):
    """Results are unreadable, or those of two runs cannot be compared."""


class StateError(RefervosError):
    """State cannot be saved, or a file of saved state is unreadable, damaged, or not what is needed."""


def require_installed(what: str, extra: str, *packages: str) -> None:
    """Check that optional packages are installed, before the work begins that needs them.

    Args:
        what: What needs them, such as ``training``.
        extra: What to install them by, such as ``train`` for ``refervos[train]``.
        *packages: As they are imported, which is also how they are installed.

    Raises:
        MissingDependencyError: Names those that are missing.
    """
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise MissingDependencyError(f"{what} needs {' and '.join(missing)}: pip install 'refervos[{extra}]'.")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short: Python's, the system's, or torch's on any device."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)
