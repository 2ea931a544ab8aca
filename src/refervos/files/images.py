"""Reads picture files of anybody's making: known formats only, no larger than agreed, as upright RGB of 8 bits."""

from __future__ import annotations

import contextlib
import stat
import struct
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from refervos.errors import RefervosError, VideoError

ImageArray = npt.NDArray[np.uint8]

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "AVIF")
"""What Pillow may take a file for, whatever its name says. Others run foreign programs (EPS: Ghostscript)."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif"})
"""Endings of picture files, in lower case."""

MAX_PIXELS = 2**26
"""More than a frame of 8K (33 million) and than most panoramas; what follows takes about 15 bytes for each pixel."""

_BITS = range(8, 34, 2)  # how finely cameras and instruments measure
_LYING = range(5, 9)  # the orientations of EXIF in which rows are stored as columns
_SHORT = 3  # EXIF's number for numbers of 16 bits
_HDR = (16, 18)  # the transfers PQ and HLG, as H.273 numbers them
_HEAD = 65536  # bytes of a file in which it says so
_GROUND = 255  # white, as paper is, behind what is transparent


@contextmanager
def opened_image(path: Path, error: type[RefervosError] = VideoError) -> Iterator[Image.Image]:
    """Opens a picture file; what goes wrong with it inside the ``with`` block becomes one sentence.

    Args:
        path: The file.
        error: The kind of error to raise.

    Yields:
        The picture, of one of ``FORMATS`` and at most ``MAX_PIXELS``, not decoded yet.

    Raises:
        RefervosError: Of that kind: it is missing, no regular file, empty, too large, no such picture, or damaged.
    """
    with image_errors(path, error), open_image(path, error) as image:
        yield image


def open_image(path: Path, error: type[RefervosError] = VideoError) -> Image.Image:
    """Opens a picture file for longer than a ``with`` block; to be read inside ``image_errors``.

    Args:
        path: The file.
        error: The kind of error to raise.

    Returns:
        The picture, to be closed.

    Raises:
        RefervosError: Of that kind, see ``opened_image``.
    """
    with image_errors(path, error):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for without end
            raise error(f"'{path}' is no regular file; it must be an image file.")
        if found.st_size == 0:
            raise error(f"'{path}' is empty (0 bytes); it must be an image.")
        with _without_pillows_limit():
            image = Image.open(path, formats=FORMATS)
        try:
            refuse_large(f"'{path}'", image.width, image.height, error)
        except BaseException:
            image.close()
            raise
        return image


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    """Keeps Pillow from warning of large pictures, which are refused in a sentence of our own.

    Filters of warnings belong to all threads, so they are left alone where another may be changing them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@contextmanager
