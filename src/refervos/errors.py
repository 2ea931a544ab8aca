"""The errors a user can meet: each says in one sentence which input is wrong, why, and what would be right."""

from __future__ import annotations


class RefervosError(Exception):
    """Base of every error that is the input's fault, not the program's. The command line exits with code 2 on it."""


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
