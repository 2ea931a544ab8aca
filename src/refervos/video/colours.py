"""Convert decoded frames to what the models were trained on: upright, square pixels, standard dynamic range, BT.709.

Metadata of the stream is interpreted as players do. HDR (PQ and HLG) is tone-mapped to BT.709 and wide gamuts are
converted to its primaries; a frame without a colour matrix is assumed to be BT.709 if large and BT.601 if small;
non-square pixels are stretched; transparent pixels are blended with white.
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

# Code points of ITU-T H.273 without a name in PyAV.
_MATRIX_BT709, _MATRIX_BT601, _MATRIX_BT2020 = 1, 6, 9
_MATRICES = (1, 4, 5, 6, 7, 9)
# Unspecified; wrongly marked as RGB; BT.2020 with constant luminance, close enough to non-constant.
_MATRIX_UNKNOWN = (0, 2, 3, 10)
_RANGES = (0, 1, 2)
_UNKNOWN = 2

_HDR = {ColorTrc.SMPTE2084.value: "PQ", ColorTrc.ARIB_STD_B67.value: "HLG"}
# Linear light of each set of primaries to that of BT.709 (all with white point D65).
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
_WHITE = 203.0  # cd/m2 of SDR reference white in HDR (BT.2408)
_PEAK = 1000.0  # cd/m2 of the brightest highlights: of HLG by definition, of PQ in most productions
_KNEE = 0.8  # fraction of SDR white up to which light is unchanged; highlights are compressed into the rest
_CURVE = 4.5532  # solves c = log(1 + c * (_PEAK / _WHITE - _KNEE) / (1 - _KNEE))
_LEVEL = 9  # the colour table has _LEVEL squared entries for each of red, green and blue

_LEAST_STRETCH, _MOST_STRETCH = 1.01, 8.0  # less is rounding, more is an error in the file


class Converter:
    """Converter of the decoded frames of one stream to RGB arrays.

    Args:
        described: Name of the stream in messages.
        square_pixels: Whether to stretch non-square pixels.
        camera: Whether the frames are raw frames of a camera, whose default matrix is BT.601 at all sizes.

    Attributes:
        notes: Sentences about the conversions made, each once.
    """

    def __init__(self, described: str, *, square_pixels: bool = True, camera: bool = False) -> None:
        self._described = described
        self._square_pixels = square_pixels
        self._camera = camera
        self._notes: dict[str, str] = {}  # by kind
        self._table: tuple[tuple[object, ...], _ColourTable] | None = None

    @property
    def notes(self) -> list[str]:
        """Sentences about the conversions made, each once."""
        return list(self._notes.values())

    def size(self, decoded: Any, aspect: Fraction | None) -> tuple[int, int]:
        """Return height and width of a decoded frame after conversion; ``aspect`` as in ``rgb``."""
        height, width = self._stretched(decoded, aspect)
        return upright(np.empty((height, width, 0), np.uint8), decoded).shape[:2]

    def rgb(self, decoded: Any, aspect: Fraction | None) -> ImageArray:
        """Convert a decoded frame.

        Args:
            decoded: PyAV frame.
            aspect: Pixel aspect ratio (width by height); None if unknown.

        Returns:
            uint8 (H, W, 3), contiguous.

        Raises:
            VideoError: It has too many pixels.
        """
        height, width = self._stretched(decoded, aspect)
        refuse_large(self._described, width, height)
        if (height, width) != (decoded.height, decoded.width):
            self._notes["aspect"] = (
                f"{self._described} has non-square pixels; its frames and masks are {width}x{height}, "
                f"as displayed, not {decoded.width}x{decoded.height}, as stored."
            )
        self._set_matrix(decoded)
        wide = self._wide(decoded)
        try:
            standard = decoded if wide is None else self._table_for(decoded, *wide).apply(decoded)
            image = _array(standard, width, height)
        except (FFmpegError, ValueError) as error:
            raise VideoError(
                f"{self._described} has frames in the pixel format {decoded.format.name}, not convertible to RGB "
                f"({getattr(error, 'strerror', None) or error}); convert it to H.264."
            ) from error
        return upright(image, decoded)

    def _stretched(self, decoded: Any, aspect: Fraction | None) -> tuple[int, int]:
        """Return height and width with square pixels; one side is enlarged, so that no detail is lost."""
        height, width = decoded.height, decoded.width
        if not self._square_pixels or not aspect or aspect <= 0:
            return height, width
        ratio = float(max(aspect, 1 / aspect))
        if not _LEAST_STRETCH <= ratio <= _MOST_STRETCH:
            return height, width
        return (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)

    def _set_matrix(self, decoded: Any) -> None:
        """Set the colour matrix of a frame if it is missing or not supported by FFmpeg."""
        if decoded.color_range not in _RANGES:
            decoded.color_range = 0  # unknown
        if decoded.format.is_rgb or decoded.colorspace in _MATRICES:
            return
        if decoded.colorspace not in _MATRIX_UNKNOWN:
            self._notes["matrix"] = (
                f"{self._described} has an unknown colour matrix ({decoded.colorspace} in H.273); its "
                "colours may be wrong."
            )
        if decoded.color_trc in _HDR or decoded.color_primaries == ColorPrimaries.BT2020:
            decoded.colorspace = _MATRIX_BT2020
        elif not self._camera and (decoded.width >= 1280 or decoded.height > 576):
            decoded.colorspace = _MATRIX_BT709
        else:
            decoded.colorspace = _MATRIX_BT601

    def _wide(self, decoded: Any) -> tuple[str | None, int] | None:
        """Return the HDR transfer function (None for SDR) and the primaries; None if both are those of BT.709."""
        transfer = _HDR.get(decoded.color_trc)
        primaries = decoded.color_primaries
        if transfer is not None:
            known = primaries in _TO_BT709 or primaries == ColorPrimaries.BT709
            self._notes["colours"] = f"{self._described} is HDR ({transfer}); it was tone-mapped to BT.709."
            return transfer, primaries if known else ColorPrimaries.BT2020.value
        if primaries in _TO_BT709:
            name = _TO_BT709[primaries][0]
            self._notes["colours"] = f"{self._described} has the wide colour gamut {name}; it was converted to BT.709."
            return None, primaries
        return None

    def _table_for(self, decoded: Any, transfer: str | None, primaries: int) -> _ColourTable:
        key = (decoded.width, decoded.height, decoded.format.name, decoded.colorspace, decoded.color_range)
        wanted = (*key, transfer, primaries)
        if self._table is None or self._table[0] != wanted:
            self._table = wanted, _ColourTable(decoded, transfer, primaries)
        return self._table[1]


def _array(decoded: Any, width: int, height: int) -> ImageArray:
    if not _may_have_alpha(decoded):
        image: ImageArray = decoded.to_ndarray(format="rgb24", width=width, height=height)
        return image
    return flatten_alpha(decoded.to_ndarray(format="rgba", width=width, height=height))


def _may_have_alpha(decoded: Any) -> bool:
    return decoded.format.has_palette or any(component.is_alpha for component in decoded.format.components)


class _ColourTable:
    """Lookup table for colours, applied by FFmpeg on all cores."""

    def __init__(self, decoded: Any, transfer: str | None, primaries: int) -> None:
        # In floats, so that out-of-gamut colours are clipped after the lookup: clipped table entries would distort
        # their neighbours. (In integers FFmpeg swaps red and blue for some planar layouts.)
        layout = "gbrapf32le" if _may_have_alpha(decoded) else "gbrpf32le"
        table = _table(transfer, primaries)
        graph = av.filter.Graph()
        self._frames = graph.add(
            "buffer",
            video_size=f"{decoded.width}x{decoded.height}",
            pix_fmt=decoded.format.name,
            time_base="1/1000",
            colorspace=str(decoded.colorspace),
            range=str(decoded.color_range),
        )
        colours = graph.add(
            "buffer", video_size=f"{table.shape[1]}x{table.shape[0]}", pix_fmt="gbrpf32le", time_base="1/1000"
        )
        looked_up = graph.add("haldclut", clut="first")
        for place, source in enumerate((self._frames, colours)):
            converted = graph.add("format", layout)
            source.link_to(converted)
            converted.link_to(looked_up, 0, place)
        self._results = graph.add("buffersink")
        looked_up.link_to(self._results)
        graph.configure()
        self._graph = graph  # filter contexts do not keep it alive
        frame = av.VideoFrame.from_ndarray(table, format="gbrpf32le")
        frame.pts = 0
        colours.push(frame)
        colours.push(None)
        self._count = 0

    def apply(self, decoded: Any) -> Any:
        """Return the frame with its colours looked up; its time and colour metadata are lost."""
        # The table accounts for both; FFmpeg would refuse some values.
        decoded.color_trc = decoded.color_primaries = _UNKNOWN
        decoded.pts = self._count
        self._count += 1
        self._frames.push(decoded)
        return self._results.pull()


@functools.lru_cache(maxsize=4)
def _table(transfer: str | None, primaries: int) -> npt.NDArray[np.float32]:
    """Return the BT.709 colours of all coded colours, in the order of a Hald CLUT: red varies fastest, blue slowest.

    Args:
        transfer: PQ, HLG, or None for SDR.
        primaries: Primaries of the coded colours.

    Returns:
        float32 (729, 729, 3), red, green and blue; outside of 0 to 1 for out-of-gamut colours.
    """
    steps = np.linspace(0, 1, _LEVEL**2)
    blue, green, red = np.meshgrid(steps, steps, steps, indexing="ij")
    coded = np.stack([red, green, blue], axis=-1).reshape(-1, 3)
    light = {"PQ": _light_of_pq, "HLG": _light_of_hlg, None: _light_of_srgb}[transfer](coded)
    if primaries in _TO_BT709:
        light = light @ np.array(_TO_BT709[primaries][1]).T
    srgb = _srgb_of_light(_compressed(light) if transfer is not None else light)
    return srgb.astype(np.float32).reshape(_LEVEL**3, _LEVEL**3, 3)


def _light_of_pq(coded: Floats) -> Floats:
    """Decode PQ to light relative to white (SMPTE ST 2084)."""
    power = coded ** (1 / 78.84375)
    return (np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)) ** (1 / 0.1593017578125) * 10000 / _WHITE


def _light_of_hlg(coded: Floats) -> Floats:
    """Decode HLG to the light of a 1000 cd/m2 display, relative to white (BT.2100)."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(coded <= 0.5, coded**2 / 3, (np.exp((coded - c) / a) + b) / 12)
    brightness = scene @ np.array([[0.2627], [0.6780], [0.0593]])
    return scene * brightness**0.2 * _PEAK / _WHITE


