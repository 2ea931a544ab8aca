"""Drawing of masks and a legend over frames."""

from __future__ import annotations

import colorsys
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from refervos.errors import VideoError
from refervos.segmentation import Segmentation
from refervos.video.frames import Frame, ImageArray
from refervos.video.lettering import Lettering, can_write, drawable_text, drawing_problem
from refervos.video.tracks import TrackNumbers, check_fit

Colour = tuple[int, int, int]

# Vivid variants of the colours of Okabe and Ito, which are distinguishable with any kind of colour vision; those that
# stand out against skin, sky, grass and street come first.
_BASE: tuple[Colour, ...] = (
    (255, 106, 0),
    (0, 150, 255),
    (250, 225, 40),
    (225, 90, 190),
    (0, 190, 130),
    (110, 215, 255),
    (150, 105, 255),
    (215, 40, 55),
)


def palette(count: int) -> list[Colour]:
    """Return distinct colours; the first eight are distinguishable with any kind of colour vision.

    Args:
        count: Number of colours.

    Returns:
        RGB triples from 0 to 255; a longer palette starts with the shorter one. After 264 colours they repeat.
    """
    colours = _BASE if count <= len(_BASE) else _many()
    return [colours[k % len(colours)] for k in range(count)]


@functools.lru_cache(maxsize=1)
def _many() -> tuple[Colour, ...]:
    """Return the base colours and 256 more, each chosen from a grid as far as possible from all before it."""
    grid = [
        colorsys.hsv_to_rgb(hue / 32, saturation, value)
        for hue in range(32)
        for saturation, value in itertools.product((0.45, 0.7, 0.95), (0.55, 0.75, 1.0))
    ]
    candidates = np.array(grid) * 255
    chosen = [np.array(colour, np.float64) for colour in _BASE]
    # Weights of squared differences: the eye is most sensitive to green.
    weights = np.array([2.0, 4.0, 2.5])
    nearest = np.min([((candidates - colour) ** 2 @ weights) for colour in chosen], axis=0)
    for _ in range(256):
        best = int(nearest.argmax())
        chosen.append(candidates[best].round())
        nearest = np.minimum(nearest, (candidates - candidates[best]) ** 2 @ weights)
    return tuple((int(red), int(green), int(blue)) for red, green, blue in chosen)


class Painter:
    """Overlay renderer for the frames of one video, in which each track keeps its colour.

    Args:
        opacity: Opacity of the mask colour, 0 to 1.
        legend: Whether to draw the legend.

    Attributes:
        warnings: Sentences about text that could not be drawn.

    Raises:
        VideoError: The opacity is out of range.
    """

    def __init__(self, opacity: float = 0.4, legend: bool = True) -> None:
        if not 0 <= opacity <= 1:
            raise VideoError(f"opacity is {opacity}; it must be from 0 to 1.")
        self._opacity, self._legend = opacity, legend
        self._numbers = TrackNumbers()
        self._checked: set[str] = set()
        self.warnings: list[str] = []

    def paint(self, frame: Frame, segmentation: Segmentation) -> ImageArray:
        """Draw one frame.

        Args:
            frame: Frame of the source.
            segmentation: Its masks.

        Returns:
            uint8 (H, W, 3), a new image.

        Raises:
            VideoError: The masks do not fit the frame.
        """
        check_fit(frame, segmentation)
        numbers = [self._numbers.of(track) for track in segmentation.track_ids]
        colours = palette(max(numbers, default=0) + 1)
        if self._legend:
            self._check_drawable(segmentation.expressions)
        return draw_overlay(
            frame.image,
            segmentation,
            [colours[number] for number in numbers] or colours,
            opacity=self._opacity,
            legend=self._legend,
        )

    def _check_drawable(self, expressions: Sequence[str]) -> None:
        for expression in set(expressions) - self._checked:
            self._checked.add(expression)
            sentence = drawing_problem(expression)
            if sentence is not None and sentence not in self.warnings:
                self.warnings.append(sentence)


