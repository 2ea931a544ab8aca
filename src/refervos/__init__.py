"""Referring video object segmentation: a video and a sentence in, that object's mask in every frame out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refervos.segmentation import Segmentation

if TYPE_CHECKING:
    from refervos.loading import load
    from refervos.prompts import Prompt
    from refervos.segmenter import Segmenter
    from refervos.session.session import Session
    from refervos.video import open_source

__version__ = "0.1.0"

__all__ = ["Prompt", "Segmentation", "Segmenter", "Session", "__version__", "load", "open_source"]

_ROOMS = {
    "load": "refervos.loading",
    "Prompt": "refervos.prompts",
    "Segmenter": "refervos.segmenter",
    "Session": "refervos.session.session",
    "open_source": "refervos.video",
}


def __getattr__(name: str) -> Any:
    """Import torch only when a model is asked for, so that ``refervos --help`` is quick."""
    if name in _ROOMS:
        from importlib import import_module

        return getattr(import_module(_ROOMS[name]), name)
    raise AttributeError(f"module 'refervos' has no attribute {name!r}")
