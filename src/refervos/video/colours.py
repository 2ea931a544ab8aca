"""Brings decoded pictures to what the models were trained on: upright, square pixels, colours as on an ordinary screen.

What a stream says of itself is followed as players do. HDR (PQ and HLG) is brought to the brightness of BT.709, wide
colours to its primaries; a large picture that does not name its matrix is taken for BT.709, a small one for BT.601;
pixels that are not square are stretched; what is transparent lies on white.
"""

from __future__ import annotations

import contextlib
import functools
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.error import FFmpegError
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorPrimaries, ColorTrc

from refervos.errors import VideoError
from refervos.files.images import ImageArray, flatten_alpha, refuse_large

Floats = npt.NDArray[np.float64]

# Numbers of ITU-T H.273 that PyAV has no names for.
_MATRIX_BT709, _MATRIX_BT601, _MATRIX_BT2020 = 1, 6, 9
_MATRICES = (1, 4, 5, 6, 7, 9)
# Not told; told as RGB, which it is not; BT.2020 with constant luminance, near enough to the other.
_MATRIX_UNKNOWN = (0, 2, 3, 10)
_RANGES = (0, 1, 2)
_UNKNOWN = 2

_HDR = {ColorTrc.SMPTE2084.value: "PQ", ColorTrc.ARIB_STD_B67.value: "HLG"}
# Linear light of each set of primaries to that of BT.709 (white D65 in all of them).
_TO_BT709: dict[int, tuple[str, list[list[float]]]] = {
    ColorPrimaries.BT2020.value: (
        "BT.2020",
        [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]],
    ),
    ColorPrimaries.SMPTE432.value: (
        "Display P3",
        [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]],
    ),
}
_WHITE = 203.0  # candela per square metre at which HDR shows what is white on an ordinary screen (BT.2408)
_PEAK = 1000.0  # the same at which highlights end: of HLG by definition, of PQ in most productions
_KNEE = 0.8  # share of an ordinary screen's light up to which it is left as it is; above, highlights are squeezed in
_CURVE = 4.5532  # solves c = log(1 + c * (_PEAK / _WHITE - _KNEE) / (1 - _KNEE))
_LEVEL = 9  # the table of colours has this to the power of two entries for each of red, green and blue

_LEAST_STRETCH, _MOST_STRETCH = 1.01, 8.0  # less is rounding, more a fault of the file


