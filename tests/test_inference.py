"""Copies between host and device around the model, when clips and videos are segmented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import layouts
from host_reads import HostReads
from refervos.evaluation import evaluate
from refervos.evaluation.datasets import Part
from refervos.evaluation.inference import PromptedClip, predict_batch, predict_video
from refervos.evaluation.matched import merged_png
from refervos.placement import Placement, stretch
from refervos.prompts import Prompt
from refervos.segmenter import FramePrediction
from refervos.session.session import SessionMixin
from test_eval_run import SQUARE, oracle, run_all

HEIGHT, WIDTH, FRAMES, SIDE = 30, 40, 10, 16


class BrightPixels(SessionMixin):
    """A segmenter that takes batches and predicts the pixels brighter than the mean of their frame."""

    device = torch.device("cpu")
    mixes_sentences = False

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        return stretch(frame_size, SIDE)

    def begin(self, prompt: Prompt) -> Prompt:
        return prompt

    def segment_clips(self, pixels: Tensor, tracks: Sequence[Prompt]) -> Iterator[FramePrediction]:
        for frames in pixels.unbind(1):
            grey = frames.mean(1)  # (N, S, S)
            yield FramePrediction(grey - grey.mean((1, 2), keepdim=True), None, torch.ones(len(tracks)).bool())

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[Prompt], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        return self.segment_clips(pixels.unsqueeze(0).expand(len(tracks), -1, -1, -1, -1), tracks)


def bright_clips(count: int) -> list[PromptedClip]:
    frames = np.random.default_rng(0).integers(0, 256, (count, FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    frames.flags.writeable = False  # as for a memory-mapped file
    return [PromptedClip(clip[..., ::-1], Prompt("the bright part")) for clip in frames]


def test_a_batch_goes_to_the_device_resized_and_comes_back_chunk_by_chunk() -> None:
    clips, model = bright_clips(3), BrightPixels()
    with HostReads() as reads:
        predictions: Any = predict_batch(model, clips, 4)  # type: ignore[arg-type]
    lengths = [4, 4, 2]
    assert reads.moved == [3 * SIDE * SIDE] * FRAMES * len(clips)
    # The masks of each chunk, and at the end the number of switches per clip and the check for NaN.
    assert reads.sizes == [*(3 * frames * HEIGHT * WIDTH for frames in lengths), len(clips) + 1]
    assert [prediction.switches for prediction in predictions] == [FRAMES] * 3
    for clip, prediction in zip(clips, predictions, strict=True):
        alone = [chunk.masks[:, 0] for chunk in predict_video(model, clip.frames, [clip.prompt], 1)]  # type: ignore[arg-type]
        assert np.array_equal(prediction.masks, np.concatenate(alone))
        assert 0.2 < prediction.masks.mean() < 0.8


def test_probabilities_are_computed_once_for_each_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("ref-davis17", layouts.write_ref_davis17(tmp_path / "data", size=SQUARE)).open()
    merged: list[np.ndarray] = []

    def recording(probabilities: np.ndarray) -> bytes:
        merged.append(probabilities.copy())
        return merged_png(probabilities)

    monkeypatch.setattr(evaluate, "merged_png", recording)
    run_all(model := oracle(part), part, tmp_path / "out")
    video, samples = part.videos[0]
    of_first = [sample for sample in samples if sample.annotator == "0"]
    for index, probabilities in enumerate(merged[: len(video)]):
        logits = np.stack([model.logits[sample.expression][index] for sample in of_first]).astype(np.float32)
        assert np.array_equal(probabilities, torch.from_numpy(logits).sigmoid().numpy())
    with HostReads() as reads:
        run_all(model, part, tmp_path / "again")
    groups = sum(len({sample.annotator for sample in samples}) for _, samples in part.videos)
    large = [size for size in reads.sizes if size > 2 * SQUARE[0] * SQUARE[1]]
    assert len(large) == 2 * groups  # two chunks per group; all other reads are of single frames
