"""The edits of a session in the order of the video, so that going back to an earlier frame can repeat them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

EditKind = Literal["add", "follow", "set_prompt", "correct", "skip"]


@dataclass(frozen=True)
class Edit:
    """One change of a session by its user.

    Attributes:
        number: Position in the order in which edits were made, from 0.
        at: Index of the frame that came next when it was made; a correction changes the frame before it.
        kind: What was done.
        track: Number of the track; None for ``skip``.
        expression: The sentence of ``add`` and ``set_prompt``.
        points: Clicks of a correction as x, y and 1 (on the object) or 0, in pixels of the frame.
        box: Box of a correction as x0, y0, x1, y1.
        to: Frame to continue at, of ``skip``.
        token: Prompt token of a phrase of a conversation, of ``follow``.
    """

    number: int
    at: int
    kind: EditKind
    track: int | None = None
    expression: str | None = None
    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None
    to: int | None = None
    token: tuple[float, ...] = ()

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Edit:
        """Rebuild an edit that ``dataclasses.asdict`` described."""
        points = tuple((float(x), float(y), int(label)) for x, y, label in values.get("points") or ())
        box = values.get("box")
        return cls(
            **{
                **values,
                "points": points,
                "token": tuple(values.get("token") or ()),
                "box": None if box is None else tuple(map(float, box)),
            }
        )


@dataclass
class History:
    """Edits ordered by the frame at which they take effect.

    Attributes:
        edits: The edits.
        applied: How many of them are in effect; the others belong to later frames.
        count: How many edits were ever made.
    """

    edits: list[Edit] = field(default_factory=list)
    applied: int = 0
    count: int = 0

    def insert(self, edit: Edit) -> int:
        """Insert an edit that has just been carried out, after those in effect, and return its index."""
        index = self.applied
        self.edits.insert(index, edit)
        self.applied += 1
        self.count += 1
        return index

    def due(self, position: int) -> Iterator[Edit]:
        """Yield the edits that take effect before the frame at a position, and count each as in effect."""
        while self.applied < len(self.edits) and self.edits[self.applied].at <= position:
            self.applied += 1
            yield self.edits[self.applied - 1]

    def remove(self, index: int) -> None:
        """Remove one edit."""
        del self.edits[index]
        if index < self.applied:
            self.applied -= 1

    def last_correction(self, track: int) -> int | None:
        """Return the index of the correction of a track that was made last; None if there is none."""
        made = [(edit.number, k) for k, edit in enumerate(self.edits) if edit.kind == "correct" and edit.track == track]
        return max(made)[1] if made else None

    def prompts_of(self, track: int) -> list[tuple[int, str]]:
        """Return the sentences of a track with the frame from which each holds, ascending."""
        kinds = ("add", "follow", "set_prompt")
        edits = [edit for edit in list(self.edits) if edit.track == track and edit.kind in kinds]
        return [(edit.at, edit.expression or "") for edit in edits]

    def indices_of(self, track: int) -> list[int]:
        """Return the indices of all edits of a track, last first."""
        return [k for k, edit in reversed(list(enumerate(self.edits))) if edit.track == track]

    def to_json(self) -> list[dict[str, Any]]:
        """Describe the edits as JSON."""
        return [dataclasses.asdict(edit) for edit in self.edits]
