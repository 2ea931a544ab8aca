"""Segmentations as results of Label Studio: brush masks for images, rectangles for videos.

The formats are described at https://labelstud.io/tags/brushlabels and https://labelstud.io/tags/videorectangle. Label
Studio has no masks for videos.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from refervos.integrations.exports import rounded_presence
from refervos.integrations.run_lengths import Box, Mask, row_runs
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame

DEFAULT_FRAME_RATE = 24.0
"""Frames per second with which Label Studio numbers the frames of a video whose tag has no ``frameRate``."""

_SIZES = (3, 4, 8, 16)
"""Numbers of bits of the lengths of runs."""


def brush_results(
    segmentation: Segmentation, *, from_name: str = "tag", to_name: str = "image"
) -> list[dict[str, Any]]:
    """Convert the segmentation of an image to results of ``BrushLabels``.

    Args:
        segmentation: Masks of the image.
        from_name: Name of the ``BrushLabels`` tag.
        to_name: Name of the ``Image`` tag.

    Returns:
        A result for each visible object; its label is the expression, its score the presence.
    """
    height, width = segmentation.masks.shape[1:]
    return [
        {
            "id": f"track-{track}",
            "type": "brushlabels",
            "from_name": from_name,
            "to_name": to_name,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": brush_run_lengths(mask), "brushlabels": [expression]},
            "score": rounded_presence(segmentation, k),
        }
        for k, (track, expression, mask) in enumerate(
            zip(segmentation.track_ids, segmentation.expressions, segmentation.masks, strict=True)
        )
        if mask.any()
    ]


def brush_run_lengths(mask: Mask) -> list[int]:
    """Encode a mask as Label Studio's run lengths: those of https://github.com/thi-ng/umbrella (rle-pack) over RGBA.

    Args:
        mask: bool (H, W).

    Returns:
        Bytes, 0 to 255: the number of values, the sizes of words and lengths, and the runs, packed as bits.
    """
    bits = [f"{mask.size * 4:032b}", f"{8 - 1:05b}", *(f"{size - 1:04b}" for size in _SIZES)]
    for position, run in enumerate(row_runs(mask)):
        value = 255 * (position % 2)
        left = run * 4  # a pixel is four equal values
        while left:
            length = min(left, 2 ** _SIZES[-1])
            kind = next(kind for kind, size in enumerate(_SIZES) if length <= 2**size)
            bits.append(f"1{kind:02b}{length - 1:0{_SIZES[kind]}b}{value:08b}")
            left -= length
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return np.packbits(np.frombuffer(text.encode("ascii"), np.uint8) - ord("0")).tolist()


def video_results(
    pairs: Iterable[tuple[Frame, Segmentation]],
    *,
    from_name: str = "box",
    to_name: str = "video",
    frame_rate: float = DEFAULT_FRAME_RATE,
    duration: float | None = None,
) -> list[dict[str, Any]]:
    """Convert the segmentations of a video to results of ``VideoRectangle``: the box of each object in each frame.

    Label Studio numbers frames from 1 by their time and the frame rate of its ``Video`` tag, whatever frames the file
    has. The number of a frame therefore comes from its presentation time; of several frames with one number, the first
    counts. Frames without a time have their index plus one.

    Args:
        pairs: The frames of the video with their segmentations.
        from_name: Name of the ``VideoRectangle`` tag.
        to_name: Name of the ``Video`` tag.
        frame_rate: ``frameRate`` of the ``Video`` tag in frames per second.
        duration: Duration of the video in seconds; None for the time at which the last frame ends.

    Returns:
        A result for each track and expression that was visible: its label is the expression, its score the mean
        presence.
    """
    boxes: dict[tuple[int, str], dict[int, dict[str, Any]]] = {}
    presences: dict[tuple[int, str], list[float]] = {}
    last = 0
    for frame, segmentation in pairs:
        number = frame.index + 1 if frame.time is None else math.floor(frame.time * frame_rate + 0.5) + 1
        if number <= last:
            continue
        for k, mask in enumerate(segmentation.masks):
            key = segmentation.track_ids[k], segmentation.expressions[k]
            if mask.any():
                boxes.setdefault(key, {})[number] = _keyframe(number, frame, mask, frame_rate)
                presences.setdefault(key, []).append(rounded_presence(segmentation, k) or 0.0)
            elif last in boxes.get(key, {}):
                boxes[key][last]["enabled"] = False  # shown in its own frame, but not until the next one
        for key, sequence in boxes.items():
            if key not in zip(segmentation.track_ids, segmentation.expressions, strict=True) and last in sequence:
                sequence[last]["enabled"] = False
        last = number
    return [
        {
            "id": f"track-{track}-{number}",
            "type": "videorectangle",
            "from_name": from_name,
            "to_name": to_name,
            "value": {
                "framesCount": max(last, math.ceil((duration or 0) * frame_rate)),
                "duration": last / frame_rate if duration is None else duration,
                "sequence": list(sequence.values()),
                "labels": [expression],
            },
            "score": round(sum(presences[track, expression]) / len(presences[track, expression]), 6),
        }
        for number, ((track, expression), sequence) in enumerate(boxes.items())
    ]


def _keyframe(number: int, frame: Frame, mask: Mask, frame_rate: float) -> dict[str, Any]:
    """Return a box as Label Studio's key frame, in per cent of the frame."""
    box, (height, width) = Box.around(mask), mask.shape
    return {
        "frame": number,
        "enabled": True,
        "rotation": 0,
        "x": 100 * box.left / width,
        "y": 100 * box.top / height,
        "width": 100 * (box.right - box.left) / width,
        "height": 100 * (box.bottom - box.top) / height,
        "time": frame.time if frame.time is not None else (number - 1) / frame_rate,
    }
