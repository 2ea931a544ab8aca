"""A command that is asked to end: Ctrl-C, SIGTERM and SIGHUP all leave whole results behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a command that Ctrl-C ended."""

_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Stopping:
    """While entered, a first SIGINT (Ctrl-C), SIGTERM (Slurm, ``docker stop``) or SIGHUP (a closed terminal) raises
    KeyboardInterrupt, at once or where ``held`` ends. A second one ends the process as if nobody had listened.

    Attributes:
        received: The signal that came, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}
        self._holding = False

    @property
    def exit_code(self) -> int:
        """What the shell expects of a command that was ended so."""
        return INTERRUPTED if self.received is None else 128 + self.received

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep a signal waiting while something is done that must be done wholly or not at all."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self.received is not None:
            raise KeyboardInterrupt

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup a run goes on without its terminal
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for other in self._before:
            signal.signal(other, signal.default_int_handler if other == signal.SIGINT else signal.SIG_DFL)
        if not self._holding:
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