def image_errors(path: Path, error: type[RefervosError] = VideoError) -> Iterator[None]:
    """Makes one sentence of what Pillow raises inside.

    Args:
        path: The file that is being read.
        error: The kind of error to raise.

    Raises:
        RefervosError: Of that kind.
    """
    try:
        yield
    except FileNotFoundError as missing:
        raise error(f"'{path}' does not exist; give an image file.") from missing
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as bomb:  # beyond Pillow's own limit, which it looks at in opening
        raise error(f"'{path}' is too large; at most {MAX_PIXELS:,} pixels are read, so make it smaller.") from bomb
    except UnidentifiedImageError as unknown:
        raise error(
            f"'{path}' is not an image that can be read here; give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        ) from unknown
    except RefervosError:
        raise
    except Exception as damage:  # Pillow raises a zoo of exceptions on damaged files
        reason = getattr(damage, "strerror", None) or " ".join(str(damage).split()) or type(damage).__name__
        raise error(f"'{path}' is not an image that can be read ({reason}); replace or remove it.") from damage


def refuse_large(described: str, width: int, height: int, error: type[RefervosError] = VideoError) -> None:
    """Refuses a picture for its size, before it is decoded.

    Args:
        described: What to call the picture.
        width: Its width in pixels.
        height: Its height in pixels.
        error: The kind of error to raise.

    Raises:
        RefervosError: Of that kind, when it has more than ``MAX_PIXELS``.
    """
    if width * height > MAX_PIXELS:
        raise error(f"{described} is {width}x{height}; at most {MAX_PIXELS:,} pixels are read, so make it smaller.")


def read_image(path: Path, error: type[RefervosError] = VideoError) -> ImageArray:
    """Reads a picture file; of several pictures in it, the first.

    Args:
        path: The file.
        error: The kind of error to raise.

    Returns:
        uint8 (H, W, 3), RGB, upright.

    Raises:
        RefervosError: Of that kind, see ``opened_image``.
    """
    with opened_image(path, error) as image:
        return rgb_from_pil(image)


def image_file_size(path: Path, error: type[RefervosError] = VideoError) -> tuple[int, int]:
    """Finds out how large a picture is, from the beginning of its file only.

    Args:
        path: The file.
        error: The kind of error to raise.

    Returns:
        Height and width of the upright picture in pixels.

    Raises:
        RefervosError: Of that kind, see ``opened_image``.
    """
    with opened_image(path, error) as image:
        turned = _orientation(image) in _LYING
        return (image.width, image.height) if turned else (image.height, image.width)


def is_hdr(path: Path) -> bool:
    """Whether a picture file says that it is HDR (PQ or HLG), which Pillow shows as if it were not.

    Args:
        path: The file.

    Returns:
        Whether it is an AVIF or PNG file that says so.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    if head.startswith(b"\x89PNG"):
        at, told = head.find(b"cICP"), ">4xBB"
    elif head[4:8] == b"ftyp":
        at, told = head.find(b"colrnclx"), ">8xHH"
    else:
        return False
    with contextlib.suppress(struct.error):
        return at >= 0 and struct.unpack_from(told, head, at)[1] in _HDR
    return False


class WhiteLevel:
    """The value that is white in pictures of more than 8 bits.

    Files seldom say how many of their bits are used: 12 of 16 by many cameras. It is taken for the least usual number
    of bits that holds every value met; of fractions, 1. Frames of one video share it, so that none flickers.

    Attributes:
        value: White; 0 before the first picture.
    """

    def __init__(self) -> None:
        self.value = 0.0

    def include(self, levels: npt.NDArray[Any]) -> None:
        """Takes the values of one more picture, see ``high_bit_depth_values``, into account."""
        self.value = max(self.value, _white_for(levels[..., :3] if levels.ndim == 3 else levels))


def _white_for(values: npt.NDArray[Any]) -> float:
    fractions = np.issubdtype(values.dtype, np.floating)
    top = float(values.max(initial=0, where=np.isfinite(values)) if fractions else values.max(initial=0))
    if fractions and top <= 2:  # what was sharpened or enlarged passes 1 a little
        return 1.0
    return next((float(2**bits - 1) for bits in _BITS if top < 2**bits), top)


def is_high_bit_depth(image: Image.Image) -> bool:
    """Whether a picture that is not decoded yet has more than 8 bits a value."""
    return image.mode.startswith(("I", "F")) or _deep_layout(image) is not None


def high_bit_depth_values(image: Image.Image) -> npt.NDArray[Any] | None:
    """The values of a picture of more than 8 bits, as they are stored.

    Args:
        image: The picture, not decoded yet where it has colours or transparency.

    Returns:
        (H, W), (H, W, 3), or (H, W, 4) with alpha; None for pictures of 8 bits.
    """
    layout = _deep_layout(image)
    if layout is None:
        return np.asarray(image) if image.mode.startswith(("I", "F")) else None
    # Pillow keeps the upper byte of deep colours. Told that bytes lie the other way round, it gives the lower.
    with Image.open(image.filename, formats=FORMATS) as again:  # type: ignore[attr-defined]
        again.seek(image.tell())
        again.tile = [_laid_out(tile, _OTHER_BYTE[layout]) for tile in again.tile]
        again.load()
        lower = np.asarray(again)
    if layout == "LA;16B":  # read as the four bytes that each pixel has
        return (lower[..., [0, 0, 0, 2]].astype(np.uint16) << 8) | lower[..., [1, 1, 1, 3]]
    image.load()
    levels: npt.NDArray[Any] = (np.asarray(image).astype(np.uint16) << 8) | lower
    return levels


_OTHER_BYTE = {
    f"{colours};16{order}": f"{colours};16{other}"
    for colours in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
} | {"LA;16B": "RGBA"}


def _deep_layout(image: Image.Image) -> str | None:
    """How the colours of a picture lie in its file, where both of their bytes can be had."""
    tiles = getattr(image, "tile", None)
    if not tiles or not getattr(image, "filename", None):
        return None
    arguments = tiles[0][3]
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return layout if layout in _OTHER_BYTE else None


def _laid_out(tile: Any, layout: str) -> Any:
    arguments = (layout, *tile[3][1:]) if isinstance(tile[3], tuple) else layout
    return type(tile)(*tile[:3], arguments) if hasattr(tile, "_fields") else (*tile[:3], arguments)


def rgb_from_pil(image: Image.Image, white: WhiteLevel | None = None) -> ImageArray:
    """Turns a PIL image of any mode into an upright RGB array, following its EXIF orientation.

    Args:
        image: The image. What is transparent lies on white ground.
        white: What is white in pictures of more than 8 bits, shared by those that belong together; default by this
            one alone.

    Returns:
        uint8 (H, W, 3).
    """
    levels = high_bit_depth_values(image)
    image.load()
    if levels is not None:
        white = white or WhiteLevel()
        white.include(levels)
        picture = _eight_bits(levels, white.value)
    elif image.has_transparency_data:
        picture = flatten_alpha(np.asarray(image.convert("RGBA")))
    else:
        picture = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return _turned(picture, _orientation(image))


def _eight_bits(levels: npt.NDArray[Any], white: float) -> ImageArray:
    if levels.ndim == 3 and levels.shape[2] == 4:
        alpha = levels[..., 3]
        return flatten_alpha(np.dstack([_scaled(levels[..., :3], white), _scaled(alpha, _white_for(alpha))]))
    scaled = _scaled(levels, white)
    return np.repeat(scaled[:, :, None], 3, axis=2) if scaled.ndim == 2 else scaled


def _scaled(values: npt.NDArray[Any], white: float) -> ImageArray:
    if values.dtype == np.uint16:
        table = (np.arange(2**16) * (255 / white)).round().clip(0, 255).astype(np.uint8)
        return table[values]
    shown = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=white, neginf=0.0)
    return (shown * np.float32(255 / white)).round().clip(0, 255).astype(np.uint8)


def flatten_alpha(rgba: npt.NDArray[np.uint8]) -> ImageArray:
    """Lays a picture with transparency on white ground.

    Args:
        rgba: uint8 (H, W, 4), colours not multiplied by alpha.

    Returns:
        uint8 (H, W, 3), contiguous.
    """
    alpha = rgba[..., 3:].astype(np.uint16)
    if (alpha == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    # At most 255 * 255 + 127, which 16 bits hold.
    mixed = rgba[..., :3] * alpha + _GROUND * (255 - alpha) + 127
    return (mixed // 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none; what else is broken in there does not matter."""
    if image.format == "TIFF":
        return 1  # turned by Pillow when it is decoded
    told: object = None
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        told = _orientation_in(exif.removeprefix(b"Exif\0\0"))
    else:
        # What other programs wrote in their own ways, Pillow knows, and may stumble over.
        with contextlib.suppress(Exception):
            told = image.getexif().get(ExifTags.Base.Orientation)
    return told if isinstance(told, int) and 1 <= told <= 8 else 1


def _orientation_in(exif: bytes) -> int | None:
    """Looks the orientation up among the first notes of an EXIF block, and at nothing else there."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    with contextlib.suppress(struct.error):
        (begin,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, begin)
        for k in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, begin + 2 + 12 * k)
            if tag == ExifTags.Base.Orientation and kind == _SHORT:
                return int(value)
    return None


def _turned(picture: ImageArray, orientation: int) -> ImageArray:
    if orientation in _LYING:
        picture = picture.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    if orientation in (3, 4, 7, 8):
        picture = picture[::-1]
    return np.ascontiguousarray(picture)
