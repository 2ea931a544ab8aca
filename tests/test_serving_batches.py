"""Frames of several sessions that are due together are one batch, whose results are those of single sessions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

import refervos
from refervos.segmentation import Segmentation
from refervos.segmenter import FramePrediction, Segmenter
from refervos.session.session import Session

pytest.importorskip("fastapi")
from refervos.serving.shared_model import SharedModel

SENTENCES = ("the red circle", "the blue square", "the green star")


class Gated:
    """A model that holds its first clip until the gate opens, and counts how its clips come."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.entered, self.gate = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def segment_clip(self, *arguments: Any) -> Iterator[FramePrediction]:
        self.entered.set()
        assert self.gate.wait(30)
        self.batches.append(1)
        return cast(Iterator[FramePrediction], self.model.segment_clip(*arguments))

    def segment_clips(self, pixels: Any, tracks: Any) -> Iterator[FramePrediction]:
        self.batches.append(len(tracks))
        return cast(Iterator[FramePrediction], self.model.segment_clips(pixels, tracks))


@pytest.fixture(scope="module")
def miniature() -> Segmenter[Any]:
    return refervos.load(device="cpu")


def drawn(seed: int, count: int = 4) -> list[np.ndarray]:
    """Frames with a moving bright square on noise."""
    noise = np.random.default_rng(seed)
    frames = []
    for k in range(count):
        frame = noise.integers(0, 90, (72, 96, 3), dtype=np.uint8)
        frame[20 + seed : 40 + seed, 10 + 8 * k : 30 + 8 * k, seed % 3] = 240
        frames.append(frame)
    return frames


def run_together(shared: SharedModel, gated: Gated) -> list[list[Segmentation]]:
    """Step three sessions in three threads, each frame as soon as all three wait for the model."""
    sessions = [Session(cast(Any, shared), [sentence], keep_logits=True) for sentence in SENTENCES]
    results: list[list[Segmentation]] = [[], [], []]

    def follow(k: int) -> None:
        results[k].extend(sessions[k].step(frame) for frame in drawn(k))

    # A clip of a fourth session keeps the model busy until the three wait.
    blocker = threading.Thread(target=lambda: Session(cast(Any, shared), ["the ball"]).step(drawn(9)[0]))
    blocker.start()
    assert gated.entered.wait(30)
    threads = [threading.Thread(target=follow, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    while shared.waiting < 3:
        threading.Event().wait(0.01)  # bounded by the gate
    gated.gate.set()
    for thread in [blocker, *threads]:
        thread.join(60)
    return results


def test_sessions_that_wait_together_are_one_batch_with_the_results_of_single_sessions(
    miniature: Segmenter[Any],
) -> None:
    gated = Gated(miniature)
    shared = SharedModel(cast(Any, gated))
    try:
        together = run_together(shared, gated)
    finally:
        shared.close()
    assert gated.batches[:2] == [1, 3]
    for k, sentence in enumerate(SENTENCES):
        alone = Session(miniature, [sentence], keep_logits=True)
        for frame, batched in zip(drawn(k), together[k], strict=True):
            single = alone.step(frame)
            assert single.logits is not None
            assert batched.logits is not None
            scale = np.abs(single.logits).max()
            np.testing.assert_allclose(batched.logits, single.logits, atol=1e-4 * scale)
            assert np.array_equal(batched.masks, single.masks)


def test_several_sentences_about_one_video_stay_one_clip(miniature: Segmenter[Any]) -> None:
    gated = Gated(miniature)
    gated.gate.set()
    shared = SharedModel(cast(Any, gated))
    try:
        frame = drawn(0)[0]
        served = Session(cast(Any, shared), SENTENCES).step(frame)
        assert np.array_equal(served.masks, Session(miniature, SENTENCES).step(frame).masks)
        assert gated.batches == [1]
    finally:
        shared.close()


def test_an_error_of_the_model_reaches_the_session_and_the_model_goes_on(miniature: Segmenter[Any]) -> None:
    class Broken(Gated):
        def segment_clip(self, *arguments: Any) -> Iterator[FramePrediction]:
            if not self.batches:
                self.batches.append(0)
                raise MemoryError
            return super().segment_clip(*arguments)

    broken = Broken(miniature)
    broken.gate.set()
    shared = SharedModel(cast(Any, broken))
    try:
        session = Session(cast(Any, shared), SENTENCES[:1])
        with pytest.raises(MemoryError):
            session.step(drawn(0)[0])
        assert session.step(drawn(0)[0]).masks.shape == (1, 72, 96)
    finally:
        shared.close()
