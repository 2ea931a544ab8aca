"""Tells from a media file's own bookkeeping whether its tail is missing, and how much before it can be played."""

from __future__ import annotations

import contextlib
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

# Of a film, of a fragment of one, of pictures (AVIF, HEIF).
_INDICES = (b"moov", b"moof", b"meta")


def cut_short(path: Path) -> str | None:
    """Says how a media file is cut short.

    Decoders mostly end a cut file as silently as a whole one, so the sizes that the container promises are
    compared with the size that the file has. MP4 and QuickTime, Matroska and WebM, AVI and GIF make such
    promises.

    Args:
        path: An existing file.

    Returns:
        A phrase that fits after the file's name and "is cut short: "; None when nothing is known
        to be missing.
    """
    try:
        held = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(12)
            if head[4:8] in _MP4_BOXES:
                return _cut_mp4(file, held)
            if head[:4] == b"\x1a\x45\xdf\xa3":
                return _shortfall(held, _matroska_end(file))
            if head[:4] == b"RIFF" and len(head) == 12:
                return _shortfall(held, 8 + struct.unpack("<I", head[4:8])[0])
            if head[:4] == b"GIF8":
                file.seek(max(0, held - 64))
                ended = file.read().rstrip(b"\0").endswith(b";")
                return None if ended else "its end mark is missing"
    except (OSError, struct.error):
        return None
    return None


def is_heif_image(path: Path) -> bool:
    """Whether a file is pictures of the HEIF family (HEIC and the like) other than AVIF, with no film among them.

    Args:
        path: An existing file.

    Returns:
        Whether it is.
    """
    with path.open("rb") as file, contextlib.suppress(struct.error):
        head = file.read(12)
        kinds = [kind for kind, _ in _mp4_boxes(file, path.stat().st_size)] if head[4:8] == b"ftyp" else []
        return b"meta" in kinds and b"moov" not in kinds and head[8:12] != b"avif"
    return False


def playable_part(path: Path) -> int:
    """Says how much of a fragmented mp4 can be played whose writing was broken off.

    Args:
        path: The file.

    Returns:
        Bytes up to the end of the last fragment that is there whole; 0 where none is.
    """
    held = path.stat().st_size
    whole = 0
    with path.open("rb") as file, contextlib.suppress(struct.error):
        for kind, end in _mp4_boxes(file, held):
            if kind == b"mdat" and end <= held:
                whole = end
    return whole


def _shortfall(held: int, promised: int | None) -> str | None:
    if promised is None or promised <= held:
        return None
    return f"it holds {held} of its {promised} bytes"


def _mp4_boxes(file: BinaryIO, held: int) -> Iterator[tuple[bytes, int]]:
    """Kind of each box of the top level, and where it should end, up to the first that reaches beyond the file."""
    position = 0
    while position + 8 <= held:
        file.seek(position)
        header = file.read(16)
        size, kind = struct.unpack(">I4s", header[:8])
        if size == 1 and len(header) == 16:
            size = struct.unpack(">Q", header[8:])[0]
        elif size == 0:
            size = held - position  # by the format's definition: up to the end of the file
        if size < 8:
            raise struct.error("a box shorter than its header")
        position += size
        yield kind, position


def _cut_mp4(file: BinaryIO, held: int) -> str | None:
    boxes = list(_mp4_boxes(file, held))
    end = boxes[-1][1] if boxes else 0
    if end <= held and not any(kind in _INDICES for kind, _ in boxes):
        return "its index (the moov box, written last) is missing"
    return _shortfall(held, end)


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
    """Reads a Matroska size; None for one left unknown, as a live recording leaves it."""
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