class Converter:
    """Makes RGB arrays of the decoded pictures of one stream.

    Args:
        described: How messages name the stream.
        square_pixels: Whether pixels that are not square are stretched.
        camera: Whether pictures come straight from a camera, whose matrix is BT.601 at all sizes unless it says so.

    Attributes:
        notes: Sentences on what was done to pictures, each once.
    """

    def __init__(self, described: str, *, square_pixels: bool = True, camera: bool = False) -> None:
        self._described = described
        self._square_pixels = square_pixels
        self._camera = camera
        self._notes: dict[str, str] = {}  # by kind
        self._table: tuple[tuple[object, ...], _ColourTable] | None = None

    @property
    def notes(self) -> list[str]:
        """Sentences on what was done to pictures, each once."""
        return list(self._notes.values())

    def size(self, picture: Any, aspect: Fraction | None) -> tuple[int, int]:
        """Height and width that a decoded picture will have; `aspect` as in `rgb`."""
        height, width = self._stretched(picture, aspect)
        return upright(np.empty((height, width, 0), np.uint8), picture).shape[:2]

    def rgb(self, picture: Any, aspect: Fraction | None) -> ImageArray:
        """Converts a picture.

        Args:
            picture: A decoded PyAV frame.
            aspect: Width of its pixels by their height; None where nothing is known of it.

        Returns:
            uint8 (H, W, 3), contiguous.

        Raises:
            VideoError: It has more pixels than are read.
        """
        height, width = self._stretched(picture, aspect)
        refuse_large(self._described, width, height)
        if (height, width) != (picture.height, picture.width):
            self._notes["aspect"] = (
                f"{self._described} has pixels that are not square; its frames and masks are {width}x{height}, "
                f"as it is shown, and not {picture.width}x{picture.height}, as it is stored."
            )
        self._name_matrix(picture)
        wide = self._wide(picture)
        try:
            shown = picture if wide is None else self._table_for(picture, *wide).apply(picture)
            image = _array(shown, width, height)
        except (FFmpegError, ValueError) as error:
            raise VideoError(
                f"{self._described} has pictures of the kind {picture.format.name}, which cannot be turned into RGB "
                f"({getattr(error, 'strerror', None) or error}); convert it to H.264."
            ) from error
        return upright(image, picture)

    def _stretched(self, picture: Any, aspect: Fraction | None) -> tuple[int, int]:
        """Height and width with square pixels; the side that is too short grows, so that nothing is lost."""
        height, width = picture.height, picture.width
        if not self._square_pixels or not aspect or aspect <= 0:
            return height, width
        ratio = float(max(aspect, 1 / aspect))
        if not _LEAST_STRETCH <= ratio <= _MOST_STRETCH:
            return height, width
        return (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)

    def _name_matrix(self, picture: Any) -> None:
        """Names the matrix of a picture that does not, or none that FFmpeg can undo."""
        if picture.color_range not in _RANGES:
            picture.color_range = 0  # unknown
        if picture.format.is_rgb or picture.colorspace in _MATRICES:
            return
        if picture.colorspace not in _MATRIX_UNKNOWN:
            self._notes["matrix"] = (
                f"{self._described} has colours coded in a way that is not known here (matrix {picture.colorspace} of "
                "H.273), which may look wrong."
            )
        if picture.color_trc in _HDR or picture.color_primaries == ColorPrimaries.BT2020:
            picture.colorspace = _MATRIX_BT2020
        elif not self._camera and (picture.width >= 1280 or picture.height > 576):
            picture.colorspace = _MATRIX_BT709
        else:
            picture.colorspace = _MATRIX_BT601

    def _wide(self, picture: Any) -> tuple[str | None, int] | None:
        """Transfer of HDR (None for ordinary) and primaries, where they are others than those of BT.709."""
        transfer = _HDR.get(picture.color_trc)
        primaries = picture.color_primaries
        if transfer is not None:
            known = primaries in _TO_BT709 or primaries == ColorPrimaries.BT709
            self._notes["colours"] = f"{self._described} is HDR ({transfer}); its brightness was mapped to BT.709."
            return transfer, primaries if known else ColorPrimaries.BT2020.value
        if primaries in _TO_BT709:
            name = _TO_BT709[primaries][0]
            self._notes["colours"] = f"{self._described} has the wide colours of {name}; they were mapped to BT.709."
            return None, primaries
        return None

    def _table_for(self, picture: Any, transfer: str | None, primaries: int) -> _ColourTable:
        key = (picture.width, picture.height, picture.format.name, picture.colorspace, picture.color_range)
        wanted = (*key, transfer, primaries)
        if self._table is None or self._table[0] != wanted:
            self._table = wanted, _ColourTable(picture, transfer, primaries)
        return self._table[1]


def _array(picture: Any, width: int, height: int) -> ImageArray:
    if not _may_be_transparent(picture):
        image: ImageArray = picture.to_ndarray(format="rgb24", width=width, height=height)
        return image
    return flatten_alpha(picture.to_ndarray(format="rgba", width=width, height=height))


def _may_be_transparent(picture: Any) -> bool:
    return picture.format.has_palette or any(component.is_alpha for component in picture.format.components)


class _ColourTable:
    """Looks colours up in a table, by FFmpeg, which does it on all cores."""

    def __init__(self, picture: Any, transfer: str | None, primaries: int) -> None:
        # In floats, so that the table may leave what no screen shows to be cut off behind it: cut off within, edges of
        # the range would reach into it. (In integers FFmpeg takes red for blue, but for layouts of mixed planes.)
        layout = "gbrapf32le" if _may_be_transparent(picture) else "gbrpf32le"
        table = _table(transfer, primaries)
        graph = av.filter.Graph()
        self._pictures = graph.add(
            "buffer",
            video_size=f"{picture.width}x{picture.height}",
            pix_fmt=picture.format.name,
            time_base="1/1000",
            colorspace=str(picture.colorspace),
            range=str(picture.color_range),
        )
        colours = graph.add(
            "buffer", video_size=f"{table.shape[1]}x{table.shape[0]}", pix_fmt="gbrpf32le", time_base="1/1000"
        )
        looked_up = graph.add("haldclut", clut="first")
        for place, source in enumerate((self._pictures, colours)):
            converted = graph.add("format", layout)
            source.link_to(converted)
            converted.link_to(looked_up, 0, place)
        self._results = graph.add("buffersink")
        looked_up.link_to(self._results)
        graph.configure()
        self._graph = graph  # contexts do not keep it
        frame = av.VideoFrame.from_ndarray(table, format="gbrpf32le")
        frame.pts = 0
        colours.push(frame)
        colours.push(None)
        self._count = 0

    def apply(self, picture: Any) -> Any:
        """The picture with its colours looked up; its time, and what it says of its colours, are lost."""
        # All that the table stands for; FFmpeg would refuse some of it.
        picture.color_trc = picture.color_primaries = _UNKNOWN
        picture.pts = self._count
        self._count += 1
        self._pictures.push(picture)
        return self._results.pull()


