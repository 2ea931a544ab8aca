"""Referring video object segmentation: the mask of an object in every frame of a video, from a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refervos.segmentation import Segmentation

if TYPE_CHECKING:
    from refervos.loading import load
    from refervos.pipeline import segment_in_hindsight
    from refervos.prompts import Prompt
    from refervos.segmenter import Segmenter
    from refervos.session.session import Session
    from refervos.video import open_source

__version__ = "0.1.0"

__all__ = [
    "Prompt",
    "Segmentation",
    "Segmenter",
    "Session",
    "__version__",
    "load",
    "open_source",
    "segment_in_hindsight",
]

_MODULES = {
    "load": "refervos.loading",
    "Prompt": "refervos.prompts",
    "Segmenter": "refervos.segmenter",
    "Session": "refervos.session.session",
    "open_source": "refervos.video",
    "segment_in_hindsight": "refervos.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import refervos`` and ``refervos --help`` do not import torch."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'refervos' has no attribute {name!r}")
