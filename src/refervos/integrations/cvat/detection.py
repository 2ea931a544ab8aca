"""CVAT's automatic annotation by sentences: the label's name is the sentence.

    cvat-cli task auto-annotate ID --function-module refervos.integrations.cvat.detection -p "sentences=str:the dog"

CVAT calls the function frame by frame. Frames in order belong to one session, which follows the objects through the
video; after a jump the session starts anew.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from refervos.errors import PromptError
from refervos.files.images import rgb_from_pil
from refervos.integrations.cvat.models import load_for_sentences
from refervos.integrations.cvat.video import label_of
from refervos.integrations.outlines import outlines_around_pixels

if TYPE_CHECKING:
    from cvat_sdk.auto_annotation import DetectionFunctionContext, DetectionFunctionSpec
    from cvat_sdk.models import LabeledShapeRequest

    from refervos.session.session import Session

SEPARATOR = "|"
"""Separator of the sentences in the parameter ``sentences``."""


def create(sentences: str, model: str = "miniature", device: str | None = None, step: int = 1) -> SentenceDetection:
    """Create the function; CVAT's command line calls it with the parameters ``-p NAME=TYPE:VALUE``.

    Args:
        sentences: One or more sentences, separated by ``|``.
        model: See ``refervos.load``.
        device: Device such as ``cpu`` or ``cuda``; default a GPU if available.
        step: Difference between the numbers of consecutive frames: the frame step of the task.

    Returns:
        The function.

    Raises:
        MissingDependencyError: CVAT's SDK is not installed.
        PromptError: There is no sentence, two have the same label, or the model does not accept one.
        CheckpointError: The model cannot be loaded.
    """
    listed = [sentence.strip() for sentence in sentences.split(SEPARATOR) if sentence.strip()]
    if not listed:
        raise PromptError("sentences is empty; give one or more sentences, separated by '|'.")
    return SentenceDetection(load_for_sentences(model, device, listed), listed, step)


class SentenceDetection:
    """Detection function of CVAT: masks of the objects that sentences refer to.

    Args:
        model: A model that follows sentences.
        sentences: The sentences. Each has the label of its name, shortened to 64 characters.
        step: Difference between the numbers of consecutive frames.

    Raises:
        PromptError: When two sentences have the same label.
    """

    def __init__(self, model: Any, sentences: Sequence[str], step: int = 1) -> None:
        self._labels = [label_of(sentence) for sentence in sentences]
        for label in self._labels:
            if self._labels.count(label) > 1:
                raise PromptError(f"two sentences have the label {label!r}; CVAT needs a label of its own for each.")
        self._model, self._sentences, self._step = model, list(sentences), step
        self._session: Session | None = None
        self._position: tuple[str, int, tuple[int, int]] | None = None

    @property
    def spec(self) -> DetectionFunctionSpec:
        """The labels of the function."""
        import cvat_sdk.auto_annotation as cvataa

        labels = [cvataa.label_spec(label, number, type="mask") for number, label in enumerate(self._labels)]
        return cvataa.DetectionFunctionSpec(labels=labels)

    def detect(self, context: DetectionFunctionContext, image: Image.Image) -> list[LabeledShapeRequest]:
        """Segment a frame.

        Args:
            context: The frame's name, the least presence, and whether masks must be polygons.
            image: The frame.

        Returns:
            A mask for each visible object, or polygons that cover its pixels.
        """
        import cvat_sdk.auto_annotation as cvataa
        from cvat_sdk.masks import encode_mask

        result = self._session_at(context.frame_name, image.size).step(rgb_from_pil(image))
        least = context.conf_threshold or 0.0
        shapes: list[LabeledShapeRequest] = []
        for label, (mask, presence) in enumerate(zip(result.masks, result.presence, strict=True)):
            if not mask.any() or presence < least:
                continue
            if context.conv_mask_to_poly:
                outlines = outlines_around_pixels(mask)
                # CVAT shows the polygons of a group as one object.
                group = label + 1 if len(outlines) > 1 else 0
                shapes += [
                    cvataa.polygon(label, np.array(outline, float).ravel().tolist(), group=group)
                    for outline in outlines
                ]
            else:
                shapes.append(cvataa.mask(label, encode_mask(mask)))
        return shapes

    def _session_at(self, name: str, size: tuple[int, int]) -> Session:
        """Return the session for a frame: the last one if the frame follows its last frame, else a new one."""
        found = re.search(r"(\d+)\D*$", name)
        position = None if found is None else (name[: found.start(1)], int(found[1]), size)
        follows = position is not None and self._position == (position[0], position[1] - self._step, size)
        if self._session is None or not follows:
            self._session = self._model.open(self._sentences)
        self._position = position
        return self._session