@functools.lru_cache(maxsize=4)
def _table(transfer: str | None, primaries: int) -> npt.NDArray[np.float32]:
    """Colours of BT.709 for coded colours, in the order of a Hald CLUT: red runs fastest, blue slowest.

    Args:
        transfer: PQ, HLG, or None for that of ordinary screens.
        primaries: Those of the coded colours.

    Returns:
        float32 (729, 729, 3), red, green and blue, beyond 0 to 1 where no ordinary screen shows them.
    """
    steps = np.linspace(0, 1, _LEVEL**2)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    coded = np.stack([red, green, blue], axis=-1).reshape(-1, 3)
    light = {"PQ": _light_of_pq, "HLG": _light_of_hlg, None: _light_of_srgb}[transfer](coded)
    if primaries in _TO_BT709:
        light = light @ np.array(_TO_BT709[primaries][1]).T
    shown = _srgb_of_light(_squeezed(light) if transfer is not None else light)
    return shown.astype(np.float32).reshape(_LEVEL**3, _LEVEL**3, 3)


def _light_of_pq(coded: Floats) -> Floats:
    """Light in units of white (SMPTE ST 2084)."""
    power = coded ** (1 / 78.84375)
    return (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125) * 10000 / _WHITE


def _light_of_hlg(coded: Floats) -> Floats:
    """Light of a screen of 1000 candela per square metre, in units of white (BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    brightness = scene @ np.array([[0.2627], [0.6780], [0.0593]])
    return scene * brightness**0.2 * _PEAK / _WHITE


def _light_of_srgb(coded: Floats) -> Floats:
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _srgb_of_light(light: Floats) -> Floats:
    least = np.maximum(light, 0.0031308)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * least ** (1 / 2.4) - 0.055)


def _squeezed(light: Floats) -> Floats:
    """Light up to the peak brought into 0 to 1, by one factor for red, green and blue, so that hues stay."""
    most = light.max(axis=-1, keepdims=True)
    over = np.maximum(most - _KNEE, 0) / (1 - _KNEE)
    # A logarithm, as highlights span powers of two; it goes on at the knee without a bend, and ends at 1 at the peak.
    squeezed = _KNEE + (1 - _KNEE) * np.log1p(_CURVE * over) / _CURVE
    return np.where(most > _KNEE, light * squeezed / np.maximum(most, _KNEE), light)


def upright(image: ImageArray, picture: Any) -> ImageArray:
    """Turns an image as the display matrix of its decoded picture asks.

    Args:
        image: (H, W, C) as decoded.
        picture: The PyAV frame that it comes from.

    Returns:
        The image upright, contiguous; turns by other than quarter circles are rounded to those.
    """
    matrix = _display_matrix(picture)
    if matrix is None:
        return np.ascontiguousarray(image)
    # (x, y) goes to (a x + c y, b x + d y), y downward; the other entries shift and scale.
    a, b, _, c, d = matrix[:5].tolist()
    if abs(b) > abs(a):
        image = image.swapaxes(0, 1)
        across, down = c, b
    else:
        across, down = a, d
    if across < 0:
        image = image[:, ::-1]
    if down < 0:
        image = image[::-1]
    return np.ascontiguousarray(image)


def _display_matrix(picture: Any) -> npt.NDArray[np.int32] | None:
    # Made step by step, as PyAV gives up at the first kind that it does not know; FFmpeg has newer ones, such as EXIF.
    found = SideDataContainer.__new__(SideDataContainer)
    with contextlib.suppress(ValueError):
        found.__init__(picture)  # type: ignore[misc]
    for index in range(len(found)):
        with contextlib.suppress(ValueError):
            if found[index].type == SideDataType.DISPLAYMATRIX:
                return np.frombuffer(bytes(found[index]), np.int32)
    # Behind one that PyAV does not know: the turn can still be had, though not whether it is mirrored.
    quarter = round(picture.rotation / 90) % 4  # counterclockwise
    if not quarter:
        return None
    across, down = ((1, 0), (0, -1), (-1, 0), (0, 1))[quarter]
    return np.array([across, down, 0, -down, across, 0, 0, 0, 1], np.int32)
