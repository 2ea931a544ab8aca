"""The labelling configuration of a project: which sentences, on what, under which names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from refervos.errors import DataError, require_installed
from refervos.integrations.label_studio.results import DEFAULT_FRAME_RATE

MAX_CHARACTERS = 1_000_000
"""Longest configuration that is read."""


@dataclass(frozen=True)
class LabelConfig:
    """Labelling configuration of a project, as far as it concerns masks and rectangles.

    Attributes:
        kind: ``image`` for brush masks, ``video`` for rectangles.
        from_name: Name of the control tag.
        to_name: Name of the ``Image`` or ``Video`` tag.
        field: Field of a task's data with the address of the image or video.
        sentences: The labels, which are the sentences.
        rate: ``frameRate`` of the ``Video`` tag: a number, or ``$`` with a field of a task's data.
    """

    kind: Literal["image", "video"]
    from_name: str
    to_name: str
    field: str
    sentences: tuple[str, ...]
    rate: str = ""

    def frame_rate(self, data: Mapping[str, Any]) -> float:
        """Return the frames per second with which Label Studio numbers the frames of a task.

        Args:
            data: The task's data.

        Raises:
            DataError: It is not a positive number.
        """
        value = data.get(self.rate[1:]) if self.rate.startswith("$") else self.rate or DEFAULT_FRAME_RATE
        try:
            rate = float(value or 0)
        except (TypeError, ValueError):
            rate = 0.0
        if not (math.isfinite(rate) and rate > 0):
            raise DataError(f"frameRate of the video '{self.to_name}' is {value!r}; it must be a positive number.")
        return rate


def read_label_config(text: str) -> LabelConfig:
    """Read a labelling configuration.

    Args:
        text: The XML of the configuration.

    Returns:
        Its brush labels over an image, or its rectangles in a video.

    Raises:
        DataError: It is not XML, or has neither.
        MissingDependencyError: defusedxml is not installed.
    """
    require_installed("the backend of Label Studio", "labelstudio", "defusedxml")
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException, ElementTree

    if len(text) > MAX_CHARACTERS:
        raise DataError(f"the labelling configuration has more than {MAX_CHARACTERS:,} characters; shorten it.")
    try:
        root = ElementTree.fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise DataError(f"the labelling configuration is not valid XML ({error}).") from error
    for kind, control, labels, shown in (
        ("image", "BrushLabels", "BrushLabels", "Image"),
        ("video", "VideoRectangle", "Labels", "Video"),
    ):
        for tag in root.iter(control):
            to_name = tag.get("toName", "")
            media = next((each for each in root.iter(shown) if each.get("name") == to_name), None)
            if media is None or not tag.get("name") or not media.get("value", "").startswith("$"):
                continue
            listed = [each for each in root.iter(labels) if each.get("toName") == to_name]
            sentences = [label.get("value", "").strip() for each in listed for label in each.iter("Label")]
            chosen = tuple(dict.fromkeys(sentence for sentence in sentences if sentence))
            if chosen:
                return LabelConfig(
                    "image" if kind == "image" else "video",
                    tag.attrib["name"],
                    to_name,
                    media.attrib["value"][1:],
                    chosen,
                    media.get("frameRate", media.get("framerate", "")),
                )
    raise DataError(
        "the labelling configuration has no sentences to follow; give it <BrushLabels> over an <Image>, or a "
        "<VideoRectangle> and <Labels> over a <Video>, whose labels are sentences."
    )
