"""Clips that can be opened without an upload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Sample:
    """A clip on the server.

    Attributes:
        title: Its title.
        expressions: Sentences to try.
        poster: Address of a picture of it, relative to the page; empty for none.
        path: The video file.
    """

    title: str
    expressions: tuple[str, ...]
    poster: str
    path: Path

    def describe(self) -> dict[str, Any]:
        """Describe the clip for clients, without its path."""
        return {"title": self.title, "expressions": list(self.expressions), "poster": self.poster}


Samples = Mapping[str, Sample]
"""The clips by identifier."""
