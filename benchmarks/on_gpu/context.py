"""Options and helpers of the parts."""

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
"""Results of a part; ``short`` has one line for the summary, ``markdown`` the tables."""


@dataclass
class Context:
    """Options and results of a part.

    Attributes:
        device: ``cuda`` or ``cpu``.
        quick: Use small models and few frames, to test the script.
        seconds: Time limit of the part.
        save: Called by ``keep``.
        begun: Start of the part by the monotonic clock.
        kept: Results so far.
    """

    device: str
    quick: bool = False
    seconds: float = math.inf
    save: Callable[[Values], object] = lambda values: None
    begun: float = field(default_factory=time.monotonic)
    kept: Values = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """True if the device is a GPU."""
        return self.device.startswith("cuda")

    def left(self) -> float:
        """Return the seconds until the part is stopped."""
        return self.begun + self.seconds - time.monotonic()

    def keep(self, values: Values) -> Values:
        """Save the results so far, in case the part is stopped."""
        self.kept = values
        self.save(values)
        return values


def clear_memory(context: Context) -> None:
    """Free unused memory, and reset the peak."""
    import torch

    gc.collect()
    if context.on_gpu:
        torch.cuda.init()  # needed before the peak can be reset
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a Markdown table with a left-aligned first column; not imported, as the report must not need the package."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
