"""Export to COCO's instances: an image per frame, an annotation per object and frame, tied together by ``track_id``.

The layout is that of https://cocodataset.org/#format-data, in the folders that Datumaro and CVAT import. Beside COCO's
fields, an image has ``frame_index`` and ``time``, and an annotation ``track_id``, ``score`` and ``attributes``.
"""

from __future__ import annotations

from pathlib import Path

from refervos.integrations.exports import ExportSink, ObjectLines, json_text, rounded_presence, rounded_time
from refervos.integrations.run_lengths import coco_mask
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame, SourceInfo

_IMAGES = -1
"""Place of the images among the lines of the objects."""


class CocoSink(ExportSink):
    """Sink for a data set in COCO's layout: ``annotations/instances_all.json`` and ``images/all/<frame>.jpg``.

    The category is the expression. Objects have no annotation in frames in which they are not visible.
    """

    main_file = "annotations/instances_all.json"

    def __init__(self, folder: str | Path, source: SourceInfo, *, overwrite: bool = False) -> None:
        """Open the output; see ``ExportSink``."""
        super().__init__(folder, source, overwrite=overwrite)
        self._categories: dict[str, int] = {}
        self._annotations = 0
        self._lines = ObjectLines(self._part.temporary)

    def abort(self) -> None:
        """Delete the unfinished export; does nothing once closed."""
        self._lines.close()
        super().abort()

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        self._save_frame(f"images/all/{name}.jpg", frame.image)
        image = {
            "id": self._count + 1,
            "file_name": f"{name}.jpg",
            "width": frame.image.shape[1],
            "height": frame.image.shape[0],
            "frame_index": frame.index,
            "time": rounded_time(frame),
        }
        self._lines.append(_IMAGES, json_text(image))
        for k, expression in enumerate(segmentation.expressions):
            category = self._categories.setdefault(expression, len(self._categories) + 1)
            mask = coco_mask(segmentation.masks[k])
            if mask is None:
                continue
            self._annotations += 1
            annotation = {
                "id": self._annotations,
                "image_id": self._count + 1,
                "category_id": category,
                "segmentation": mask.segmentation,
                "area": mask.area,
                "bbox": mask.bbox,
                "iscrowd": 0,
                "track_id": segmentation.track_ids[k],
                "score": rounded_presence(segmentation, k),
                "attributes": {"track_id": segmentation.track_ids[k], "expression": expression},
            }
            self._lines.append(self._object(segmentation, k), json_text(annotation))

    def _finish(self) -> None:
        head = {
            "info": {"description": f"masks predicted by refervos in {self._video}"},
            "licenses": [],
            "categories": [{"id": number, "name": text} for text, number in self._categories.items()],
        }
        with self._path(self.main_file).open("w", encoding="utf-8", newline="\n") as file:
            file.write(json_text(head)[:-1] + ', "images": [')
            for position, line in enumerate(self._lines.of(_IMAGES)):
                file.write((", " if position else "") + line)
            file.write('], "annotations": [')
            first = True
            for number in self._objects.values():
                for line in self._lines.of(number):
                    file.write(("" if first else ", ") + line)
                    first = False
            file.write("]}\n")
        self._lines.close()
