"""How single expressions were answered: their scores, and the small file that each is kept in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
from refervos.typed_config import config_from_mapping

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""The K of P@K."""


@dataclass(frozen=True)
class Scores:
    """How well one expression was answered, over its annotated frames. A frame without a mask scores 0.

    Attributes:
        frames: How many there are.
        j: Region similarity J in [0, 1], mean over the frames.
        f: Boundary accuracy F, likewise.
        visible: Frames in which the target shows.
        missed: Those of them that were answered with nothing.
        false_alarms: Frames without the target that were answered with something.
        target_size: Share of the frame that the target covers in (0, 1], mean over the frames that show it; None when
            none does.
        intersection: Pixels in both masks, sum over the frames.
        union: Pixels in either.
        above: Of the frames that show the target, those whose J is above each of ``PRECISION_THRESHOLDS``.
        t_iou: Temporal IoU of Long-RVOS.
        v_iou: Spatio-temporal IoU of Long-RVOS.
        robustness: R of ReVOS, mean over the frames; None for other benchmarks.
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

    @property
    def j_and_f(self) -> float:
        """Mean of J and F, in [0, 1]."""
        return (self.j + self.f) / 2


@dataclass(frozen=True)
class ExpressionResult:
    """How one expression was answered.

    Attributes:
        video: The video's id.
        expression_id: As the benchmark names it.
        expression: What was asked.
        kind: What kind of expression it is, where the benchmark tells.
        annotator: Who wrote it, where that matters.
        has_target: Whether it means anything; None where that is secret.
        frames: Length of the video T.
        missing: Of the annotated frames (of all, where the truth is secret), those without a mask.
        empty: Whether the prediction has no pixel in any frame; None when that is so because masks are missing.
        scores: None where the truth is secret.
        switches: Frames in which memory was rewritten.
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
    """What one annotated frame adds to an expression's scores; areas in pixels."""

    j: float
    f: float
    truth: int
    predicted: int
    intersection: int
    union: int
    pixels: int
    robustness: float | None = None


def score_expression(
    sample: Sample, predictions: Predictions, *, switches: int = 0, seconds: float = 0.0
) -> ExpressionResult:
    """Compare the masks in files with what an expression means.

    Args:
        sample: The expression.
        predictions: The masks.
        switches: How often memory was rewritten.
        seconds: Time the model took.

    Returns:
        Its result.

    Raises:
        DataError: When the truth cannot be read.
        EvaluationError: When a mask is damaged, not binary, or not of the truth's size.
    """
    names = sample.video.frames.names
    there = predictions.names(sample)
    truth = sample.ground_truth
    scored = range(len(names)) if truth is None else truth.annotated
    if scored and scored[-1] >= len(names):
        raise DataError(
            f"video {sample.video.id} has {len(names)} frames, but there is a mask of frame {scored[-1] + 1}."
        )
    missing = sum(names[index] not in there for index in scored)
    frames: list[_Frame] = []
    if truth is not None:
        for indices in batches(scored, FRAMES_AT_ONCE):
            masks = [truth.mask(index) for index in indices]
            answers = [
                predictions.mask(sample, names[index], mask.shape) if names[index] in there else None
                for index, mask in zip(indices, masks, strict=True)
            ]
            frames += _score_frames(truth, indices, masks, answers)
    found = any(frame.predicted for frame in frames) or _finds_anything(sample, predictions, there, truth)
    return ExpressionResult(
        video=sample.video.id,
        expression_id=sample.expression_id,
        expression=sample.expression,
        kind=sample.kind,
        annotator=sample.annotator,
        has_target=sample.has_target,
        frames=len(names),
        missing=missing,
        empty=False if found else None if missing else True,
        scores=_summed(frames) if frames else None,
        switches=switches,
        seconds=seconds,
    )


