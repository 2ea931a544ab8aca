"""Contact sheets: frames side by side with the ground truth outlined and the prediction tinted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from refervos.data.sample import Sample
from refervos.evaluation.predictions import Predictions
from refervos.video.lettering import Lettering, can_write, drawable_text

ImageArray = npt.NDArray[np.uint8]

Masks = npt.NDArray[np.bool_]

TINT = (255, 106, 0)
"""Colour of the prediction: an orange that differs from white for any kind of colour vision."""

WHITE = (255, 255, 255)
OPACITY = 0.4
HATCH = 8
"""Distance of the hatching's diagonal lines in pixels; hatching shows the mask on objects of the tint's colour, too."""

OUTLINE = 2
"""Width of the outlines of ground truth and prediction, in pixels of the sheet."""

FRAME_SIZE = 256
"""Long side of the drawn frames in pixels; smaller ones are enlarged by an integer factor."""

EXPRESSION_FRAMES = 6
"""Maximum number of frames shown per expression."""

MIN_WIDTH = 240
"""Minimum width of a sheet in pixels, so that its title is legible."""

LEGEND = "white outline: ground truth, orange: prediction"

GAP = 4
TITLE = 20
LABEL = 13
"""Heights in pixels: space between frames, font size of the title, font size of the captions."""


def draw_expression(sample: Sample, predictions: Predictions) -> Image.Image:
    """Draw some annotated frames of an expression: the ground truth outlined in white, the prediction tinted.

    Args:
        sample: The expression, which has a ground truth.
        predictions: The masks; a frame without one shows the ground truth alone.

    Returns:
        An RGB image.
    """
    assert sample.ground_truth is not None
    names, predicted_names = sample.video.frames.names, predictions.names(sample)
    tiles, captions = [], []
    for index in evenly_spaced(sample.ground_truth.annotated, EXPRESSION_FRAMES):
        frame, target = sample.video.frames.read(index), sample.ground_truth.mask(index)
        has_mask = names[index] in predicted_names
        predicted = predictions.mask(sample, names[index], target.shape) if has_mask else np.zeros_like(target)
        tiles.append(draw_frame(frame, target, predicted))
        captions.append(names[index] if has_mask else f"{names[index]}: no mask")
    return lay_out(tiles, captions, (), EXPRESSION_FRAMES)


def evenly_spaced(indices: Sequence[int], count: int) -> list[int]:
    """Return at most ``count`` evenly spaced indices, including the first and the last."""
    chosen = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [indices[position] for position in chosen]


def lay_out(tiles: Sequence[ImageArray], captions: Sequence[str], lines: Sequence[str], columns: int) -> Image.Image:
    """Arrange images in rows on one sheet.

    Args:
        tiles: uint8 RGB images; all cells have the size of the largest.
        captions: Text below each tile.
        lines: Text above all tiles, wrapped to the width. Without FreeType in Pillow, all text is left out.
        columns: Tiles per row.

    Returns:
        An RGB image.
    """
    if not can_write():
        lines, captions = (), ()
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    columns = min(columns, len(tiles))
    canvas_width = max(MIN_WIDTH, columns * (width + GAP) + GAP)
    text_width = canvas_width - 2 * GAP
    wrapped = [part for line in lines for part in Lettering(TITLE).wrapped(drawable_text(line), text_width)]
    top = GAP + len(wrapped) * (TITLE + GAP)
    pitch = height + LABEL + 2 * GAP
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (canvas_width, top + rows * pitch + GAP), (24, 24, 26))
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(wrapped):
        Lettering(TITLE).write(draw, GAP, GAP + number * (TITLE + GAP) + TITLE / 2, line, (255, 255, 255, 255))
    corners = [(GAP + n % columns * (width + GAP), top + n // columns * pitch) for n in range(len(tiles))]
    for corner, tile in zip(corners, tiles, strict=True):
        sheet.paste(Image.fromarray(tile), corner)
    for (left, upper), caption in zip(corners, captions, strict=False):
        middle = upper + height + (GAP + LABEL) / 2
        Lettering(LABEL).write(draw, left, middle, drawable_text(caption), (170, 170, 170, 255))
    return sheet


def draw_frame(frame: ImageArray, ground_truth: Masks, predicted: Masks, side: int = FRAME_SIZE) -> ImageArray:
    """Tint, hatch and outline the prediction in orange and outline the ground truth in white.

    Args:
        frame: uint8 RGB (H, W, 3).
        ground_truth: bool (H, W).
        predicted: bool (H, W).
        side: Maximum length of the long side in pixels.

    Returns:
        uint8 RGB of the size that ``resized`` returns.
    """
    image, predicted, ground_truth = (resized(layer, side) for layer in (frame, predicted, ground_truth))
    mixed = (1 - OPACITY) * image.astype(np.float32) + OPACITY * np.array(TINT, np.float32)
    image[predicted] = mixed.round().astype(np.uint8)[predicted]
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    image[predicted & ((rows + columns) % HATCH < 2)] = TINT
    for mask, colour in ((predicted, TINT), (ground_truth, WHITE)):  # the ground truth last, so that nothing hides it
        core = mask
        for _ in range(OUTLINE):
            core = eroded(core)
        image[mask & ~core] = colour
    return image


def resized(image: npt.NDArray, longest: int) -> npt.NDArray:
    """Enlarge a frame or mask by the largest integer factor that fits the long side, or shrink it to that length."""
    side = max(image.shape[:2])
    if side <= longest:
        return image.repeat(longest // side, axis=0).repeat(longest // side, axis=1)
    width, height = (max(1, round(length * longest / side)) for length in (image.shape[1], image.shape[0]))
    resampling = Image.Resampling.NEAREST if image.dtype == np.bool_ else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(image).resize((width, height), resampling))


def eroded(mask: Masks) -> Masks:
    """Erode a mask by the 4-neighbourhood; pixels beyond the border are False."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
