"""Mask files with any predictions for the expressions of a data set, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from refervos.data.sample import Sample
from refervos.evaluation.datasets import Part
from refervos.evaluation.report import Evaluation
from refervos.evaluation.scoring import score

Predict = Callable[[Sample, int], np.ndarray | None]
"""Returns the mask bool (H, W) of an expression in a frame, or None for no file."""


def perfect(sample: Sample, index: int) -> np.ndarray:
    """Return the ground truth; empty in frames without one."""
    known = sample.ground_truth is not None and index in sample.ground_truth.annotated
    return sample.ground_truth.mask(index) if sample.ground_truth is not None and known else nothing(sample, index)


def nothing(sample: Sample, index: int) -> np.ndarray:
    """Return an empty mask."""
    return np.zeros(sample.video.frames.read(index).shape[:2], dtype=bool)


def everything(sample: Sample, index: int) -> np.ndarray:
    """Return a full mask."""
    return ~nothing(sample, index)


def write_masks(folder: Path, samples: Iterable[Sample], predict: Predict, highest: int = 255) -> Path:
    """Write masks in the layout of the evaluation servers."""
    for sample in samples:
        for index, name in enumerate(sample.video.frames.names):
            mask = predict(sample, index)
            if mask is not None:
                path = folder / sample.video.id / sample.expression_id / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * np.uint8(highest)).save(path)
    return folder


def scored(folder: Path, part: Part, predict: Predict) -> Evaluation:
    """Write masks and score them."""
    write_masks(folder, part.open().samples(), predict)
    return score(folder, part)


def means(evaluation: Evaluation, group: str = "all") -> dict[str, float | None]:
    """Return the measures of a group of expressions, in percent."""
    (selected,) = [one for one in evaluation.summary.groups if one.name == group]
    return {name: None if value is None else value.mean for name, value in selected.values.items()}


def lines(evaluation: Evaluation) -> dict[str, float]:
    """Return the measures reported below the table, in percent."""
    return {name: value.mean for name, value in evaluation.summary.lines.items() if value is not None}
