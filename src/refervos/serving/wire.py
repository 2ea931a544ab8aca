"""Binary messages of the WebSocket: one frame with the run lengths of its masks."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from refervos.files.images import ImageArray

_LENGTH = struct.Struct("<I")
PREVIEW_SIDE = 640
"""Longest side of the JPEG of a live frame in pixels; masks keep the size of the frame."""


@dataclass(frozen=True)
class TrackMask:
    """Mask of one track in one frame.

    Attributes:
        track: The track's number in the served session.
        presence: Probability that the object is visible, 0 to 1.
        mask: bool (H, W).
    """

    track: int
    presence: float
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ReceivedFrame:
    """A binary message, decoded.

    Attributes:
        header: ``frame``, ``time``, ``sent``, ``w``, ``h``, ``fps`` and ``tracks``.
        jpeg: The frame as JPEG; empty for recordings that the receiver has itself.
        masks: bool (N, H, W), in the order of the header's tracks.
    """

    header: dict[str, Any]
    jpeg: bytes
    masks: npt.NDArray[np.bool_]


def run_lengths(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Encode a mask as COCO run lengths: column by column, beginning with the pixels outside.

    Args:
        mask: bool (H, W).

    Returns:
        Lengths, uint32, alternately outside and inside; the first may be 0. They add up to H · W.
    """
    flat = np.asarray(mask, dtype=bool).T.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    lengths = np.diff(bounds).astype(np.uint32)
    return np.concatenate([np.zeros(1, np.uint32), lengths]) if flat.size and flat[0] else lengths


def mask_from_runs(runs: npt.NDArray[np.uint32], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Decode COCO run lengths; the inverse of ``run_lengths``.

    Raises:
        ValueError: When they do not add up to the size of the mask.
    """
    if int(runs.sum(dtype=np.int64)) != height * width:
        raise ValueError("the run lengths do not fit the mask")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(width, height).T


def encode_jpeg(image: ImageArray, longest: int = PREVIEW_SIDE, quality: int = 80) -> bytes:
    """Encode a frame as JPEG, reduced so that its longest side fits.

    Args:
        image: uint8 (H, W, 3).
        longest: Longest side in pixels.
        quality: Quality of the JPEG, 1 to 95.

    Returns:
        The file's content.
    """
    picture = Image.fromarray(image)
    picture.thumbnail((longest, longest))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=quality)
    return content.getvalue()


def encode_frame(header: dict[str, Any], masks: Sequence[TrackMask], jpeg: bytes = b"") -> bytes:
    """Build a binary message: header length, JSON header, JPEG, run lengths (see docs/serving.md).

    Args:
        header: ``frame``, ``time``, ``sent``, ``w``, ``h`` and ``fps``; ``tracks`` and ``jpeg`` are added.
        masks: The masks.
        jpeg: The frame as JPEG; empty where the receiver has the recording itself.

    Returns:
        The message.
    """
    runs = [run_lengths(each.mask) for each in masks]
    tracks = [
        {"id": each.track, "presence": round(each.presence, 4), "runs": len(lengths)}
        for each, lengths in zip(masks, runs, strict=True)
    ]
    text = json.dumps({**header, "tracks": tracks, "jpeg": len(jpeg)}, allow_nan=False).encode()
    return b"".join([_LENGTH.pack(len(text)), text, jpeg, *(lengths.astype("<u4").tobytes() for lengths in runs)])


def decode_frame(message: bytes) -> ReceivedFrame:
    """Decode a binary message.

    Raises:
        ValueError: When it is not one.
    """
    try:
        (length,) = _LENGTH.unpack_from(message)
        header = json.loads(message[4 : 4 + length])
        begin = 4 + length
        jpeg = message[begin : begin + header["jpeg"]]
        begin += header["jpeg"]
        masks = np.zeros((len(header["tracks"]), header["h"], header["w"]), bool)
        for row, track in enumerate(header["tracks"]):
            runs = np.frombuffer(message, "<u4", track["runs"], begin)
            masks[row] = mask_from_runs(runs, header["h"], header["w"])
            begin += 4 * track["runs"]
    except (struct.error, KeyError, TypeError) as error:
        raise ValueError("not a frame message") from error
    return ReceivedFrame(header, jpeg, masks)
