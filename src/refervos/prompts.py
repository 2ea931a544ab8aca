"""Prompts of tracks: an expression, clicks, a box or a mask."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refervos.errors import PromptError

MAX_POINTS = 256
"""Maximum number of clicks in a prompt. Each is a token that attends to the whole frame; beyond that, use a mask."""


@dataclass(frozen=True)
class Prompt:
    """Prompt of one track: an expression, or one or more of points, box and mask.

    Attributes:
        expression: A sentence that refers to one object (or several), such as "the dog that jumps over the fence".
        verbs: The words of the expression that describe motion, for models with a motion prompt; default found by
            spaCy.
        points: Clicks as x, y in pixels of the frame, (P, 2).
        labels: 1 for a click on the object, 0 for a click on the background, length P; default all 1.
        box: x0, y0, x1, y1 in pixels of the frame.
        mask: bool (H, W) at the frame's size; nonzero integers count as True.

    Raises:
        PromptError: When a field is malformed or the combination is not allowed.
    """

    expression: str | None = None
    verbs: Sequence[str] | None = None
    points: Sequence[Sequence[float]] | None = None
    labels: Sequence[int] | None = None
    box: Sequence[float] | None = None
    mask: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("expression", "points", "box", "mask") if getattr(self, name) is not None]
        if not given:
            raise PromptError("the prompt is empty; give an expression, points, a box or a mask.")
        if self.expression is not None:
            _check_text("expression", self.expression)
            if not self.expression.strip():
                raise PromptError("the expression is empty; give a sentence that refers to an object.")
        if self.verbs is not None:
            if isinstance(self.verbs, str) or not isinstance(self.verbs, Sequence):
                raise PromptError(f"verbs is {_short(self.verbs)}; give a list of words of the expression.")
            for verb in self.verbs:
                _check_text("verb", verb)
        if "mask" in given and len(given) > 1 and given != ["expression", "mask"]:
            raise PromptError("a mask prompt stands alone; give either a mask, or points and a box.")
        # Lists, arrays and tensors are accepted; tuples and NumPy masks are stored.
        if self.points is not None:
            self._keep(points=_points(self.points))
        if self.labels is not None:
            self._keep(labels=_labels(self.labels, self.points))
        if self.box is not None:
            self._keep(box=_box(self.box))
        if self.mask is not None:
            self._keep(mask=_mask(self.mask))

    def _keep(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)  # the class is frozen

    def check(self) -> None:
        """Validate a prompt that was created without its constructor, as when a saved state is restored.

        Raises:
            PromptError: As in the constructor.
        """
        replace(self)

    def equals(self, other: Prompt) -> bool:
        """Return whether another prompt has the same words, points, labels, box and mask."""
        return self._key() == other._key()

    def _key(self) -> tuple[Any, ...]:
        mask = None if self.mask is None else (self.mask.shape, np.packbits(self.mask).tobytes())
        verbs = None if self.verbs is None else tuple(self.verbs)
        return self.expression, verbs, self.points, self.labels, self.box, mask

    @property
    def geometric(self) -> bool:
        """True if there are points, a box or a mask."""
        return self.points is not None or self.box is not None or self.mask is not None

    @property
    def description(self) -> str:
        """Short label to show beside the mask: the expression as written, or the kinds of geometric prompts."""
        if self.expression is not None:
            return self.expression
        parts = [name for name in ("points", "box", "mask") if getattr(self, name) is not None]
        return " and ".join(parts)


def normalise(expression: str) -> str:
    """Lower-case an expression and collapse its white space, as the models were trained."""
    return " ".join(expression.lower().split())


def parse_click(text: str, option: str = "the click") -> tuple[float, float, int]:
    """Parse a click written as text.

    Args:
        text: ``x,y`` or ``x,y,1`` for a click on the object, ``x,y,0`` for a click on the background.
        option: Name of the input in error messages.

    Returns:
        x, y and the label, 1 or 0.

    Raises:
        PromptError: When the text has another form.
    """
    values = _parsed(text)
    if len(values) not in (2, 3):
        raise PromptError(f"{option} is {_short(text)}; give 2 or 3 numbers separated by commas: x,y or x,y,0.")
    label = values[2] if len(values) == 3 else 1.0
    if label not in (0.0, 1.0):
        raise PromptError(f"{option} is {_short(text)}; its third number is {label:g} and must be 0 or 1.")
    return values[0], values[1], int(label)


def parse_box(text: str, option: str = "the box") -> tuple[float, ...]:
    """Parse a box written as text.

    Args:
        text: ``x0,y0,x1,y1``.
        option: Name of the input in error messages.

    Returns:
        The four numbers.

    Raises:
        PromptError: When the text is not four numbers.
    """
    values = _parsed(text)
    if len(values) != 4:
        raise PromptError(f"{option} is {_short(text)}; give 4 numbers separated by commas: x0,y0,x1,y1.")
    return values


def _parsed(text: str) -> tuple[float, ...]:
    """Parse numbers separated by commas; an empty tuple if any is not a finite number."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()
    return values if np.isfinite(values).all() else ()