def _light_of_srgb(coded: Floats) -> Floats:
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _srgb_of_light(light: Floats) -> Floats:
    least = np.maximum(light, 0.0031308)
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * least ** (1 / 2.4) - 0.055)


def _compressed(light: Floats) -> Floats:
    """Compress light up to the peak into 0 to 1, with one factor for red, green and blue to keep the hue."""
    most = light.max(axis=-1, keepdims=True)
    over = np.maximum(most - _KNEE, 0) / (1 - _KNEE)
    # Logarithmic, as highlights span several stops; smooth at the knee, and 1 at the peak.
    compressed = _KNEE + (1 - _KNEE) * np.log1p(_CURVE * over) / _CURVE
    return np.where(most > _KNEE, light * compressed / np.maximum(most, _KNEE), light)


def upright(image: ImageArray, decoded: Any) -> ImageArray:
    """Rotate and flip an image according to the display matrix of its decoded frame.

    Args:
        image: (H, W, C) as decoded.
        decoded: The PyAV frame it comes from.

    Returns:
        The upright image, contiguous; rotations are rounded to multiples of 90 degrees.
    """
    matrix = _display_matrix(decoded)
    if matrix is None:
        return np.ascontiguousarray(image)
    # (x, y) maps to (a x + c y, b x + d y), y downward; the other entries translate and scale.
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


def _display_matrix(decoded: Any) -> npt.NDArray[np.int32] | None:
    # Built step by step, as PyAV stops at the first side data of an unknown type, such as EXIF in newer FFmpeg.
    entries = SideDataContainer.__new__(SideDataContainer)
    with contextlib.suppress(ValueError):
        entries.__init__(decoded)  # type: ignore[misc]
    for index in range(len(entries)):
        with contextlib.suppress(ValueError):
            if entries[index].type == SideDataType.DISPLAYMATRIX:
                return np.frombuffer(bytes(entries[index]), np.int32)
    # The matrix follows an unknown type: the rotation is still available, but not the mirroring.
    quarter = round(decoded.rotation / 90) % 4  # counterclockwise
    if not quarter:
        return None
    across, down = ((1, 0), (0, -1), (-1, 0), (0, 1))[quarter]
    return np.array([across, down, 0, -down, across, 0, 0, 0, 1], np.int32)
