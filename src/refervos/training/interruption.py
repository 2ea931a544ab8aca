"""Ctrl-C, SIGTERM and a closed terminal as requests to stop, honoured at the end of a training step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class Interruption:
    """Context in which a first SIGINT, SIGTERM or SIGHUP only sets ``requested``.

    Args:
        ignore_repeats: Whether later signals are ignored, too. A launcher of several processes forwards a signal to
            processes that already got it from the terminal; with one process, a second Ctrl-C stops at once.
    """

    def __init__(self, *, ignore_repeats: bool) -> None:
        self.requested = False
        self.ignore_repeats = ignore_repeats
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # other threads may not install handlers
            for number in _SIGNALS:
                if number != signal.SIGINT and signal.getsignal(number) is signal.SIG_IGN:
                    continue  # under nohup a run continues without its terminal
                self._before[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and not self.ignore_repeats:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
