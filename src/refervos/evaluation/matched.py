"""Published protocol of Ref-DAVIS17: one annotator's predictions for a video are merged, then matched to the objects.

Merging needs the probability of each pixel, which masks do not contain. ``refervos eval`` therefore writes the merged
predictions beside the masks: ``<video>/<annotator>/<frame>.png``, with k in the k-th prediction and 0 elsewhere. From
masks alone, a pixel in several of them goes to the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from refervos.data.ground_truth import IndexedMasks
from refervos.data.layouts.ref_davis import NAME
from refervos.data.sample import Mask, Sample
from refervos.errors import EvaluationError
from refervos.evaluation.datasets import OpenPart
from refervos.evaluation.predictions import Predictions, png, read_numbers, stems
from refervos.metrics.ref_davis import matched_scores, merge_objects
from refervos.video.sinks import davis_palette


@dataclass(frozen=True)
class MatchedResult:
    """Result of one annotator's expressions about a video by the published protocol.

    Attributes:
        video: Id of the video.
        annotator: Author of the expressions.
        j: J of each object in [0, 1], mean over all frames.
        f: F, likewise.
    """

    video: str
    annotator: str
    j: tuple[float, ...]
    f: tuple[float, ...]


def by_annotator(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Group the expressions about one video by annotator."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(str(sample.annotator), []).append(sample)
    return groups


def uses_matching(part: OpenPart) -> bool:
    """Check if a benchmark is also scored by this protocol."""
    return part.scoring == NAME


def annotators(part: OpenPart) -> list[tuple[str, str]]:
    """List all pairs of video and annotator; empty for benchmarks that are not scored by this protocol."""
    return (
        [(video.id, one) for video, samples in part.videos for one in by_annotator(samples)]
        if uses_matching(part)
        else []
    )


def merged_png(probabilities: npt.NDArray[np.float32]) -> bytes:
    """Merge one annotator's predictions for one frame.

    Args:
        probabilities: Mask probabilities (N, H, W) in [0, 1].

    Returns:
        The content of a PNG file with the palette of DAVIS.
    """
    numbers = np.zeros(probabilities.shape[1:], dtype=np.uint8)
    for number, mask in enumerate(merge_objects(probabilities), start=1):
        numbers[mask] = number
    image = Image.fromarray(numbers)
    image.putpalette(davis_palette().tobytes())
    return png(image)


def score_matched(samples: Sequence[Sample], predictions: Predictions, merged: Path | None) -> MatchedResult:
    """Score the predictions for one annotator's expressions about a video.

    Args:
        samples: The expressions, in the order of their objects.
        predictions: The masks; frames without one count as empty.
        merged: Folder of the merged predictions; None to merge the masks.

    Returns:
        The scores of all objects of the video, including those without an expression.

    Raises:
        DataError: When the ground truth cannot be read.
        EvaluationError: When it does not label the video's objects, or a mask is damaged or of another size.
        MissingDependencyError: When SciPy is not installed.
    """
    first, video = samples[0], samples[0].video
    ground_truth = first.ground_truth
    if not isinstance(ground_truth, IndexedMasks):
        raise EvaluationError(f"the ground truth of {video.id} does not label its objects, which matching needs.")
    indices = ground_truth.annotated
    objects = int(_without_void(ground_truth, indices[0]).max(initial=0))
    scored = matched_scores(
        (_separate(_without_void(ground_truth, index), objects) for index in indices),
        _merged_masks(samples, ground_truth, predictions, merged),
        (ground_truth.void(index) for index in indices),
    )
    return MatchedResult(
        video=video.id,
        annotator=str(first.annotator),
        j=tuple(float(one.j.mean()) for one in scored),
        f=tuple(float(one.f.mean()) for one in scored),
    )


def _merged_masks(
    samples: Sequence[Sample], ground_truth: IndexedMasks, predictions: Predictions, merged: Path | None
) -> Iterator[Mask]:
    """Yield the merged masks bool (N, H, W) of each frame."""
    size, names = ground_truth.frames.size, samples[0].video.frames.names
    predicted_names = [predictions.names(sample) for sample in samples] if merged is None else [stems(merged)]
    for index in ground_truth.annotated:
        name = names[index]
        if merged is not None:
            path = merged / f"{name}.png"
            numbers = read_numbers(path, size) if name in predicted_names[0] else np.zeros(size, np.uint8)
            if numbers.max(initial=0) > len(samples):
                raise EvaluationError(
                    f"{path} holds the number {numbers.max()}, but there are only {len(samples)} expressions of "
                    f"annotator {samples[0].annotator} about video {samples[0].video.id}."
                )
            yield _separate(numbers, len(samples))
        else:
            masks = [
                predictions.mask(sample, name, size) if name in own else np.zeros(size, dtype=np.bool_)
                for sample, own in zip(samples, predicted_names, strict=True)
            ]
            yield merge_objects(np.stack(masks))


def _without_void(ground_truth: IndexedMasks, index: int) -> npt.NDArray[np.uint8]:
    """Read the object numbers of a frame; void pixels are 0."""
    numbers = ground_truth.numbers(index)
    return np.where(numbers == ground_truth.void_number, np.uint8(0), numbers)


def _separate(numbers: npt.NDArray[np.uint8], count: int) -> Mask:
    """Return the masks of the numbers 1 to ``count``, bool (count, H, W)."""
    return numbers == np.arange(1, count + 1, dtype=np.uint8)[:, None, None]
