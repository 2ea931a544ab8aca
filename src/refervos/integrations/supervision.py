"""supervision (https://supervision.roboflow.com): segmentations as ``Detections``, for its annotators and counters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refervos.errors import require_installed
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame

if TYPE_CHECKING:
    from supervision import Detections


def to_detections(segmentation: Segmentation, frame: Frame | None = None) -> Detections:
    """Convert the segmentation of a frame to supervision's detections.

    Objects that are not visible have no detection.

    Args:
        segmentation: Masks of one frame.
        frame: The frame, whose index and time the detections then have; without it the index is the number of frames
            that the session had segmented before.

    Returns:
        One detection per visible object: ``xyxy`` float (N, 4), the box from the first to the last pixel; ``mask`` bool
        (N, H, W); ``confidence`` float32 (N,), its presence; ``tracker_id`` int (N,), its track; ``class_id`` int (N,),
        the number of its expression among those of the frame, from 0; ``data["class_name"]``, its expression;
        ``metadata["frame_index"]`` and ``metadata["time"]``, in seconds or None.

    Raises:
        MissingDependencyError: supervision is not installed.
    """
    require_installed("to_detections", "supervision", "supervision")
    import supervision

    visible = np.flatnonzero(segmentation.masks.any((1, 2)))
    masks = segmentation.masks[visible]
    classes = {expression: k for k, expression in enumerate(dict.fromkeys(segmentation.expressions))}
    expressions = [segmentation.expressions[k] for k in visible]
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks).astype(np.float32).reshape(-1, 4),
        mask=masks,
        confidence=segmentation.presence[visible],
        class_id=np.array([classes[expression] for expression in expressions], int),
        tracker_id=np.array(segmentation.track_ids, int)[visible],
        data={"class_name": np.array(expressions, dtype=str)},
        metadata={
            "frame_index": segmentation.frame_index if frame is None else frame.index,
            "time": None if frame is None else frame.time,
        },
    )
