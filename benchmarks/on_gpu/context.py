"""What a part is told, and what several parts need."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

Values = dict[str, Any]
"""What a part found. Under ``short`` stands one line for the summary, under ``markdown`` the tables."""


@dataclass
class Context:
    """What a part is told.

    Attributes:
        device: ``cuda`` or ``cpu``.
        quick: Whether all is small, to try the script.
        seconds: How long the part may take.
        save: Called by ``keep``.
        begun: When the part began.
        kept: What the part found so far.
    """

    device: str
    quick: bool = False
    seconds: float = math.inf
    save: Callable[[Values], object] = lambda values: None
    begun: float = field(default_factory=time.monotonic)
    kept: Values = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""
        return self.device.startswith("cuda")

    def left(self) -> float:
        """Seconds until the part is stopped."""
        return self.begun + self.seconds - time.monotonic()

    def keep(self, values: Values) -> Values:
        """Have what is known so far written down, in case that the part does not come to its end."""
        self.kept = values
        self.save(values)
        return values


def clear_memory(context: Context) -> None:
    """Give back what is no longer used, and forget the peak."""
    import torch

    gc.collect()
    if context.on_gpu:
        torch.cuda.init()  # there is no peak to forget before that
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left; made here because the report must not need the package."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