def _check_text(field: str, text: Any) -> None:
    if not isinstance(text, str):
        raise PromptError(f"the {field} is a {type(text).__name__}; it must be text.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"the {field} {_short(text)} is not valid Unicode (it has a lone surrogate).") from error


def _numbers(values: Any) -> npt.NDArray[np.float64] | None:
    """Convert to an array of finite numbers; None if that is impossible."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # tensors on another device are a TypeError
        return None
    return array if np.isfinite(array).all() else None


def _points(points: Any) -> tuple[tuple[float, float], ...]:
    array = _numbers(points)
    if array is None or array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise PromptError(f"points must be a non-empty list of x, y pairs of numbers; they are {_short(points)}.")
    if len(array) > MAX_POINTS:
        raise PromptError(f"there are {len(array)} points; at most {MAX_POINTS} are allowed. Give a mask instead.")
    return tuple((x, y) for x, y in array.tolist())


def _labels(labels: Any, points: Any) -> tuple[int, ...]:
    if points is None:
        raise PromptError("labels are given without points; give one label for each point.")
    array = _numbers(labels)
    if array is None or array.shape != (len(points),) or not np.isin(array, (0, 1)).all():
        shown = _short(list(labels) if isinstance(labels, Sequence | np.ndarray) else labels)
        raise PromptError(f"there are {len(points)} points and labels {shown}; give a 0 or 1 for each point.")
    return tuple(int(label) for label in array)


def _box(box: Any) -> tuple[float, ...]:
    array = _numbers(box)
    if array is None or array.ndim != 1:
        raise PromptError(f"the box is {_short(box)}; it must be x0, y0, x1, y1 in numbers.")
    if len(array) != 4:
        raise PromptError(f"the box has {len(array)} numbers; it must be x0, y0, x1, y1.")
    x0, y0, x1, y1 = array.tolist()
    if not (x0 < x1 and y0 < y1):
        raise PromptError(f"the box {(x0, y0, x1, y1)} is empty; x0 < x1 and y0 < y1 must hold.")
    return x0, y0, x1, y1


def _mask(mask: Any) -> npt.NDArray[np.bool_]:
    try:
        array = np.asarray(mask)
    except (TypeError, ValueError, RuntimeError):
        array = np.asarray(None)
    if array.dtype.kind not in "biuf":
        raise PromptError(f"the mask is {_short(mask)}; it must be boolean, of shape (height, width).")
    if array.ndim != 2:
        raise PromptError(f"the mask has shape {array.shape}; it must be (height, width).")
    if array.dtype.kind == "f" and not np.isin(array, (0, 1)).all():
        raise PromptError("the mask has fractional values; it must be boolean, so compare it with a threshold.")
    return array if array.dtype == np.bool_ else array != 0


def _short(value: Any) -> str:
    return reprlib.repr(value)
