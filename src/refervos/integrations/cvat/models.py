"""Models of CVAT's functions, checked when a function is created: later, a mistake would fail on each frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refervos.errors import PromptError, require_installed
from refervos.prompts import Prompt

DEFAULT_SAM2 = "sam2.1-tiny"
"""Model of the functions that take clicks, boxes and masks; downloaded on first use."""


def load_for_sentences(model: str, device: str | None, sentences: Sequence[str]) -> Any:
    """Load a model that follows sentences.

    Args:
        model: See ``refervos.load``.
        device: Device such as ``cpu`` or ``cuda``; None for a GPU if available.
        sentences: The sentences, which the model must accept.

    Returns:
        The model.

    Raises:
        MissingDependencyError: CVAT's SDK is not installed.
        PromptError: The model does not accept a sentence.
    """
    return _load(model, device, [Prompt(sentence) for sentence in sentences])


def load_for_shapes(model: str, device: str | None) -> Any:
    """Load a model that takes clicks, boxes and masks.

    Args:
        model: See ``refervos.load``.
        device: Device such as ``cpu`` or ``cuda``; None for a GPU if available.

    Returns:
        The model.

    Raises:
        MissingDependencyError: CVAT's SDK is not installed.
        PromptError: The model accepts only sentences.
    """
    try:
        return _load(model, device, [Prompt(points=[(0, 0)]), Prompt(mask=np.ones((1, 1), bool))])
    except PromptError as error:
        raise PromptError(
            f"model is '{model}', which takes no clicks, boxes and masks; use a SAM2, such as '{DEFAULT_SAM2}'."
        ) from error


def _load(model: str, device: str | None, prompts: Sequence[Prompt]) -> Any:
    require_installed("a function of CVAT", "cvat", "cvat_sdk")
    import refervos

    loaded = refervos.load(model, device=device)
    for prompt in prompts:
        loaded.begin(prompt)
    return loaded
