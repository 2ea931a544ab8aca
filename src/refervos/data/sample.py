"""Videos, referring expressions and ground-truth masks, the same for every benchmark.

Everything is read on demand: a video is a list of file names, and a mask is decoded when it is requested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from refervos.data.conversations import Conversation

ImageArray = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


class Frames(Protocol):
    """The frames of a video, read one by one, in any order."""

    @property
    def names(self) -> Sequence[str]:
        """Name of each of the T frames, in order, as in the benchmark's submissions (``00000``)."""
        ...

    def read(self, index: int) -> ImageArray:
        """Read one frame.

        Args:
            index: From 0 to T - 1.

        Returns:
            uint8 RGB (H, W, 3), upright.

        Raises:
            DataError: When the file is missing or not an image.
        """
        ...


class GroundTruth(Protocol):
    """Ground-truth masks of an expression, read one by one, in any order."""

    @property
    def annotated(self) -> Sequence[int]:
        """Indices of the annotated frames, ascending; only these are scored."""
        ...

    def mask(self, index: int) -> Mask:
        """Read the mask of one annotated frame: the union of all target objects.

        Args:
            index: One of ``annotated``.

        Returns:
            bool (H, W), all False when there is no target or none is visible.

        Raises:
            DataError: When it is missing, damaged, or not of the video's size.
        """
        ...

    def void(self, index: int) -> Mask | None:
        """Read the void pixels of one annotated frame, bool (H, W), which are not scored; None when there are none."""
        ...


@dataclass(frozen=True, eq=False)
class Video:
    """A video; an image is a video of one frame.

    Attributes:
        id: The benchmark's id, also the name of its folder in submissions.
        frames: Its frames.
        size: Height and width when the annotations state them, else None.
    """

    id: str
    frames: Frames
    size: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Number of frames T."""
        return len(self.frames.names)


@dataclass(frozen=True, eq=False)
class Sample:
    """A referring expression about a video, with its ground truth.

    Attributes:
        video: The video; all samples of a video share one object.
        expression_id: The benchmark's id, unique within the video, also the name of its folder in submissions.
        sentence: Text of the expression, or a function that returns it when that is expensive; see ``expression``.
        ground_truth: Masks of the target; None when they are secret (test splits).
        has_target: Whether the expression refers to anything in the video; None when that is secret.
        kind: Kind of expression, in benchmarks that distinguish kinds (``static``, ``reasoning``...).
        object_ids: The benchmark's ids of the target objects, if known. Samples of a video with equal ids have the same
            target.
        annotator: Author of the expression, in benchmarks that score annotators separately (Ref-DAVIS17: ``0`` to
            ``3``).
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
        """Text of the expression."""
        return self.sentence if isinstance(self.sentence, str) else self.sentence()

    @property
    def key(self) -> tuple[str, str]:
        """Ids of the video and the expression, a unique pair in a data set."""
        return self.video.id, self.expression_id


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a benchmark.

    Attributes:
        name: Name of the benchmark on the command line (``mevis``).
        split: Name of the split (``valid_u``).
        samples: All expressions; those about one video are adjacent.
        conversations: Conversations of a grounded conversation data set, whose phrases are the samples; else none.
    """

    name: str
    split: str
    samples: tuple[Sample, ...] = field(repr=False)
    conversations: tuple[Conversation, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        """Number of expressions."""
        return len(self.samples)

    def videos(self) -> Iterator[tuple[Video, list[Sample]]]:
        """Group the samples by video, so that each frame needs to be read only once.

        Yields:
            Videos with their samples, in the order of the samples.
        """
        by_video: dict[str, list[Sample]] = {}
        for sample in self.samples:
            by_video.setdefault(sample.video.id, []).append(sample)
        for samples in by_video.values():
            yield samples[0].video, samples
