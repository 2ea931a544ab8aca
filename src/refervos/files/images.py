"""Read untrusted image files: known formats only, limited in size, as upright 8-bit RGB."""

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
"""Formats that Pillow may detect, whatever the suffix. Others run external programs (EPS: Ghostscript)."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif"})
"""Suffixes of image files, in lower case."""

MAX_PIXELS = 2**26
"""More than an 8K frame (33 million) and most panoramas; processing takes about 15 bytes per pixel."""

_BITS = range(8, 34, 2)  # bit depths of cameras and instruments
_TRANSPOSED = range(5, 9)  # EXIF orientations in which rows are stored as columns
_SHORT = 3  # EXIF type of 16-bit integers
_HDR = (16, 18)  # the transfers PQ and HLG, as H.273 numbers them
_HEAD = 65536  # bytes of a file that are searched for it
_BACKGROUND = 255  # white, behind transparent pixels


@contextmanager
def opened_image(path: Path, error: type[RefervosError] = VideoError) -> Iterator[Image.Image]:
    """Open an image file; exceptions inside the ``with`` block become one sentence.

    Args:
        path: The file.
        error: Type of error to raise.

    Yields:
        The image in one of ``FORMATS``, with at most ``MAX_PIXELS``, not decoded yet.

    Raises:
        RefervosError: Of that type: the file is missing, not a regular file, empty, too large, of another format, or
            damaged.
    """
    with image_errors(path, error), open_image(path, error) as image:
        yield image


def open_image(path: Path, error: type[RefervosError] = VideoError) -> Image.Image:
    """Open an image file for longer than a ``with`` block; decode it inside ``image_errors``.

    Args:
        path: The file.
        error: Type of error to raise.

    Returns:
        The image; close it after use.

    Raises:
        RefervosError: Of that type, see ``opened_image``.
    """
    with image_errors(path, error):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe could block forever
            raise error(f"'{path}' is not a regular file; it must be an image file.")
        if found.st_size == 0:
            raise error(f"'{path}' is empty (0 bytes); it must be an image.")
        with _no_pillow_warning():
            image = Image.open(path, formats=FORMATS)
        try:
            refuse_large(f"'{path}'", image.width, image.height, error)
        except BaseException:
            image.close()
            raise
        return image


@contextmanager
def _no_pillow_warning() -> Iterator[None]:
    """Suppress Pillow's warning about large images, for which ``refuse_large`` has its own error.

    Warning filters are shared by all threads, so only the main thread changes them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


