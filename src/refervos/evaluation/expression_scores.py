"""Scores of single expressions, and the file that each result is stored in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refervos.data.boxes import BoxGroundTruth
from refervos.data.layouts.revos import RevosGroundTruth
from refervos.data.sample import GroundTruth, Mask, Sample
from refervos.errors import ConfigError, DataError, EvaluationError
from refervos.evaluation.predictions import Predictions
from refervos.files.plain_text import parse_json
from refervos.files.writing import write_atomically
from refervos.metrics.longvideo import temporal_iou, video_iou
from refervos.metrics.region_boundary import FRAMES_AT_ONCE, overlap, video_scores
from refervos.metrics.revos import robustness
from refervos.metrics.streams import batches
from refervos.metrics.visual_grounding import box_iou, boxes_around
from refervos.typed_config import config_from_mapping

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU thresholds K of P@K."""


@dataclass(frozen=True)
class Scores:
    """Scores of one expression over its annotated frames; a frame without a mask scores 0.

    Attributes:
        frames: Number of annotated frames.
        j: Region similarity J in [0, 1], mean over the frames.
        f: Boundary accuracy F, likewise.
        visible: Frames that show the target.
        missed: Frames that show the target but have an empty prediction.
        false_alarms: Frames without the target that have a non-empty prediction.
        target_size: Fraction of the frame that the target covers, in (0, 1], mean over the frames that show it; None
            if it never shows.
        intersection: Pixels in both masks, sum over the frames.
        union: Pixels in either mask, sum over the frames.
        above: For each of ``PRECISION_THRESHOLDS``, the number of frames that show the target and have a larger J.
        t_iou: Temporal IoU of Long-RVOS.
        v_iou: Spatio-temporal IoU of Long-RVOS.
        robustness: R of ReVOS, mean over the frames; None for other benchmarks.
        box_iou: IoU of the box around the mask with the annotated box, mean over the frames; None for benchmarks
            without boxes.
    """

    frames: int
    j: float
    f: float
    visible: int
    missed: int
    false_alarms: int
    target_size: float | None
    intersection: int
    union: int
    above: tuple[int, ...]
    t_iou: float
    v_iou: float
    robustness: float | None = None
    box_iou: float | None = None

    @property
    def j_and_f(self) -> float:
        """Mean of J and F, in [0, 1]."""
        return (self.j + self.f) / 2


@dataclass(frozen=True)
class ExpressionResult:
    """Result of one expression.

    Attributes:
        video: Id of the video.
        expression_id: Id of the expression within the video.
        expression: The expression's text.
        kind: Kind of expression, if the benchmark defines kinds.
        annotator: The expression's author, if the benchmark scores authors separately.
        has_target: True if the expression has a target; None if that is not public.
        frames: Length of the video T.
        missing: Annotated frames (all frames, if the ground truth is not public) without a mask.
        empty: True if the prediction has no pixel in any frame; None if it has none but masks are missing.
        scores: The scores; None if the ground truth is not public.
        switches: Frames in which the memory was rewritten.
        seconds: Time the model took.
    """

    video: str
    expression_id: str
    expression: str
    kind: str | None
    annotator: str | None
    has_target: bool | None
    frames: int
    missing: int
    empty: bool | None
    scores: Scores | None
    switches: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class _Frame:
    """Contribution of one annotated frame to an expression's scores; areas in pixels."""

    j: float
    f: float
    target: int
    predicted: int
    intersection: int
    union: int
    pixels: int
    robustness: float | None = None
    box_iou: float | None = None


def score_expression(
    sample: Sample, predictions: Predictions, *, switches: int = 0, seconds: float = 0.0
) -> ExpressionResult:
    """Score the predicted masks of an expression.

    Args:
        sample: The expression.
        predictions: The masks.
        switches: Frames in which the memory was rewritten.
        seconds: Time the model took.

    Returns:
        The result.

    Raises:
        DataError: When the ground truth cannot be read.
        EvaluationError: When a mask is damaged, not binary, or differs in size from the ground truth.
    """
    names = sample.video.frames.names
    predicted_names = predictions.names(sample)
    ground_truth = sample.ground_truth
    scored = range(len(names)) if ground_truth is None else ground_truth.annotated
    if scored and scored[-1] >= len(names):
        raise DataError(
            f"video {sample.video.id} has {len(names)} frames, but its ground truth includes frame {scored[-1] + 1}."
        )
    missing = sum(names[index] not in predicted_names for index in scored)
    frames: list[_Frame] = []
    if ground_truth is not None:
        for indices in batches(scored, FRAMES_AT_ONCE):
            targets = [ground_truth.mask(index) for index in indices]
            masks = [
                predictions.mask(sample, names[index], target.shape) if names[index] in predicted_names else None
                for index, target in zip(indices, targets, strict=True)
            ]
            frames += _score_frames(ground_truth, indices, targets, masks)
    non_empty = any(frame.predicted for frame in frames) or _has_unscored_pixels(
        sample, predictions, predicted_names, ground_truth
    )
    return ExpressionResult(
        video=sample.video.id,
        expression_id=sample.expression_id,
        expression=sample.expression,
        kind=sample.kind,
        annotator=sample.annotator,
        has_target=sample.has_target,
        frames=len(names),
        missing=missing,
        empty=False if non_empty else None if missing else True,
        scores=_sum_up(frames) if frames else None,
        switches=switches,
        seconds=seconds,
    )


