"""Conversion between ROS 2 messages and arrays. It imports no ROS: the message types are given by the caller."""

from __future__ import annotations

import array
import sys
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refervos.errors import FrameError
from refervos.integrations.run_lengths import Box
from refervos.segmentation import Segmentation
from refervos.video.tracks import TrackNumbers

CHANNELS = {"rgb8": (0, 1, 2), "rgba8": (0, 1, 2), "bgr8": (2, 1, 0), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}
"""Encodings that are read, each with the channels that are red, green and blue."""


class DetectionTypes(Protocol):
    """Types of vision_msgs 4, as in its Python module ``vision_msgs.msg``."""

    Detection2DArray: Any
    Detection2D: Any
    ObjectHypothesisWithPose: Any
    ObjectHypothesis: Any
    BoundingBox2D: Any
    Pose2D: Any
    Point2D: Any


def read_image(message: Any) -> npt.NDArray[np.uint8]:
    """Read an image.

    Args:
        message: A ``sensor_msgs/Image`` of 8 bits per channel; its rows may be padded.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        FrameError: It has another encoding, or less data than its size needs.
    """
    channels = CHANNELS.get(message.encoding)
    if channels is None:
        raise FrameError(f"the image has the encoding '{message.encoding}'; publish one of {', '.join(CHANNELS)}.")
    depth = 1 if message.encoding == "mono8" else len(message.encoding.removesuffix("8"))
    height, width, step = message.height, message.width, message.step
    data = np.frombuffer(message.data, np.uint8)
    if step < width * depth or data.size < height * step or not height * width:
        raise FrameError(
            f"the image has {data.size} bytes in rows of {step}; publish complete images, here {width}x{height} in "
            f"{message.encoding}, of at least one pixel."
        )
    rows = data[: height * step].reshape(height, step)[:, : width * depth]
    return np.ascontiguousarray(rows.reshape(height, width, depth)[..., channels])


def label_image(
    header: Any,
    segmentation: Segmentation,
    numbers: TrackNumbers,
    image_type: Any,
    data: Callable[[bytes], Any] = lambda content: array.array("B", content),
) -> Any:
    """Make an image of labels: 0 is background, k + 1 the k-th track; where tracks overlap, the later one is on top.

    Args:
        header: Header of the image that was segmented, so that receivers can match both.
        segmentation: Its masks.
        numbers: Numbers of the tracks since the start.
        image_type: ``sensor_msgs.msg.Image``.
        data: Converts bytes to the data of a message; rclpy is fastest with an array.

    Returns:
        The image, encoding 16UC1.
    """
    height, width = segmentation.masks.shape[1:]
    labels = np.zeros((height, width), np.uint16)
    for track, mask in zip(segmentation.track_ids, segmentation.masks, strict=True):
        labels[mask] = numbers.of(track) + 1
    return image_type(
        header=header,
        height=height,
        width=width,
        encoding="16UC1",
        is_bigendian=int(sys.byteorder == "big"),
        step=2 * width,
        data=data(labels.tobytes()),
    )


def detections(header: Any, segmentation: Segmentation, types: DetectionTypes, pose: Callable[[], Any]) -> Any:
    """Make a detection for each track whose mask is not empty.

    Args:
        header: Header of the image that was segmented.
        segmentation: Its masks.
        types: The module ``vision_msgs.msg``.
        pose: Makes an empty ``geometry_msgs/PoseWithCovariance``, which a hypothesis must have.

    Returns:
        A ``vision_msgs/Detection2DArray``: ``id`` is the track, the hypothesis's ``class_id`` the expression and its
        ``score`` the presence; the box is in pixels, from the edge of the first to that of the last one.
    """
    found = []
    for track, expression, mask, presence in zip(
        segmentation.track_ids, segmentation.expressions, segmentation.masks, segmentation.presence, strict=True
    ):
        if not mask.any():
            continue
        box = Box.around(mask)
        centre = types.Point2D(x=(box.left + box.right) / 2, y=(box.top + box.bottom) / 2)
        hypothesis = types.ObjectHypothesis(class_id=expression, score=float(presence))
        found.append(
            types.Detection2D(
                header=header,
                results=[types.ObjectHypothesisWithPose(hypothesis=hypothesis, pose=pose())],
                bbox=types.BoundingBox2D(
                    center=types.Pose2D(position=centre, theta=0.0),
                    size_x=float(box.right - box.left),
                    size_y=float(box.bottom - box.top),
                ),
                id=str(track),
            )
        )
    return types.Detection2DArray(header=header, detections=found)
