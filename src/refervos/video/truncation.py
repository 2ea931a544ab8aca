"""Detection of truncated media files from the sizes stored in them."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_MP4_BOXES = {
    b"ftyp",
    b"moov",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"moof",
    b"styp",
    b"sidx",
    b"uuid",
    b"pnot",
}

# Index boxes of a video, of a fragment, and of images (AVIF, HEIF).
_INDEX_BOXES = (b"moov", b"moof", b"meta")


def truncation_of(source: Path | BinaryIO) -> str | None:
    """Describe how a media file is truncated.

    Decoders usually end a truncated file silently, so the size declared in the container is compared with the size of
    the file. MP4 and QuickTime, Matroska and WebM, AVI and GIF are supported.

    Args:
        source: An existing file, or an open one, whose position is kept.

    Returns:
        A phrase to follow the file name and "is truncated: "; None if nothing is known to be missing.
    """
    try:
        if isinstance(source, Path):
            with source.open("rb") as file:
                return _truncation(file)
        position = source.tell()
        try:
            return _truncation(source)
        finally:
            source.seek(position)
    except (OSError, struct.error):
        return None


def _truncation(file: BinaryIO) -> str | None:
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[4:8] in _MP4_BOXES:
        return _mp4_truncation(file, size)
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return _shortfall(size, _matroska_end(file))
    if head[:4] == b"RIFF" and len(head) == 12:
        return _shortfall(size, 8 + struct.unpack("<I", head[4:8])[0])
    if head[:4] == b"GIF8":
        file.seek(max(0, size - 64))
        ended = file.read().rstrip(b"\0").endswith(b";")
        return None if ended else "its end mark is missing"
    return None


def is_heif_image(path: Path) -> bool:
    """Return whether a file contains only HEIF images (such as HEIC, but not AVIF) and no video.

    Args:
        path: An existing file.

    Returns:
        Whether it is such a file.
    """
    with path.open("rb") as file, contextlib.suppress(struct.error):
        head = file.read(12)
        kinds = [kind for kind, _ in _mp4_boxes(file, path.stat().st_size)] if head[4:8] == b"ftyp" else []
        return b"meta" in kinds and b"moov" not in kinds and head[8:12] != b"avif"
    return False


def playable_part(path: Path) -> int:
    """Return how much of an unfinished fragmented mp4 can be played.

    Args:
        path: The file.

    Returns:
        Number of bytes up to the end of the last complete fragment; 0 if there is none.
    """
    size = path.stat().st_size
    complete = 0
    with path.open("rb") as file, contextlib.suppress(struct.error):
        for kind, end in _mp4_boxes(file, size):
            if kind == b"mdat" and end <= size:
                complete = end
    return complete


def _shortfall(actual: int, declared: int | None) -> str | None:
    if declared is None or declared <= actual:
        return None
    return f"it has {actual} of its {declared} bytes"


def _mp4_boxes(file: BinaryIO, file_size: int) -> Iterator[tuple[bytes, int]]:
    """Yield kind and declared end of each top-level box, up to the first that extends beyond the file."""
    position = 0
    while position + 8 <= file_size:
        file.seek(position)
        header = file.read(16)
        size, kind = struct.unpack(">I4s", header[:8])
        if size == 1 and len(header) == 16:
            size = struct.unpack(">Q", header[8:])[0]
        elif size == 0:
            size = file_size - position  # as defined by the format
        if size < 8:
            raise struct.error("a box shorter than its header")
        position += size
        yield kind, position


def _mp4_truncation(file: BinaryIO, file_size: int) -> str | None:
    boxes = list(_mp4_boxes(file, file_size))
    end = boxes[-1][1] if boxes else 0
    if end <= file_size and not any(kind in _INDEX_BOXES for kind, _ in boxes):
        return "its index (the moov box, written last) is missing"
    return _shortfall(file_size, end)


def _matroska_end(file: BinaryIO) -> int | None:
    file.seek(4)
    header = _vint(file)
    if header is None:
        return None
    file.seek(header, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return None
    size = _vint(file)
    return None if size is None else file.tell() + size


def _vint(file: BinaryIO) -> int | None:
    """Read a Matroska size; None if it is unknown, as in live recordings."""
    first = file.read(1)
    if not first or first[0] == 0:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    if len(rest) < length - 1:
        return None
    bits = 7 * length
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
