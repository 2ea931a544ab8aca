"""Export to the layout of YouTube-VOS and Ref-YouTube-VOS: frames, indexed PNG masks, and two lists in JSON.

The layout is that of ``data/layouts/ref_youtube_vos.py``, which reads it as the split ``train``::

    train/JPEGImages/<video>/<frame>.jpg
    train/Annotations/<video>/<frame>.png                 the index is the object's id
    train/meta.json                                       objects with category and frames
    meta_expressions/train/meta_expressions.json          frames and expressions with their object
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from refervos.errors import VideoError
from refervos.integrations.exports import ExportSink, rounded_time
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame, SourceInfo
from refervos.video.sinks import davis_palette

MAX_OBJECTS = 254
"""Largest number of objects of an indexed PNG whose index 255 is not used."""


class YoutubeVosSink(ExportSink):
    """Sink for a data set in the layout of YouTube-VOS, with the expressions of Ref-YouTube-VOS.

    Objects are numbered from 1 in order of first appearance. A pixel has one object: where several overlap, the later
    one is on top. At most 254 objects.
    """

    main_file = "train/meta.json"

    def __init__(self, folder: str | Path, source: SourceInfo, *, overwrite: bool = False) -> None:
        """Open the output; see ``ExportSink``."""
        super().__init__(folder, source, overwrite=overwrite)
        self._frames: list[tuple[str, int, float | None]] = []
        self._visible: dict[int, list[str]] = {}

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        numbers = [self._object(segmentation, k) + 1 for k in range(len(segmentation.track_ids))]
        if max(numbers, default=0) > MAX_OBJECTS:
            raise VideoError(
                f"More than {MAX_OBJECTS} objects do not fit into the indexed masks of YouTube-VOS; save ytvis instead."
            )
        indices = np.zeros(frame.image.shape[:2], np.uint8)
        for number, mask in sorted(zip(numbers, segmentation.masks, strict=True), key=lambda pair: pair[0]):
            indices[mask] = number
        for number in np.unique(indices[indices > 0]).tolist():
            self._visible.setdefault(number, []).append(name)
        image = Image.fromarray(indices)
        image.putpalette(davis_palette().tobytes())
        data = io.BytesIO()
        image.save(data, "PNG")
        self._path(f"train/Annotations/{self._video}/{name}.png").write_bytes(data.getvalue())
        self._save_frame(f"train/JPEGImages/{self._video}/{name}.jpg", frame.image)
        self._frames.append((name, frame.index, rounded_time(frame)))

    def _finish(self) -> None:
        numbered = list(enumerate(self._expressions, 1))
        objects = {str(k): {"category": text, "frames": self._visible.get(k, [])} for k, text in numbered}
        self._save_json(self.main_file, {"videos": {self._video: {"objects": objects}}})
        names, indices, times = zip(*self._frames, strict=True)
        listed: dict[str, Any] = {
            "expressions": {str(k - 1): {"exp": text, "obj_id": str(k)} for k, text in numbered},
            "frames": names,
            "frame_indices": indices,
            "times": times,
        }
        self._save_json("meta_expressions/train/meta_expressions.json", {"videos": {self._video: listed}})
