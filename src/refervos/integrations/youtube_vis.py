"""Export to the JSON of YouTube-VIS (COCO video): an annotation per object, with a mask per frame.

The layout is that of https://youtube-vos.org/dataset/vis. Beside its fields, the export has ``frame_indices`` and
``times`` of the video, ``track_id`` and ``presences`` of each annotation, and ``expressions`` with their annotations,
as the data layout ``coco-video`` reads them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from refervos.integrations.exports import ExportSink, ObjectLines, json_text, rounded_presence, rounded_time
from refervos.integrations.run_lengths import coco_mask
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame, SourceInfo

_COLUMNS = ("segmentations", "areas", "bboxes", "presences")
"""Values of an object in each frame: lists of its annotation."""


class YoutubeVisSink(ExportSink):
    """Sink for a data set in YouTube-VIS's layout: ``annotations.json`` and ``JPEGImages/<video>/<frame>.jpg``.

    An annotation is an object, its category is its expression, and its ``segmentations`` are COCO run lengths, null in
    frames in which it is not visible. Its ``score`` is the mean presence in the frames in which it is.
    """

    main_file = "annotations.json"

    def __init__(self, folder: str | Path, source: SourceInfo, *, overwrite: bool = False) -> None:
        """Open the output; see ``ExportSink``."""
        super().__init__(folder, source, overwrite=overwrite)
        self._files: list[str] = []
        self._indices: list[int] = []
        self._times: list[float | None] = []
        self._lines = ObjectLines(self._part.temporary)

    def abort(self) -> None:
        """Delete the unfinished export; does nothing once closed."""
        self._lines.close()
        super().abort()

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        self._save_frame(f"JPEGImages/{self._video}/{name}.jpg", frame.image)
        self._files.append(f"{self._video}/{name}.jpg")
        self._indices.append(frame.index)
        self._times.append(rounded_time(frame))
        for k in range(len(segmentation.track_ids)):
            mask = coco_mask(segmentation.masks[k])
            values = (mask.segmentation, mask.area, mask.bbox) if mask else (None, None, None)
            line = json_text([self._count, *values, rounded_presence(segmentation, k)])
            self._lines.append(self._object(segmentation, k), line)

    def _finish(self) -> None:
        # Annotations are written value by value, because those of a long video need not fit into memory.
        with self._path(self.main_file).open("w", encoding="utf-8", newline="\n") as file:
            file.write(json_text(self._head())[:-1] + ', "annotations": [')
            for (track, expression), number in self._objects.items():
                file.write(", " if number else "")
                self._write_annotation(file, number, track, expression)
            file.write("]}\n")
        self._lines.close()

    @property
    def _categories(self) -> dict[str, int]:
        """The number of each expression, from 1."""
        return {text: number for number, text in enumerate(dict.fromkeys(self._expressions), 1)}

    def _head(self) -> dict[str, Any]:
        """Return everything but the annotations."""
        assert self._size is not None
        video = {
            "id": 1,
            "width": self._size[1],
            "height": self._size[0],
            "length": self._count,
            "file_names": self._files,
            "frame_indices": self._indices,
            "times": self._times,
        }
        expressions = [
            {
                "id": number,
                "video_id": 1,
                "expression": text,
                "annotation_ids": [k for k, other in enumerate(self._expressions, 1) if other == text],
            }
            for text, number in self._categories.items()
        ]
        return {
            "info": {"description": "masks predicted by refervos"},
            "licenses": [],
            "videos": [video],
            "categories": [{"id": number, "name": text} for text, number in self._categories.items()],
            "expressions": expressions,
        }

    def _write_annotation(self, file: TextIO, number: int, track: int, expression: str) -> None:
        assert self._size is not None
        presences = [entry[4] or 0.0 for entry in self._entries(number) if entry and entry[1]]
        about = {
            "id": number + 1,
            "video_id": 1,
            "category_id": self._categories[expression],
            "track_id": track,
            "iscrowd": 0,
            "width": self._size[1],
            "height": self._size[0],
            "score": round(sum(presences) / len(presences), 6) if presences else 0.0,
        }
        file.write(json_text(about)[:-1])
        for column, key in enumerate(_COLUMNS, 1):
            _write_list(file, key, (entry and entry[column] for entry in self._entries(number)))
        file.write("}")

    def _entries(self, number: int) -> Iterator[list[Any] | None]:
        """Yield an object's values in each frame; None for frames before it was added and after it was dropped."""
        position = 0
        for line in self._lines.of(number):
            entry = json.loads(line)
            yield from [None] * (entry[0] - position)
            yield entry
            position = entry[0] + 1
        yield from [None] * (self._count - position)


def _write_list(file: TextIO, key: str, values: Iterable[Any]) -> None:
    file.write(f', "{key}": [')
    for position, value in enumerate(values):
        file.write((", " if position else "") + json_text(value))
    file.write("]")
