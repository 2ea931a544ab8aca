"""What answering costs besides the model: copies to the device and back."""

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
from refervos.evaluation.answers import Question, answer_together, answer_video
from refervos.evaluation.datasets import Part
from refervos.evaluation.matched import merged_png
from refervos.placement import Placement, stretch
from refervos.prompts import Prompt
from refervos.segmenter import FramePrediction
from test_eval_run import SQUARE, answered, oracle

HEIGHT, WIDTH, FRAMES, SIDE = 30, 40, 10, 16


class Bright:
    """Answers with the pixels that are brighter than the mean of their frame, clips in one batch."""

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


def questions(count: int) -> list[Question]:
    drawn = np.random.default_rng(0).integers(0, 256, (count, FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    drawn.flags.writeable = False  # as what comes from a mapped file
    return [Question(clip[..., ::-1], Prompt("what is bright")) for clip in drawn]


def test_a_batch_goes_to_the_device_resized_and_comes_back_chunk_by_chunk() -> None:
    asked, model = questions(3), Bright()
    with HostReads() as reads:
        together: Any = answer_together(model, asked, 4)  # type: ignore[arg-type]
    chunks = [4, 4, 2]
    assert reads.moved == [3 * SIDE * SIDE] * FRAMES * len(asked)
    # The masks of each chunk, and at the end how often memory was rewritten and whether all were numbers.
    assert reads.sizes == [*(3 * frames * HEIGHT * WIDTH for frames in chunks), len(asked) + 1]
    assert [answer.switches for answer in together] == [FRAMES] * 3
    for question, answer in zip(asked, together, strict=True):
        alone = [chunk.masks[:, 0] for chunk in answer_video(model, question.frames, [question.prompt], 1)]  # type: ignore[arg-type]
        assert np.array_equal(answer.masks, np.concatenate(alone))
        assert 0.2 < answer.masks.mean() < 0.8


def test_soft_masks_are_made_of_a_chunk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("ref-davis17", layouts.write_ref_davis17(tmp_path / "data", size=SQUARE)).open()
    seen: list[np.ndarray] = []

    def merged(soft: np.ndarray) -> bytes:
        seen.append(soft.copy())
        return merged_png(soft)

    monkeypatch.setattr(evaluate, "merged_png", merged)
    answered(model := oracle(part), part, tmp_path / "out")
    video, samples = part.videos[0]
    of_first = [sample for sample in samples if sample.annotator == "0"]
    for index, soft in enumerate(seen[: len(video)]):
        logits = np.stack([model.answers[sample.expression][index] for sample in of_first]).astype(np.float32)
        assert np.array_equal(soft, torch.from_numpy(logits).sigmoid().numpy())
    with HostReads() as reads:
        answered(model, part, tmp_path / "again")
    groups = sum(len({sample.annotator for sample in samples}) for _, samples in part.videos)
    read = [size for size in reads.sizes if size > 2 * SQUARE[0] * SQUARE[1]]
    assert len(read) == 2 * groups  # two chunks of each group, all other reads are of single frames
