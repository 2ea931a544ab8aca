"""Export to labelme and X-AnyLabeling: a JSON file beside each frame, in which ``group_id`` is the track.

labelme (https://github.com/wkentaro/labelme) has shapes of the type ``mask``: an image of the mask within a box whose
corners are its ``points``, both inside. X-AnyLabeling (https://github.com/CVHub520/X-AnyLabeling) has none of them and
gets polygons through the outermost pixels, which it fills in the same way.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from refervos.errors import VideoError
from refervos.integrations.exports import ExportSink, rounded_presence, rounded_time
from refervos.integrations.outlines import outlines_through_pixels
from refervos.integrations.run_lengths import Box, Mask
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame, SourceInfo

Shapes = Literal["mask", "polygon"]

VERSION = "5.5.0"
"""Version of labelme's format."""


class LabelmeSink(ExportSink):
    """Sink for a folder that labelme or X-AnyLabeling opens: ``<frame>.jpg`` and ``<frame>.json``.

    The label of a shape is the expression, its ``group_id`` the track; ``labels.txt`` lists the labels. As polygons, a
    mask with holes, branches or several parts is several shapes of one group, which together cover its pixels exactly.
    """

    main_file = "labels.txt"

    def __init__(
        self, folder: str | Path, source: SourceInfo, *, shapes: Shapes = "mask", overwrite: bool = False
    ) -> None:
        """Open the output; see ``ExportSink``.

        Args:
            folder: Output folder.
            source: Information about the source of the frames.
            shapes: ``mask`` for labelme, ``polygon`` for X-AnyLabeling.
            overwrite: Whether to replace an earlier export of this kind.

        Raises:
            VideoError: ``shapes`` is neither, or the folder cannot be written.
        """
        if shapes not in ("mask", "polygon"):
            raise VideoError(f"shapes is {shapes!r}; it must be 'mask' (labelme) or 'polygon' (X-AnyLabeling).")
        super().__init__(folder, source, overwrite=overwrite)
        self._shapes = shapes

    def _write(self, frame: Frame, segmentation: Segmentation, name: str) -> None:
        self._save_frame(f"{name}.jpg", frame.image)
        geometries = _mask_shape if self._shapes == "mask" else _polygon_shapes
        shapes = [
            {
                "label": expression,
                **geometry,
                "group_id": segmentation.track_ids[k],
                "description": "",
                "flags": {},
                "score": rounded_presence(segmentation, k),
            }
            for k, expression in enumerate(segmentation.expressions)
            if segmentation.masks[k].any()
            for geometry in geometries(segmentation.masks[k])
        ]
        content = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": f"{name}.jpg",
            "imageData": None,
            "imageHeight": frame.image.shape[0],
            "imageWidth": frame.image.shape[1],
            "frame_index": frame.index,
            "time": rounded_time(frame),
        }
        self._save_json(f"{name}.json", content)
        for k in range(len(segmentation.track_ids)):
            self._object(segmentation, k)

    def _finish(self) -> None:
        labels = dict.fromkeys(" ".join(expression.split()) for expression in self._expressions)
        self._path(self.main_file).write_text("".join(f"{label}\n" for label in labels), "utf-8", "replace")


def _mask_shape(mask: Mask) -> Iterator[dict[str, Any]]:
    """Yield the one shape of labelme for a mask."""
    box = Box.around(mask)
    data = io.BytesIO()
    Image.fromarray(box.crop(mask).astype(np.uint8) * np.uint8(255)).save(data, "PNG")
    yield {
        "points": [[box.left, box.top], [box.right - 1, box.bottom - 1]],
        "shape_type": "mask",
        "mask": base64.b64encode(data.getvalue()).decode("ascii"),
    }


def _polygon_shapes(mask: Mask) -> Iterator[dict[str, Any]]:
    """Yield the polygons of X-AnyLabeling for a mask."""
    for outline in outlines_through_pixels(mask):
        yield {"points": [[x, y] for x, y in outline], "shape_type": "polygon"}
