"""Progress of training: a bar in a terminal, lines in a log file, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from refervos.progress import Bar

LINES_EVERY = 5
"""Without a terminal, one line is printed for this many rows of the history."""


class TrainingProgress:
    """Progress of one stage on standard error.

    Args:
        name: Name of the stage.
        steps: Number of its steps.
        done: Number of steps already made.
        show: True for a bar, False for nothing, None for a bar in a terminal and lines elsewhere.
    """

    def __init__(self, name: str, steps: int, done: int, show: bool | None) -> None:
        self.name = name
        self.steps = steps
        self.started, self.first, self.rows = time.monotonic(), done, 0
        bar = show is True or (show is None and sys.stderr.isatty())
        self.lines = show is None and not bar
        self.quiet = show is False
        self.bar = Bar("steps", steps, bar, description=name, done=done)

    def step(self) -> None:
        """Count one more step."""
        self.bar.advance()

    def shorten(self, steps: int) -> None:
        """Reduce the expected number of steps."""
        self.steps = steps
        self.bar.expect(steps)

    def row(self, step: int, scalars: Mapping[str, float]) -> None:
        """Show the latest means.

        Args:
            step: Number of steps made.
            scalars: Values by name.
        """
        shown = {name: f"{value:.4g}" for name, value in scalars.items() if name in ("loss", "rate")}
        self.bar.show_values(shown)
        self.rows += 1
        if self.lines and (self.rows % LINES_EVERY == 0 or step == self.steps):
            each = (time.monotonic() - self.started) / max(1, step - self.first)
            values = "  ".join(f"{name} {value}" for name, value in shown.items())
            left = duration(each * (self.steps - step))
            print(
                f"{self.name} {step}/{self.steps}  {values}  {each:.3g} s/step  {left} left",
                file=sys.stderr,
                flush=True,
            )

    def say(self, sentence: str) -> None:
        """Show a sentence without breaking the bar."""
        if not self.quiet:
            self.bar.say(sentence)

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.__exit__()


def duration(seconds: float) -> str:
    """Format a duration for people: ``4.5 s``, ``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
