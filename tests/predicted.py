"""Predicted masks in files, for tests: any answer to the expressions of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from refervos.data.sample import Sample
from refervos.evaluation.datasets import Part
from refervos.evaluation.report import Evaluation
from refervos.evaluation.scoring import score

Answer = Callable[[Sample, int], np.ndarray | None]
"""The mask bool (H, W) of an expression in a frame, or None for no file."""


def perfect(sample: Sample, index: int) -> np.ndarray:
    """What is meant; nothing in frames of which that is not known."""
    known = sample.ground_truth is not None and index in sample.ground_truth.annotated
    return sample.ground_truth.mask(index) if sample.ground_truth is not None and known else nothing(sample, index)


def nothing(sample: Sample, index: int) -> np.ndarray:
    """No pixel."""
    return np.zeros(sample.video.frames.read(index).shape[:2], dtype=bool)


def everything(sample: Sample, index: int) -> np.ndarray:
    """Every pixel."""
    return ~nothing(sample, index)


def write_masks(folder: Path, samples: Iterable[Sample], answer: Answer, highest: int = 255) -> Path:
    """Write masks in the layout of the servers."""
    for sample in samples:
        for index, name in enumerate(sample.video.frames.names):
            mask = answer(sample, index)
            if mask is not None:
                path = folder / sample.video.id / sample.expression_id / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * np.uint8(highest)).save(path)
    return folder


def scored(folder: Path, part: Part, answer: Answer) -> Evaluation:
    """Write masks and score them."""
    write_masks(folder, part.open().samples(), answer)
    return score(folder, part)


def means(evaluation: Evaluation, group: str = "all") -> dict[str, float | None]:
    """The measures of a group of expressions, in percent."""
    (found,) = [one for one in evaluation.summary.groups if one.name == group]
    return {name: None if value is None else value.mean for name, value in found.values.items()}


def lines(evaluation: Evaluation) -> dict[str, float]:
    """What the benchmark reports besides, in percent."""
    return {name: value.mean for name, value in evaluation.summary.lines.items() if value is not None}
