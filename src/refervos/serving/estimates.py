"""How fast a model will be, measured before a session starts."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from refervos.session.session import Session

_SIZE = (360, 640, 3)
"""Shape of the frame that is segmented for the measurement; the size has little influence on the time."""


class SpeedEstimates:
    """Measured seconds per frame, by model and number of sentences."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[tuple[str, int], float] = {}

    def estimate(
        self, name: str, model: Any, expressions: Sequence[str], frames: int | None
    ) -> dict[str, float | None]:
        """Estimate how long a session takes; the first time for a number of sentences, three frames are segmented.

        Args:
            name: Name of the model.
            model: The model.
            expressions: The sentences.
            frames: Number of frames; None if unknown.

        Returns:
            ``fps``, frames per second, and ``seconds`` for all frames.
        """
        sentences = list(expressions) or ["the object"]
        key = (name, len(sentences))
        with self._lock:
            if key not in self._seconds:
                self._seconds[key] = self._measure(model, sentences)
            seconds = self._seconds[key]
        return {"fps": round(1 / seconds, 2), "seconds": None if frames is None else round(frames * seconds, 1)}

    @staticmethod
    def _measure(model: Any, sentences: Sequence[str]) -> float:
        session = Session(model, sentences)
        frame = np.random.default_rng(0).integers(0, 256, _SIZE, dtype=np.uint8)
        session.step(frame)  # the first frame does more, and allocates
        begin = time.perf_counter()
        for _ in range(2):
            session.step(frame)
        return max(1e-4, (time.perf_counter() - begin) / 2)
