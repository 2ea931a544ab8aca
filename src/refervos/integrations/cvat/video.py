"""Export to "CVAT for video 1.1": a track of brush masks per object.

The format is described at https://docs.cvat.ai/docs/dataset_management/formats/format-xml/; ``data/layouts/cvat.py``
reads it. Frame numbers are those of the video, which are CVAT's for a task of the whole video with a frame step of 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from refervos.integrations.exports import ExportSink, ObjectLines
from refervos.integrations.run_lengths import Box, Mask, row_runs
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame, SourceInfo

MAX_LABEL = 64
"""Largest number of characters of a label in CVAT."""

_NOT_XML = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


class CvatSink(ExportSink):
    """Sink for ``annotations.xml``, which CVAT imports into a task of the same video, and ``labels.json`` for the task.

    A label is an expression, shortened to the 64 characters that CVAT allows; the attribute ``expression`` is complete.
    In the first frame in which an object is no longer visible, its track has a shape that is outside. CVAT has no place
    for times and presences; frames have their numbers only.
    """

    main_file = "annotations.xml"

    def __init__(self, folder: str | Path, source: SourceInfo, *, overwrite: bool = False) -> None:
        """Open the output; see ``ExportSink``."""
        super().__init__(folder, source, overwrite=overwrite)
        self._lines = ObjectLines(self._part.temporary)
        self._shown: dict[int, str] = {}  # the shape of each object that is visible in the last frame
        self._last = -1

    def abort(self) -> None:
        """Delete the unfinished export; does nothing once closed."""
        self._lines.close()
        super().abort()

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        shapes = {self._object(segmentation, k): mask for k, mask in enumerate(segmentation.masks)}
        self._hide(set(self._shown) - {number for number, mask in shapes.items() if mask.any()}, frame.index)
        for number, mask in shapes.items():
            if mask.any():
                self._shown[number] = _geometry(mask)
                self._add_shape(number, frame.index, outside=False)
        self._last = frame.index

    def _hide(self, numbers: Iterable[int], frame: int) -> None:
        """End the visibility of objects with a shape that is outside, which repeats the shape before."""
        for number in numbers:
            self._add_shape(number, frame, outside=True)
            del self._shown[number]

    def _add_shape(self, number: int, frame: int, *, outside: bool) -> None:
        expression = escape(" ".join(_xml_text(self._expressions[number]).split()))
        state = f'frame="{frame}" keyframe="1" outside="{int(outside)}" occluded="0" z_order="0"'
        attribute = f'<attribute name="expression">{expression}</attribute>'
        self._lines.append(number, f"<mask {state} {self._shown[number]}>{attribute}</mask>")

    def _finish(self) -> None:
        # Without an end CVAT would repeat the last mask to the end of the video. A container's number of frames may be
        # an estimate, and CVAT refuses shapes after the last frame.
        count = self._source.frame_count
        if count is not None and self._last + 2 < count:
            self._hide(list(self._shown), self._last + 1)
        with self._path(self.main_file).open("w", encoding="utf-8", newline="\n") as file:
            file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
            file.write(ElementTree.tostring(self._meta(), encoding="unicode") + "\n")
            for number, expression in enumerate(self._expressions):
                lines = self._lines.of(number)
                first = next(lines, None)
                if first is None:
                    continue  # never visible: CVAT has no tracks without shapes
                file.write(f'<track id="{number}" label={quoteattr(label_of(expression))} source="auto">\n{first}\n')
                file.writelines(f"{line}\n" for line in lines)
                file.write("</track>\n")
            file.write("</annotations>\n")
        self._save_json("labels.json", self._labels())
        self._lines.close()

    def _labels(self) -> list[dict[str, Any]]:
        """Return the labels as CVAT's raw editor and ``cvat-cli task create --labels`` take them."""
        attribute = {"name": "expression", "mutable": True, "input_type": "text", "default_value": "", "values": [""]}
        return [
            {"name": label, "type": "any", "attributes": [attribute]}
            for label in dict.fromkeys(map(label_of, self._expressions))
        ]

    def _meta(self) -> ElementTree.Element:
        """Return the description of the task."""
        assert self._size is not None
        meta = ElementTree.Element("meta")
        task = ElementTree.SubElement(meta, "task")
        source = self._source.path.name if self._source.path is not None else self._source.name
        _fill(
            task,
            {
                "name": _xml_text(self._video),
                "size": self._last + 1,
                "mode": "interpolation",
                "start_frame": 0,
                "stop_frame": self._last,
                "frame_filter": "",
                "original_size": {"width": self._size[1], "height": self._size[0]},
                "source": _xml_text(source),
            },
        )
        labels = ElementTree.SubElement(task, "labels")
        for label in self._labels():
            attributes = [{**each, "mutable": "True", "values": ""} for each in label["attributes"]]
            element = ElementTree.SubElement(labels, "label")
            _fill(element, {"name": label["name"], "type": label["type"]})
            for attribute in attributes:
                _fill(ElementTree.SubElement(element, "attributes"), {"attribute": attribute})
        return meta


def label_of(expression: str) -> str:
    """Return the label of an expression: itself in one line, shortened to what CVAT allows.

    Args:
        expression: The expression.

    Returns:
        At most 64 characters, without those that XML cannot hold.
    """
    text = " ".join(_xml_text(expression).split())
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1].rstrip() + "…"


def _xml_text(text: str) -> str:
    """Replace the characters that XML cannot hold."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _fill(element: ElementTree.Element, values: Mapping[str, Any]) -> None:
    """Add a child for each value, which is text, a number or a mapping of further children."""
    for name, value in values.items():
        child = ElementTree.SubElement(element, name)
        if isinstance(value, Mapping):
            _fill(child, value)
        else:
            child.text = str(value)


def _geometry(mask: Mask) -> str:
    """Return the attributes of a brush mask: its box, and runs along the rows of the box, the first of background."""
    box = Box.around(mask)
    runs = ", ".join(map(str, row_runs(box.crop(mask))))
    width, height = box.right - box.left, box.bottom - box.top
    return f'rle="{runs}" left="{box.left}" top="{box.top}" width="{width}" height="{height}"'
