"""The errors a user can meet: each says in one sentence which input is wrong, why, and what would be right."""

from __future__ import annotations

import errno

_LONGEST = 2000
"""Letters of an error's sentence that are shown."""


class RefervosError(Exception):
    """Base of every error that is the input's fault, not the program's. The command line exits with code 2 on it.

    What it says can quote names and texts that someone else wrote. As text it is one line without control characters,
    which a terminal would obey, and not much longer than a screen.
    """

    def __str__(self) -> str:
        """What is wrong, safe to print."""
        return readable(super().__str__(), _LONGEST)


def readable(text: str, longest: int) -> str:
    """Spell out what a terminal would obey or could not show, and cut what is too long.

    Args:
        text: Any text, such as the name of a file.
        longest: Letters that are kept, half of them from the end.

    Returns:
        One line of printable letters; control characters, lone surrogates and the like as Python's ``ascii`` has them.
    """
    if len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-(longest // 2) :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class VideoError(RefervosError):
    """A video, image, folder or camera cannot be read, or an output cannot be written."""


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short: Python's, the system's, or torch's on any device."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    words = ("out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(each in str(error) for each in words)