def draw_overlay(
    image: ImageArray,
    segmentation: Segmentation,
    palette: Sequence[Colour],
    *,
    opacity: float = 0.4,
    legend: bool = True,
) -> ImageArray:
    """Draw each track's mask in its colour with an outline, and a legend with the expressions.

    Args:
        image: uint8 (H, W, 3) RGB; not modified.
        segmentation: Masks at the image's size.
        palette: One RGB triple per track, repeated if it is too short.
        opacity: Opacity of the mask colour, 0 to 1.
        legend: Whether to draw the legend in the upper left corner; omitted if the image is too small for readable
            text.

    Returns:
        uint8 (H, W, 3), a new image.
    """
    out = image.copy()
    height, width = out.shape[:2]
    count = len(segmentation.track_ids)
    colours = [palette[k % len(palette)] for k in range(count)]
    thickness = max(1, round(min(height, width) / 220))
    crops: list[tuple[slice, slice, npt.NDArray[np.bool_], Colour]] = []
    for mask, colour in zip(segmentation.masks, colours, strict=True):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if rows.size == 0:
            continue
        # One pixel of margin for the dark line around the outline.
        vertical = slice(max(0, int(rows[0]) - 1), int(rows[-1]) + 2)
        horizontal = slice(max(0, int(columns[0]) - 1), int(columns[-1]) + 2)
        crop = mask[vertical, horizontal]
        crops.append((vertical, horizontal, crop, colour))
        view = out[vertical, horizontal]
        tint = np.arange(256, dtype=np.float32)[:, None] * (1 - opacity) + np.array(colour, np.float32) * opacity
        view[crop] = tint.round().astype(np.uint8)[view[crop], np.arange(3)]
    # Outlines are drawn after all tints, so that none is hidden.
    for vertical, horizontal, crop, colour in crops:
        view = out[vertical, horizontal]
        around = _dilated(crop) & ~crop
        view[around] = view[around] // 3
        inner = crop
        for _ in range(thickness):
            inner = ~_dilated(~inner)
        view[crop & ~inner] = colour
    if legend and count and can_write():
        _draw_legend(out, segmentation, colours)
    return out


def _dilated(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Dilate a mask by its 4-neighbours; the image border does not count as background, so no outline follows it."""
    dilated = mask.copy()
    dilated[1:] |= mask[:-1]
    dilated[:-1] |= mask[1:]
    dilated[:, 1:] |= mask[:, :-1]
    dilated[:, :-1] |= mask[:, 1:]
    return dilated


def _draw_legend(out: ImageArray, segmentation: Segmentation, colours: Sequence[Colour]) -> None:
    height, width = out.shape[:2]
    size = min(40, max(11, round(min(height, width) / 30)))
    row = round(size * 1.5)
    margin = max(2, size // 2)
    max_lines = int((0.34 * height - 2 * margin) // row)
    swatch = round(size * 0.8)
    letters = Lettering(size)
    number_width = math.ceil(letters.length("100%"))
    fixed = 4 * margin + swatch + number_width
    available = 0.94 * width - margin - fixed
    if max_lines < 1 or available < 6 * size:
        return
    count = len(colours)
    listed = count if count <= max_lines else max(0, max_lines - 1)
    texts = [letters.fitted(drawable_text(text), available) for text in segmentation.expressions[:listed]]
    more = f"and {count - listed} more" if listed < count else None
    lines = [*texts, more] if more is not None else texts
    text_width = math.ceil(max(letters.length(line) for line in lines))
    panel_width, panel_height = fixed + text_width, row * len(lines) + margin
    top, left = margin, margin
    panel = Image.new("RGBA", (panel_width, panel_height), (0, 0, 0, 0))
    draw = ImageDraw.Draw(panel)
    draw.rounded_rectangle((0, 0, panel_width - 1, panel_height - 1), radius=margin, fill=(12, 12, 14, 165))
    for k, line in enumerate(lines):
        middle = margin / 2 + row * (k + 0.5)
        if k >= listed:
            letters.write(draw, 2 * margin + swatch, middle, line, (190, 190, 190, 255))
            continue
        presence = float(segmentation.presence[k])
        visible = presence >= 0.5
        box = (margin, middle - swatch / 2, margin + swatch, middle + swatch / 2)
        # A hollow mark and dim text mark objects that the model believes to be absent.
        line_width = max(1, size // 8)
        draw.rectangle(box, fill=(*colours[k], 255) if visible else None, outline=(*colours[k], 255), width=line_width)
        ink = (255, 255, 255, 255) if visible else (165, 165, 165, 255)
        letters.write(draw, 2 * margin + swatch, middle, line, ink)
        number = f"{presence:.0%}" if math.isfinite(presence) else "?"
        letters.write(draw, panel_width - margin - letters.length(number), middle, number, ink)
    region = out[top : top + panel_height, left : left + panel_width]
    under = Image.fromarray(region)
    under.paste(panel, mask=panel.getchannel("A"))
    region[:] = np.asarray(under)
