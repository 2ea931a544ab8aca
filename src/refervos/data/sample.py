"""What every benchmark gives: videos, the expressions asked about them, and the masks these mean.

Nothing here is in memory until it is read: a video is a list of file names, a mask is decoded when it is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

ImageArray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class Frames(Protocol):
    """The frames of a video, read one by one, in any order."""

    @property
    def names(self) -> Sequence[str]:
        """Name of each frame as the benchmark's submissions want it (``00000``), in order; its length is T."""
        ...

    def read(self, index: int) -> ImageArray:
        """Read one frame.

        Args:
            index: From 0 to T - 1.

        Returns:
            uint8 RGB (H, W, 3), upright.

        Raises:
            DataError: When the file is missing or no image.
        """
        ...


class GroundTruth(Protocol):
    """The masks that an expression means, read one by one, in any order."""

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of the frames that are annotated, ascending. Scores are taken over these only."""
        ...

    def mask(self, index: int) -> Mask:
        """Read the mask in one annotated frame: the union of all objects that the expression means.

        Args:
            index: One of ``annotated``.

        Returns:
            bool (H, W), all False where nothing is meant or visible.

        Raises:
            DataError: When it is missing, damaged, or not of the video's size.
        """
        ...

    def void(self, index: int) -> Mask | None:
        """Pixels of one annotated frame that do not count, bool (H, W); None where all do."""
        ...


@dataclass(frozen=True, eq=False)
class Video:
    """A video, or an image, which is a video of one frame.

    Attributes:
        id: As the benchmark names it; also the name of its folder in submissions.
        frames: Its frames.
        size: Height and width where the benchmark tells them without a frame being read, else None.
    """

    id: str
    frames: Frames
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Number of frames T."""
        return len(self.frames.names)


@dataclass(frozen=True, eq=False)
class Sample:
    """An expression about a video.

    Attributes:
        video: The video; samples about the same video share the same object.
        expression_id: As the benchmark names it, unique within the video; the name of its folder in submissions.
        sentence: What is asked, or a function that tells it where finding out takes time; see ``expression``.
        truth: What it means; None where that is kept secret (test splits).
        has_target: Whether it means anything in the video; None where that is kept secret.
        kind: What kind of expression it is, where the benchmark tells kinds apart (``static``, ``reasoning``...).
        object_ids: The benchmark's ids of the objects meant, as far as known. Samples of the same video with the same
            ids mean the same.
        annotator: Who wrote it, where the benchmark scores annotators apart (Ref-DAVIS17: ``0`` to ``3``).
    """

    video: Video
    expression_id: str
    sentence: str | Callable[[], str]
    ground_truth: GroundTruth | None = None
    has_target: bool | None = None
    kind: str | None = None
    object_ids: tuple[str, ...] = ()
    annotator: str | None = None

    @property
    def expression(self) -> str:
        """What is asked."""
        return self.sentence if isinstance(self.sentence, str) else self.sentence()

    @property
    def key(self) -> tuple[str, str]:
        """Video and expression, which together are unique in a data set."""
        return self.video.id, self.expression_id


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a benchmark.

    Attributes:
        name: Of the benchmark, as ``refervos`` names it (``mevis``).
        split: Of the benchmark (``valid_u``).
        samples: All expressions, those about one video next to each other.
    """

    name: str
    split: str
    samples: tuple[Sample, ...] = field(repr=False)

    def __len__(self) -> int:
        """Number of expressions."""
        return len(self.samples)

    def videos(self) -> Iterator[tuple[Video, list[Sample]]]:
        """Each video with all its expressions, so that its frames need be read once only.

        Yields:
            Videos in the order of the samples.
        """
        together: dict[str, list[Sample]] = {}
        for sample in self.samples:
            together.setdefault(sample.video.id, []).append(sample)
        for samples in together.values():
            yield samples[0].video, samples
