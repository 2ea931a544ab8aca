"""Handling of Ctrl-C, SIGTERM and SIGHUP, all of which leave complete results behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command interrupted by Ctrl-C."""

_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class StopSignals:
    """Context in which SIGINT (Ctrl-C), SIGTERM (Slurm, ``docker stop``) and SIGHUP (a closed terminal) raise
    KeyboardInterrupt, at once or at the end of ``held``. A second signal has its default effect.

    Attributes:
        received: The received signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}
        self._holding = False

    @property
    def exit_code(self) -> int:
        """Exit code that shells expect of a command ended by the received signal."""
        return INTERRUPTED if self.received is None else 128 + self.received

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delay a signal until the end of the block, which must run completely or not at all."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self.received is not None:
            raise KeyboardInterrupt

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # under nohup a run survives its terminal
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
