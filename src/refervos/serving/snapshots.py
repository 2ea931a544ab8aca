"""Saved states of a session on disk, from which it goes back to an earlier frame or on after a restart."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refervos.session.session import Session

_RECENT = 6
"""Number of the newest snapshots that are never thinned out."""


@dataclass(frozen=True)
class Snapshot:
    """One saved state.

    Attributes:
        position: Index of the frame that came next.
        edits: Number of edits in effect.
        numbers: The session's own number of each track.
        file: Name of the file.
    """

    position: int
    edits: int
    numbers: dict[int, int]
    file: str

    def to_json(self) -> dict[str, Any]:
        """Describe the snapshot as JSON."""
        return {**dataclasses.asdict(self), "numbers": [[track, number] for track, number in self.numbers.items()]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Snapshot:
        """Rebuild a snapshot that ``to_json`` described."""
        numbers = {int(track): int(number) for track, number in values["numbers"]}
        return cls(int(values["position"]), int(values["edits"]), numbers, Path(str(values["file"])).name)


class Snapshots:
    """The snapshots of one session, ascending by frame; dense for the newest frames, sparser before.

    Args:
        folder: Folder of the files; exists.
        limit: Maximum number of snapshots.
        known: Snapshots of an earlier process.
    """

    def __init__(self, folder: Path, limit: int, known: list[Snapshot] | None = None) -> None:
        self._folder, self._limit = folder, limit
        self._count = 0
        self._kept = [each for each in known or [] if (folder / each.file).is_file()]
        for path in folder.glob("*.session"):
            self._count = max(self._count, int(path.stem) + 1 if path.stem.isdigit() else 0)

    @property
    def newest(self) -> Snapshot | None:
        """The snapshot of the latest frame; None if there is none."""
        return self._kept[-1] if self._kept else None

    def path(self, snapshot: Snapshot) -> Path:
        """Return the path of a snapshot's file."""
        return self._folder / snapshot.file

    def save(self, session: Session, position: int, edits: int, numbers: dict[int, int]) -> None:
        """Save the session as the snapshot of a position, in place of earlier ones of it.

        Args:
            session: The session.
            position: Index of the frame that comes next.
            edits: Number of edits in effect.
            numbers: The session's own number of each track.

        Raises:
            StateError: The file cannot be written.
        """
        snapshot = Snapshot(position, edits, dict(numbers), f"{self._count:08d}.session")
        self._count += 1
        session.save(self.path(snapshot))
        self._remove(lambda each: each.position >= position)
        self._kept.append(snapshot)
        if len(self._kept) > self._limit:
            self._thin_out()

    def before(self, position: int) -> Snapshot | None:
        """Return the latest snapshot from which a position can be reached; None if there is none."""
        return next((each for each in reversed(self._kept) if each.position <= position), None)

    def forget_after(self, index: int) -> None:
        """Remove the snapshots in which the edit at this index, or the lack of it, has had an effect."""
        self._remove(lambda each: each.edits > index)

    def forget_beyond(self, position: int) -> None:
        """Remove the snapshots of later frames."""
        self._remove(lambda each: each.position > position)

    def forget_edit(self, index: int) -> None:
        """Adjust the number of edits in effect after one was removed that no longer matters."""
        self._kept = [replace(each, edits=each.edits - (each.edits > index)) for each in self._kept]

    def to_json(self) -> list[dict[str, Any]]:
        """Describe the snapshots as JSON."""
        return [each.to_json() for each in self._kept]

    def _remove(self, unwanted: Callable[[Snapshot], bool]) -> None:
        removed = [each for each in self._kept if unwanted(each)]
        self._kept = [each for each in self._kept if each not in removed]
        self._unlink(removed)

    def _thin_out(self) -> None:
        """Remove the older snapshot whose neighbours are closest together, in relation to its age."""
        newest = self._kept[-1].position
        candidates = self._kept[1:-_RECENT] or self._kept[:1]

        def value(each: Snapshot) -> float:
            k = self._kept.index(each)
            gap = self._kept[k + 1].position - self._kept[k - 1].position
            return gap / (newest - each.position + 1)

        least = min(candidates, key=value)
        self._kept.remove(least)
        self._unlink([least])

    def _unlink(self, removed: list[Snapshot]) -> None:
        for each in removed:
            with contextlib.suppress(OSError):
                self.path(each).unlink()
