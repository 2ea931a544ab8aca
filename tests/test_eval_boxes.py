"""Evaluation of visual grounding: masks against annotated boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from layouts import write_image
from layouts_conversations import write_vidstg
from refervos.data.boxes import BoxGroundTruth
from refervos.evaluation.datasets import Part
from refervos.evaluation.scoring import score


def write_masks(folder: Path, part: Part) -> list[float]:
    """Write the box of each sample, of which the second sample's are cut in half; returns the scores to expect."""
    expected = []
    for number, sample in enumerate(part.open().samples()):
        truth = sample.ground_truth
        assert isinstance(truth, BoxGroundTruth)
        ious = []
        for index in truth.annotated:
            left, top, right, bottom = (int(side) for side in truth.boxes[index])
            middle = (left + right) // 2 if number == 1 else right
            mask = np.zeros(truth.size, bool)
            mask[top:bottom, left:middle] = True
            ious.append((middle - left) / (right - left))
            if number == 2 and index == truth.annotated[-1]:
                ious[-1] = 0.0  # no file
                continue
            name = sample.video.frames.names[index]
            write_image(folder / sample.video.id / sample.expression_id / f"{name}.png", mask * np.uint8(255))
        expected.append(float(np.mean(ious)))
    return expected


def test_masks_are_scored_by_the_boxes_around_them(tmp_path: Path) -> None:
    part = Part("vidstg", write_vidstg(tmp_path / "data", videos=2, frames=12), "test")
    expected = write_masks(tmp_path / "masks", part)
    summary = score(tmp_path / "masks", part, show_progress=False).summary
    assert [result.scores.box_iou for result in summary.results if result.scores] == pytest.approx(expected)
    values = {name: value.mean for name, value in summary.groups[0].values.items() if value}
    assert values["mIoU of boxes"] == pytest.approx(100 * np.mean(expected))
    for threshold in (0.3, 0.5):
        assert values[f"@{threshold}"] == pytest.approx(100 * np.mean([value > threshold for value in expected]))
    assert {group.name for group in summary.grouped("kind")} == {"declarative", "interrogative"}
    assert len(summary.results) == 6
    assert not summary.lines