def _finds_anything(sample: Sample, predictions: Predictions, there: frozenset[str], truth: GroundTruth | None) -> bool:
    """Whether any frame that is not annotated was answered with something."""
    annotated = set() if truth is None else set(truth.annotated)
    others = (name for index, name in enumerate(sample.video.frames.names) if index not in annotated)
    return any(name in there and bool(predictions.mask(sample, name).any()) for name in others)


def _score_frames(
    truth: GroundTruth, indices: list[int], masks: list[Mask], answers: list[Mask | None]
) -> list[_Frame]:
    """Score up to eight frames; those without an answer as 0."""
    voids = [truth.void(index) for index in indices]
    predicted = [np.zeros_like(mask) if answer is None else answer for mask, answer in zip(masks, answers, strict=True)]
    j, f = video_scores(masks, predicted, voids)
    frames = []
    for place, (index, mask, void) in enumerate(zip(indices, masks, voids, strict=True)):
        missing = answers[place] is None
        counted = np.True_ if void is None else ~void
        meant, answered = mask & counted, predicted[place] & counted
        shared = overlap(meant, answered)
        frames.append(
            _Frame(
                j=0.0 if missing else float(j[place]),
                f=0.0 if missing else float(f[place]),
                truth=int(np.count_nonzero(meant)),
                predicted=int(np.count_nonzero(answered)),
                intersection=shared.intersection,
                union=shared.union,
                pixels=mask.size,
                robustness=_robustness(truth, index, mask, answers[place]),
            )
        )
    return frames


def _robustness(truth: GroundTruth, index: int, mask: Mask, answer: Mask | None) -> float | None:
    """R of a frame of ReVOS whose foreground is known."""
    if not isinstance(truth, RevosGroundTruth) or truth.all_objects is None:
        return None
    return 0.0 if answer is None else robustness(mask, answer, truth.foreground(index))


def _summed(frames: list[_Frame]) -> Scores:
    j = np.array([frame.j for frame in frames])
    shown = np.array([frame.truth > 0 for frame in frames])
    answered = np.array([frame.predicted > 0 for frame in frames])
    sizes = [frame.truth / frame.pixels for frame in frames if frame.truth]
    robust = [frame.robustness for frame in frames if frame.robustness is not None]
    return Scores(
        frames=len(frames),
        j=float(j.mean()),
        f=float(np.mean([frame.f for frame in frames])),
        visible=int(np.count_nonzero(shown)),
        missed=int(np.count_nonzero(shown & ~answered)),
        false_alarms=int(np.count_nonzero(~shown & answered)),
        target_size=float(np.mean(sizes)) if sizes else None,
        intersection=sum(frame.intersection for frame in frames),
        union=sum(frame.union for frame in frames),
        above=tuple(int(np.count_nonzero(j[shown] > threshold)) for threshold in PRECISION_THRESHOLDS),
        t_iou=temporal_iou(shown, answered),
        v_iou=video_iou(j, shown, answered),
        robustness=float(np.mean(robust)) if robust else None,
    )


def read_result(path: Path) -> ExpressionResult:
    """Read an ``ExpressionResult`` from the file that ``refervos eval`` wrote it to.

    Raises:
        EvaluationError: When there is no such file, or it holds something else.
    """
    return result_from(read_json(path), ExpressionResult, path)


def save_json(values: Any, path: Path) -> None:
    """Write plain values; the file is there complete or not at all."""
    write_atomically(path, (json.dumps(values, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read plain values.

    Raises:
        EvaluationError: When there is no such file, or it is no JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"), str(path), EvaluationError)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not valid JSON ({error}).") from error


def result_from(values: Any, kind: type[Any], path: Path) -> Any:
    """Turn plain values into a dataclass.

    Raises:
        EvaluationError: When they do not fit.
    """
    if not isinstance(values, dict):
        raise EvaluationError(f"{path} holds no result of 'refervos eval'; remove it, and it is made again.")
    try:
        return config_from_mapping(kind, values, str(path))
    except ConfigError as error:
        raise EvaluationError(str(error)) from error