@contextmanager
def image_errors(path: Path, error: type[RefervosError] = VideoError) -> Iterator[None]:
    """Convert exceptions of Pillow into one sentence.

    Args:
        path: The file being read.
        error: Type of error to raise.

    Raises:
        RefervosError: Of that type.
    """
    try:
        yield
    except FileNotFoundError as missing:
        raise error(f"'{path}' does not exist; give an image file.") from missing
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as bomb:  # beyond Pillow's own limit, which it checks on opening
        raise error(f"'{path}' is too large; at most {MAX_PIXELS:,} pixels are read, so scale it down.") from bomb
    except UnidentifiedImageError as unknown:
        raise error(
            f"'{path}' is not an image in a supported format; give {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        ) from unknown
    except RefervosError:
        raise
    except Exception as damage:  # Pillow raises many types of exceptions on damaged files
        reason = getattr(damage, "strerror", None) or " ".join(str(damage).split()) or type(damage).__name__
        raise error(f"'{path}' cannot be read as an image ({reason}); replace or remove it.") from damage


def refuse_large(described: str, width: int, height: int, error: type[RefervosError] = VideoError) -> None:
    """Refuse an image that is too large, before it is decoded.

    Args:
        described: Name of the image in the message.
        width: Its width in pixels.
        height: Its height in pixels.
        error: Type of error to raise.

    Raises:
        RefervosError: Of that type, when it has more than ``MAX_PIXELS``.
    """
    if width * height > MAX_PIXELS:
        raise error(f"{described} is {width}x{height}; at most {MAX_PIXELS:,} pixels are read, so scale it down.")


def read_image(path: Path, error: type[RefervosError] = VideoError) -> ImageArray:
    """Read an image file; if it has several images, the first.

    Args:
        path: The file.
        error: Type of error to raise.

    Returns:
        uint8 (H, W, 3), RGB, upright.

    Raises:
        RefervosError: Of that type, see ``opened_image``.
    """
    with opened_image(path, error) as image:
        return rgb_from_pil(image)


def image_file_size(path: Path, error: type[RefervosError] = VideoError) -> tuple[int, int]:
    """Read the size of an image from the beginning of its file.

    Args:
        path: The file.
        error: Type of error to raise.

    Returns:
        Height and width of the upright image in pixels.

    Raises:
        RefervosError: Of that type, see ``opened_image``.
    """
    with opened_image(path, error) as image:
        transposed = _orientation(image) in _TRANSPOSED
        return (image.width, image.height) if transposed else (image.height, image.width)


def is_hdr(path: Path) -> bool:
    """Return whether an AVIF or PNG file is marked as HDR (PQ or HLG), which Pillow ignores.

    Args:
        path: The file.

    Returns:
        Whether it is such a file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    if head.startswith(b"\x89PNG"):
        at, layout = head.find(b"cICP"), ">4xBB"
    elif head[4:8] == b"ftyp":
        at, layout = head.find(b"colrnclx"), ">8xHH"
    else:
        return False
    with contextlib.suppress(struct.error):
        return at >= 0 and struct.unpack_from(layout, head, at)[1] in _HDR
    return False


class WhiteLevel:
    """White level of images with more than 8 bits per channel.

    Files rarely say how many of their bits are used: many cameras use 12 of 16. The smallest common bit depth that
    holds every value seen is assumed; for floats, white is 1. Frames of one video share it to avoid flicker.

    Attributes:
        value: White level; 0 before the first image.
    """

    def __init__(self) -> None:
        self.value = 0.0

    def include(self, values: npt.NDArray[Any]) -> None:
        """Include the values of another image, see ``high_bit_depth_values``."""
        self.value = max(self.value, _white_for(values[..., :3] if values.ndim == 3 else values))


def _white_for(values: npt.NDArray[Any]) -> float:
    is_float = np.issubdtype(values.dtype, np.floating)
    top = float(values.max(initial=0, where=np.isfinite(values)) if is_float else values.max(initial=0))
    if is_float and top <= 2:  # sharpening and resizing overshoot 1 a little
        return 1.0
    return next((float(2**bits - 1) for bits in _BITS if top < 2**bits), top)


def is_high_bit_depth(image: Image.Image) -> bool:
    """Return whether an image that is not decoded yet has more than 8 bits per channel."""
    return image.mode.startswith(("I", "F")) or _high_bit_depth_layout(image) is not None


def high_bit_depth_values(image: Image.Image) -> npt.NDArray[Any] | None:
    """Return the stored values of an image with more than 8 bits per channel.

    Args:
        image: The image; if it has colours or transparency, not decoded yet.

    Returns:
        (H, W), (H, W, 3), or (H, W, 4) with alpha; None for 8-bit images.
    """
    layout = _high_bit_depth_layout(image)
    if layout is None:
        return np.asarray(image) if image.mode.startswith(("I", "F")) else None
    # Pillow keeps the upper byte of 16-bit colours. Given the opposite byte order, it keeps the lower.
    with Image.open(image.filename, formats=FORMATS) as again:  # type: ignore[attr-defined]
        again.seek(image.tell())
        again.tile = [_with_layout(tile, _OTHER_BYTE[layout]) for tile in again.tile]
        again.load()
        lower = np.asarray(again)
    if layout == "LA;16B":  # read as four bytes per pixel
        return (lower[..., [0, 0, 0, 2]].astype(np.uint16) << 8) | lower[..., [1, 1, 1, 3]]
    image.load()
    values: npt.NDArray[Any] = (np.asarray(image).astype(np.uint16) << 8) | lower
    return values


_OTHER_BYTE = {
    f"{colours};16{order}": f"{colours};16{other}"
    for colours in ("RGB", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
} | {"LA;16B": "RGBA"}


def _high_bit_depth_layout(image: Image.Image) -> str | None:
    """Return Pillow's name for the 16-bit layout of an image; None if its lower bytes cannot be read."""
    tiles = getattr(image, "tile", None)
    if not tiles or not getattr(image, "filename", None):
        return None
    arguments = tiles[0][3]
    layout = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return layout if layout in _OTHER_BYTE else None


def _with_layout(tile: Any, layout: str) -> Any:
    arguments = (layout, *tile[3][1:]) if isinstance(tile[3], tuple) else layout
    return type(tile)(*tile[:3], arguments) if hasattr(tile, "_fields") else (*tile[:3], arguments)


def rgb_from_pil(image: Image.Image, white: WhiteLevel | None = None) -> ImageArray:
    """Convert a PIL image of any mode to an upright RGB array, following its EXIF orientation.

    Args:
        image: The image. Transparent pixels are blended with white.
        white: White level of images with more than 8 bits per channel, shared by the frames of a video; default from
            this image alone.

    Returns:
        uint8 (H, W, 3).
    """
    values = high_bit_depth_values(image)
    image.load()
    if values is not None:
        white = white or WhiteLevel()
        white.include(values)
        rgb = _eight_bits(values, white.value)
    elif image.has_transparency_data:
        rgb = flatten_alpha(np.asarray(image.convert("RGBA")))
    else:
        rgb = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    return _upright(rgb, _orientation(image))


def _eight_bits(values: npt.NDArray[Any], white: float) -> ImageArray:
    if values.ndim == 3 and values.shape[2] == 4:
        alpha = values[..., 3]
        return flatten_alpha(np.dstack([_scaled(values[..., :3], white), _scaled(alpha, _white_for(alpha))]))
    scaled = _scaled(values, white)
    return np.repeat(scaled[:, :, None], 3, axis=2) if scaled.ndim == 2 else scaled


def _scaled(values: npt.NDArray[Any], white: float) -> ImageArray:
    if values.dtype == np.uint16:
        table = (np.arange(2**16) * (255 / white)).round().clip(0, 255).astype(np.uint8)
        return table[values]
    finite = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=white, neginf=0.0)
    return (finite * np.float32(255 / white)).round().clip(0, 255).astype(np.uint8)


