"""Known predictions for tests: as mask files, and as the output of a segmenter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from refervos.data.sample import Sample
from refervos.evaluation.datasets import Part
from refervos.evaluation.report import Evaluation
from refervos.evaluation.scoring import score
from refervos.placement import Placement, stretch
from refervos.prompts import Prompt
from refervos.segmenter import FramePrediction
from scenes import Uncorrectable

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


class KnownSegmenter(Uncorrectable):
    """A segmenter that returns known logits for each expression and a switch in every frame.

    Args:
        logits: float (T, S, S) by expression, for square frames of side S.
        default: Logits of all other expressions.
    """

    clip_length = 4
    device = torch.device("cpu")

    def __init__(self, logits: Mapping[str, np.ndarray], default: np.ndarray | None = None) -> None:
        self.logits = dict(logits)
        self.default = default
        self.tracks_per_clip: list[int] = []

    def placement(self, frame_size: tuple[int, int]) -> Placement:
        return stretch(frame_size, frame_size[0])

    def begin(self, prompt: Prompt) -> Iterator[np.ndarray]:
        known = self.logits.get(str(prompt.expression), self.default)
        assert known is not None, prompt.expression
        return iter(known)

    def segment_clip(
        self, pixels: Tensor, tracks: Sequence[Iterator[np.ndarray]], placements: Sequence[Placement]
    ) -> Iterator[FramePrediction]:
        self.tracks_per_clip.append(len(tracks))
        for _ in pixels:
            logits = torch.stack([torch.from_numpy(next(track)) for track in tracks]).float()
            yield FramePrediction(logits, None, torch.ones(len(tracks), dtype=torch.bool))

    def describe(self) -> dict[str, Any]:
        return {"family": "known"}
