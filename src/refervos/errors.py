"""Errors caused by the input: each message says in one sentence which input is wrong, why, and what would be right."""

from __future__ import annotations

import errno
import importlib.util

from refervos.safe_text import printable

_LONGEST = 2000
"""Maximum number of characters of one line of an error message."""

_LISTED = "\n  "
"""Separator between a sentence and the list of files that may follow it."""


class RefervosError(Exception):
    """Base class of errors caused by the input, not by a bug. The command line exits with code 2.

    Messages can quote untrusted names and texts. Converted to a string, a message has no control characters, which a
    terminal would obey, and no overlong line.
    """

    def __str__(self) -> str:
        """Return the message, safe to print."""
        return _LISTED.join(map(_printable_line, super().__str__().split(_LISTED)))


def _printable_line(text: str) -> str:
    """Shorten and escape one line."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} ... {text[-(_LONGEST // 2) :]}"
    return printable(text).replace("\n", "\\n")


class VideoError(RefervosError):
    """A video, image, folder or camera cannot be read, or an output cannot be written."""


class OutputError(VideoError):
    """A file or folder cannot be written. Derived from ``VideoError`` for compatibility."""


class EndOfVideoError(VideoError):
    """A video ends before the first frame to read."""


class FrameError(RefervosError):
    """A frame passed to a session has the wrong type, shape or size."""


class PromptError(RefervosError):
    """An expression, click, box or mask is invalid or not supported by the model."""


class CheckpointError(RefervosError):
    """A checkpoint is unreadable, incomplete, or does not fit the model."""


class ConfigError(RefervosError):
    """A configuration value is out of range or contradicts another."""


class MissingDependencyError(RefervosError):
    """An optional package is missing; the message says how to install it."""


class TrainingError(RefervosError):
    """Training cannot start, continue or be resumed as requested."""


class DataError(RefervosError):
    """A data set does not have its published layout, or one of its files is missing or damaged."""


class EvaluationError(RefervosError):
    """Results are unreadable, or the results of two runs cannot be compared."""


class StateError(RefervosError):
    """State cannot be saved, or a state file is unreadable, damaged, or does not fit."""


class UnknownWordsWarning(UserWarning):
    """An expression has words that a model with a closed vocabulary was never trained on."""


def require_installed(purpose: str, extra: str, *packages: str) -> None:
    """Check that optional packages are installed, before the work that needs them begins.

    Args:
        purpose: What needs them, such as ``training``.
        extra: Extra that installs them, such as ``train`` for ``refervos[train]``.
        *packages: Import names, which are also the names to install.

    Raises:
        MissingDependencyError: Names the missing packages.
    """
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        raise MissingDependencyError(f"{purpose} needs {' and '.join(missing)}: pip install 'refervos[{extra}]'.")


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports a lack of memory: from Python, the system, or torch on any device."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)