def flatten_alpha(rgba: npt.NDArray[np.uint8]) -> ImageArray:
    """Blend an image with white according to its alpha channel.

    Args:
        rgba: uint8 (H, W, 4), colours not multiplied by alpha.

    Returns:
        uint8 (H, W, 3), contiguous.
    """
    alpha = rgba[..., 3:].astype(np.uint16)
    if (alpha == 255).all():
        return np.ascontiguousarray(rgba[..., :3])
    # At most 255 * 255 + 127, which fits into 16 bits.
    mixed = rgba[..., :3] * alpha + _BACKGROUND * (255 - alpha) + 127
    return (mixed // 255).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 if there is none; other broken tags do not matter."""
    if image.format == "TIFF":
        return 1  # Pillow applies it on decoding
    orientation: object = None
    exif = image.info.get("exif")
    if isinstance(exif, bytes):
        orientation = _orientation_in(exif.removeprefix(b"Exif\0\0"))
    else:
        # Pillow knows the variants of other programs, but may raise on broken ones.
        with contextlib.suppress(Exception):
            orientation = image.getexif().get(ExifTags.Base.Orientation)
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _orientation_in(exif: bytes) -> int | None:
    """Return the orientation from the first directory of an EXIF block, ignoring all other tags."""
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


def _upright(image: ImageArray, orientation: int) -> ImageArray:
    if orientation in _TRANSPOSED:
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return np.ascontiguousarray(image)
