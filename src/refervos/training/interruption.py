"""Ctrl-C, SIGTERM and a closed terminal as a wish that training grants at the end of a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Interruption:
    """While entered, a first SIGINT, SIGTERM or SIGHUP only sets ``wanted``.

    Args:
        patient: Whether later signals are ignored, too. A launcher of several processes passes a signal on to
            processes that the terminal has told already; with one process, a second Ctrl-C stops at once.
    """

    def __init__(self, *, patient: bool) -> None:
        self.wanted = False
        self.patient = patient
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            for number in _SIGNALS:
                if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # under nohup a run goes on without its terminal
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and not self.patient:
            raise KeyboardInterrupt
        self.wanted = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
