"""Sizes that stay open while a graph is traced.

A few functions of the model ask for a size as a plain number (to cut into chunks, to loop over frames), and tracing
would then write that number into the graph. Here they are replaced, while tracing, by what they do for any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from refervos.sam2 import hiera
from refervos.samwise import cmt


@contextmanager
def open_sizes() -> Iterator[None]:
    """Replace them; meant for a single thread, and for models whose step is one frame."""
    with ExitStack() as stack:
        for module, name, function in (
            (cmt, "windows_before", _window_before_one_frame),
            (cmt, "patches_at_once", _all_patches),
            (hiera, "len", _length),
        ):
            stack.enter_context(patch.object(module, name, function, create=name == "len"))
        yield


def _window_before_one_frame(x: Tensor, past: Tensor | None, reach: int) -> list[Tensor]:
    """``cmt.windows_before`` for a single frame whose past is no longer than it may be."""
    return [x if past is None else torch.cat([past, x], dim=2)]


def _all_patches(window: Tensor) -> int:
    """``cmt.patches_at_once`` where memory is no matter."""
    return window.shape[1]


def _length(sequence: Any) -> Any:
    """``len``, which of a tensor would be a number."""
    return sequence.shape[0] if isinstance(sequence, Tensor) else len(sequence)