def _has_unscored_pixels(
    sample: Sample, predictions: Predictions, predicted_names: frozenset[str], ground_truth: GroundTruth | None
) -> bool:
    """Check if the prediction is non-empty in any frame that is not annotated."""
    annotated = set() if ground_truth is None else set(ground_truth.annotated)
    others = (name for index, name in enumerate(sample.video.frames.names) if index not in annotated)
    return any(name in predicted_names and bool(predictions.mask(sample, name).any()) for name in others)


def _score_frames(
    ground_truth: GroundTruth, indices: list[int], targets: list[Mask], masks: list[Mask | None]
) -> list[_Frame]:
    """Score up to eight frames; those without a mask score 0."""
    voids = [ground_truth.void(index) for index in indices]
    predicted = [np.zeros_like(target) if mask is None else mask for target, mask in zip(targets, masks, strict=True)]
    j, f = video_scores(targets, predicted, voids)
    frames = []
    for position, (index, target, void) in enumerate(zip(indices, targets, voids, strict=True)):
        missing = masks[position] is None
        counted = np.True_ if void is None else ~void
        counted_target, counted_prediction = target & counted, predicted[position] & counted
        shared = overlap(counted_target, counted_prediction)
        frames.append(
            _Frame(
                j=0.0 if missing else float(j[position]),
                f=0.0 if missing else float(f[position]),
                target=int(np.count_nonzero(counted_target)),
                predicted=int(np.count_nonzero(counted_prediction)),
                intersection=shared.intersection,
                union=shared.union,
                pixels=target.size,
                robustness=_robustness(ground_truth, index, target, masks[position]),
                box_iou=_box_iou(ground_truth, index, predicted[position]),
            )
        )
    return frames


def _robustness(ground_truth: GroundTruth, index: int, target: Mask, mask: Mask | None) -> float | None:
    """Return R of a frame of ReVOS, None if its foreground is unknown."""
    if not isinstance(ground_truth, RevosGroundTruth) or ground_truth.all_objects is None:
        return None
    return 0.0 if mask is None else robustness(target, mask, ground_truth.foreground(index))


def _box_iou(ground_truth: GroundTruth, index: int, predicted: Mask) -> float | None:
    """Return the IoU of boxes in one frame, or None if the ground truth has no boxes."""
    if not isinstance(ground_truth, BoxGroundTruth):
        return None
    return float(box_iou(np.array(ground_truth.boxes[index]), boxes_around(predicted)))


def _sum_up(frames: list[_Frame]) -> Scores:
    """Combine the contributions of all annotated frames."""
    j = np.array([frame.j for frame in frames])
    visible = np.array([frame.target > 0 for frame in frames])
    predicted = np.array([frame.predicted > 0 for frame in frames])
    sizes = [frame.target / frame.pixels for frame in frames if frame.target]
    robustness_of_frames = [frame.robustness for frame in frames if frame.robustness is not None]
    box_ious = [frame.box_iou for frame in frames if frame.box_iou is not None]
    return Scores(
        frames=len(frames),
        j=float(j.mean()),
        f=float(np.mean([frame.f for frame in frames])),
        visible=int(np.count_nonzero(visible)),
        missed=int(np.count_nonzero(visible & ~predicted)),
        false_alarms=int(np.count_nonzero(~visible & predicted)),
        target_size=float(np.mean(sizes)) if sizes else None,
        intersection=sum(frame.intersection for frame in frames),
        union=sum(frame.union for frame in frames),
        above=tuple(int(np.count_nonzero(j[visible] > threshold)) for threshold in PRECISION_THRESHOLDS),
        t_iou=temporal_iou(visible, predicted),
        v_iou=video_iou(j, visible, predicted),
        robustness=float(np.mean(robustness_of_frames)) if robustness_of_frames else None,
        box_iou=float(np.mean(box_ious)) if box_ious else None,
    )


def read_result(path: Path) -> ExpressionResult:
    """Read an ``ExpressionResult`` that ``refervos eval`` wrote.

    Raises:
        EvaluationError: When the file is missing or is no such result.
    """
    return result_from(read_json(path), ExpressionResult, path)


def save_json(values: Any, path: Path) -> None:
    """Write plain values as JSON; the file is complete or absent."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        EvaluationError: When the file is missing or not valid JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"), str(path), EvaluationError)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not valid JSON ({error}).") from error


def result_from(values: Any, kind: type[Any], path: Path) -> Any:
    """Convert plain values to a dataclass.

    Raises:
        EvaluationError: When they do not fit its fields.
    """
    if not isinstance(values, dict):
        raise EvaluationError(
            f"{path} holds no result of 'refervos eval'; delete it, and the next run writes it again."
        )
    try:
        return config_from_mapping(kind, values, str(path))
    except ConfigError as error:
        raise EvaluationError(str(error)) from error
