"""FiftyOne (https://docs.voxel51.com): samples with masks per frame, intervals of visibility, and a model for datasets.

FiftyOne counts frames from 1: its frame number is the frame's index in the video plus 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refervos.errors import MissingDependencyError, PromptError
from refervos.integrations.run_lengths import Box
from refervos.segmentation import Segmentation
from refervos.session.session import Session
from refervos.video.frames import Frame
from refervos.video.tracks import check_fit

try:
    import fiftyone
    from fiftyone.core.models import Model, SamplesMixin
except ImportError as error:
    raise MissingDependencyError("samples for FiftyOne need fiftyone: pip install 'refervos[fiftyone]'.") from error


def to_sample(
    video: str | Path, frames: Iterable[tuple[Frame, Segmentation]], *, field: str = "refervos"
) -> fiftyone.Sample:
    """Make a sample of a video with its masks; it needs no database.

    Args:
        video: Path of the video file.
        frames: Its frames with their segmentations, in order.
        field: Name of the field of the sample and of its frames.

    Returns:
        A sample whose frames have ``Detections`` (see ``to_detections``), and which itself has ``TemporalDetections``:
        for each track the intervals of frame numbers in which its mask is not empty. A frame that was not segmented
        ends an interval.

    Raises:
        VideoError: A segmentation does not fit its frame.
    """
    sample = fiftyone.Sample(filepath=str(video))
    instances: dict[int, fiftyone.Instance] = {}
    visible: dict[tuple[int, str], list[int]] = {}
    for frame, segmentation in frames:
        check_fit(frame, segmentation)
        number = frame.index + 1
        detections = to_detections(segmentation, instances)
        sample.frames[number] = fiftyone.Frame(**{field: detections})
        for detection in detections.detections:
            visible.setdefault((detection.index, detection.label), []).append(number)
    sample[field] = fiftyone.TemporalDetections(
        detections=[
            fiftyone.TemporalDetection(label=label, support=[first, last])
            for (_, label), numbers in visible.items()
            for first, last in _intervals(numbers)
        ]
    )
    return sample


def to_detections(
    segmentation: Segmentation, instances: dict[int, fiftyone.Instance] | None = None
) -> fiftyone.Detections:
    """Convert the segmentation of a frame or an image.

    Args:
        segmentation: Masks of one frame.
        instances: The instance of each track id, which links its detections in all frames; new ones are added.

    Returns:
        A detection for each mask that is not empty: ``label`` is its expression, ``index`` its track id, ``confidence``
        its presence, ``bounding_box`` relative to the frame, and ``mask`` bool, the mask inside of the box.
    """
    instances = {} if instances is None else instances
    detections = []
    for track, expression, mask, presence in zip(
        segmentation.track_ids, segmentation.expressions, segmentation.masks, segmentation.presence, strict=True
    ):
        if not mask.any():
            continue
        box = Box.around(mask)
        if track not in instances:
            instances[track] = fiftyone.Instance()
        detections.append(
            fiftyone.Detection(
                label=expression,
                index=track,
                confidence=float(presence),
                bounding_box=relative_box(box, mask.shape),
                mask=box.crop(mask).copy(),
                instance=instances[track],
            )
        )
    return fiftyone.Detections(detections=detections)


def relative_box(box: Box, shape: Sequence[int]) -> list[float]:
    """Convert a box to FiftyOne's x, y, width and height relative to the frame.

    FiftyOne converts relative positions to pixels by rounding down: 29 / 53 would become pixel 28. Therefore, the box
    starts a millionth of a pixel further right and down.

    Args:
        box: Box in pixels.
        shape: Height and width of the frame.

    Returns:
        x, y, width and height.
    """
    height, width = shape
    shift = 1e-6
    return [
        (box.left + shift) / width,
        (box.top + shift) / height,
        (box.right - box.left) / width,
        (box.bottom - box.top) / height,
    ]


def _intervals(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last number of each run of consecutive numbers."""
    breaks = [k for k in range(1, len(numbers)) if numbers[k] != numbers[k - 1] + 1]
    for begin, end in zip([0, *breaks], [*breaks, len(numbers)], strict=True):
        yield numbers[begin], numbers[end - 1]


class SentenceModel(SamplesMixin, Model):  # type: ignore[misc, unused-ignore]
    """Model for ``dataset.apply_model`` on videos: segments what sentences describe.

    The sentences are the same for all videos, or those in a field of each sample::

        dataset.apply_model(SentenceModel(model, ["the dog"]), "refervos")
        dataset.apply_model(SentenceModel(model, field="sentences"), "refervos")
    """

    def __init__(self, model: Any, sentences: Sequence[str] = (), *, field: str | None = None) -> None:
        """Choose the sentences.

        Args:
            model: A loaded model, see ``refervos.load``.
            sentences: Sentences for all videos.
            field: Field of the samples with further sentences: a string, a list of strings, or None.

        Raises:
            PromptError: There are neither sentences nor a field.
        """
        if not sentences and field is None:
            raise PromptError("there is no sentence; give sentences or the field of the samples that has them.")
        super().__init__()
        self._model = model
        self._sentences = list(sentences)
        self.needs_fields = {} if field is None else {"sentences": field}

    @property
    def media_type(self) -> str:
        """Kind of samples that the model is applied to."""
        return "video"

    def predict(self, arg: Any, sample: Any = None) -> dict[int, fiftyone.Detections]:
        """Segment a video, or the clips of it that the reader reads.

        Args:
            arg: FiftyOne's reader of the video.
            sample: The sample; needed if its sentences are in a field.

        Returns:
            The detections of each frame number, from 1.

        Raises:
            PromptError: The sample has no sentences, or the model does not accept one.
        """
        session: Session = self._model.open(self._sentences_of(sample))
        numbers: list[int] = []

        def images() -> Iterator[npt.NDArray[np.uint8]]:
            for image in arg:
                numbers.append(arg.frame_number)
                yield image

        instances: dict[int, fiftyone.Instance] = {}
        results = enumerate(session.stream(images()))
        return {numbers[k]: to_detections(segmentation, instances) for k, segmentation in results}

    def _sentences_of(self, sample: Any) -> list[str]:
        field = self.needs_fields.get("sentences")
        value = None if field is None or sample is None else sample[field]
        sentences = [*self._sentences, *([value] if isinstance(value, str) else value or [])]
        if not sentences:
            path = "the sample" if sample is None else f"'{sample.filepath}'"
            raise PromptError(f"{path} has no sentences; give some in its field '{field}'.")
        return sentences
