"""What a track is asked for: a sentence, or clicks, a box or a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refervos.errors import PromptError


@dataclass(frozen=True)
class Prompt:
    """One question about a video. Give an expression, or one or more of points, box and mask.

    Attributes:
        expression: A sentence that refers to one object (or several), such as "the dog that jumps over the fence".
        verbs: The words of the expression that tell motion, for models with a motion prompt; found by spaCy when not
            given.
        points: Clicks as x, y in pixels of the frame, (P, 2).
        labels: 1 for a click on the object, 0 for one off it, length P; default all 1.
        box: x0, y0, x1, y1 in pixels of the frame.
        mask: bool (H, W) at the frame's size.
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
        if self.expression is not None and not self.expression.strip():
            raise PromptError("the expression is empty; give a sentence that refers to an object.")
        if "mask" in given and len(given) > 1 and given != ["expression", "mask"]:
            raise PromptError("a mask prompt stands alone; give either a mask, or points and a box.")
        if self.points is not None:
            self._check_points(self.points)
        elif self.labels is not None:
            raise PromptError("labels are given without points; give one label for each point.")
        if self.box is not None:
            if len(self.box) != 4:
                raise PromptError(f"the box has {len(self.box)} numbers; it must be x0, y0, x1, y1.")
            x0, y0, x1, y1 = self.box
            if not (x0 < x1 and y0 < y1):
                raise PromptError(f"the box {tuple(self.box)} is empty; x0 < x1 and y0 < y1 must hold.")
        if self.mask is not None and np.asarray(self.mask).ndim != 2:
            raise PromptError(f"the mask has shape {np.asarray(self.mask).shape}; it must be (height, width).")

    def _check_points(self, points: Sequence[Sequence[float]]) -> None:
        if not len(points) or any(len(point) != 2 for point in points):
            raise PromptError("points must be a non-empty list of x, y pairs.")
        labels = self.labels
        if labels is not None and (len(labels) != len(points) or any(label not in (0, 1) for label in labels)):
            raise PromptError(
                f"there are {len(points)} points and labels {list(labels)}; give a 0 or 1 for each point."
            )

    @property
    def geometric(self) -> bool:
        """Whether there are points, a box or a mask."""
        return self.points is not None or self.box is not None or self.mask is not None

    @property
    def description(self) -> str:
        """A few words to show beside the mask."""
        if self.expression is not None:
            return normalise(self.expression)
        parts = [name for name in ("points", "box", "mask") if getattr(self, name) is not None]
        return " and ".join(parts)


def normalise(expression: str) -> str:
    """Lower-case a sentence and single its spaces, as the models were trained."""
    return " ".join(expression.lower().split())
