"""Ref-DAVIS17 as published: one annotator's answers about a video are merged, then matched to the objects.

Merging needs to know how sure the model is of each pixel, which masks do not tell. So ``refervos eval`` writes the
merged answers beside the masks: ``<video>/<annotator>/<frame>.png``, 0 where there is nothing and k in the k-th answer.
Where only masks are there, a pixel in several of them goes to the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from refervos.data.ground_truth import NumberedPixels
from refervos.data.layouts.ref_davis import NAME
from refervos.data.sample import Mask, Sample
from refervos.errors import EvaluationError
from refervos.evaluation.datasets import OpenPart
from refervos.evaluation.predictions import Predictions, png, read_numbers, stems
from refervos.metrics.ref_davis import matched_scores, merge_objects
from refervos.video.sinks import davis_palette


@dataclass(frozen=True)
class MatchedResult:
    """How one annotator's expressions about a video were answered, by the published protocol.

    Attributes:
        video: The video's id.
        annotator: Who wrote the expressions.
        j: J of each object in [0, 1], mean over all frames.
        f: F, likewise.
    """

    video: str
    annotator: str
    j: tuple[float, ...]
    f: tuple[float, ...]


def by_annotator(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The expressions about one video, annotator by annotator."""
    told: dict[str, list[Sample]] = {}
    for sample in samples:
        told.setdefault(str(sample.annotator), []).append(sample)
    return told


def matches(part: OpenPart) -> bool:
    """Whether a benchmark is scored by this protocol, too."""
    return part.scoring == NAME


def annotators(part: OpenPart) -> list[tuple[str, str]]:
    """Every video with each of its annotators; none for benchmarks that are not scored by this protocol."""
    return [(video.id, one) for video, samples in part.videos for one in by_annotator(samples)] if matches(part) else []


def merged_png(probabilities: npt.NDArray[np.float32]) -> bytes:
    """Merge one annotator's answers in one frame.

    Args:
        probabilities: How sure the model is, (N, H, W) in [0, 1].

    Returns:
        A PNG with the palette of DAVIS.
    """
    numbers = np.zeros(probabilities.shape[1:], dtype=np.uint8)
    for number, mask in enumerate(merge_objects(probabilities), start=1):
        numbers[mask] = number
    image = Image.fromarray(numbers)
    image.putpalette(davis_palette().tobytes())
    return png(image)


def score_matched(samples: Sequence[Sample], predictions: Predictions, merged: Path | None) -> MatchedResult:
    """Score the answers to one annotator's expressions about a video.

    Args:
        samples: The expressions, in the order of the objects that they are about.
        predictions: The masks; frames without one count as answered with nothing.
        merged: The folder of the merged answers, None where they are to be merged from the masks.

    Returns:
        The scores of all objects of the video, also those without an expression.

    Raises:
        DataError: When the truth cannot be read.
        EvaluationError: When it does not tell the video's objects apart, or a mask is damaged or of another size.
        MissingDependencyError: When SciPy is not installed.
    """
    first, video = samples[0], samples[0].video
    truth = first.ground_truth
    if not isinstance(truth, NumberedPixels):
        raise EvaluationError(f"the truth about {video.id} does not tell objects apart, which matching needs.")
    indices = truth.annotated
    objects = int(_without_void(truth, indices[0]).max(initial=0))
    scored = matched_scores(
        (_separate(_without_void(truth, index), objects) for index in indices),
        _answers(samples, truth, predictions, merged),
        (truth.void(index) for index in indices),
    )
    return MatchedResult(
        video=video.id,
        annotator=str(first.annotator),
        j=tuple(float(one.j.mean()) for one in scored),
        f=tuple(float(one.f.mean()) for one in scored),
    )


def _answers(
    samples: Sequence[Sample], truth: NumberedPixels, predictions: Predictions, merged: Path | None
) -> Iterator[Mask]:
    """The merged answers, bool (N, H, W) of each frame."""
    size, names = truth.frames.size, samples[0].video.frames.names
    there = [predictions.names(sample) for sample in samples] if merged is None else [stems(merged)]
    for index in truth.annotated:
        name = names[index]
        if merged is not None:
            path = merged / f"{name}.png"
            numbers = read_numbers(path, size) if name in there[0] else np.zeros(size, np.uint8)
            if numbers.max(initial=0) > len(samples):
                raise EvaluationError(
                    f"{path} holds the number {numbers.max()}, but there are {len(samples)} expressions of annotator "
                    f"{samples[0].annotator} about video {samples[0].video.id}."
                )
            yield _separate(numbers, len(samples))
        else:
            masks = [
                predictions.mask(sample, name, size) if name in own else np.zeros(size, dtype=np.bool_)
                for sample, own in zip(samples, there, strict=True)
            ]
            yield merge_objects(np.stack(masks))


def _without_void(truth: NumberedPixels, index: int) -> npt.NDArray[np.uint8]:
    numbers = truth.numbers(index)
    return np.where(numbers == truth.void_number, np.uint8(0), numbers)


def _separate(numbers: npt.NDArray[np.uint8], count: int) -> Mask:
    """Masks of the first so many numbers (count, H, W)."""
    return numbers == np.arange(1, count + 1, dtype=np.uint8)[:, None, None]
