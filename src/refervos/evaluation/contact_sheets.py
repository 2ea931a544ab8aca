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
"""Colour of the prediction: an orange that people with any kind of colour vision tell from white."""

WHITE = (255, 255, 255)
OPACITY = 0.4
HATCH = 8
"""Pixels of the picture from one diagonal line over the prediction to the next: objects may have the tint's colour."""

OUTLINE = 2
"""Width of the lines around truth and prediction, in pixels of the picture."""

FRAME_SIZE = 256
"""Frames smaller than this are enlarged by a whole number, larger ones made as small."""

EXPRESSION_FRAMES = 6
"""How many frames of an expression are shown at most."""

LEAST_WIDTH = 240
"""Of a sheet, so that its title can be read."""

HOW_TO_READ = "white line: what is meant, orange: prediction"

GAP = 4
TITLE = 20
LABEL = 13
"""Heights in pixels: between frames, of the title's letters, of the frame numbers."""


def draw_expression(sample: Sample, predictions: Predictions) -> Image.Image:
    """Draw some annotated frames of an expression: the truth with a white outline, the prediction tinted.

    Args:
        sample: The expression; its truth is known.
        predictions: The masks; where there is none, the frame shows the truth alone.

    Returns:
        An RGB picture.
    """
    assert sample.ground_truth is not None
    names, there = sample.video.frames.names, predictions.names(sample)
    tiles, captions = [], []
    for index in spread(sample.ground_truth.annotated, EXPRESSION_FRAMES):
        frame, truth = sample.video.frames.read(index), sample.ground_truth.mask(index)
        answered = names[index] in there
        answer = predictions.mask(sample, names[index], truth.shape) if answered else np.zeros_like(truth)
        tiles.append(draw_frame(frame, truth, answer))
        captions.append(names[index] if answered else f"{names[index]}: no mask")
    return lay_out(tiles, captions, (), EXPRESSION_FRAMES)


def spread(indices: Sequence[int], count: int) -> list[int]:
    """At most so many of some frames, evenly spread, the first and the last among them."""
    chosen = np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)
    return [indices[place] for place in chosen]


def lay_out(tiles: Sequence[ImageArray], captions: Sequence[str], lines: Sequence[str], columns: int) -> Image.Image:
    """Put pictures side by side, row by row.

    Args:
        tiles: uint8 RGB; those smaller than the largest leave room.
        captions: What stands under each.
        lines: What stands above all; wrapped where they are longer. A Pillow without FreeType leaves all words out.
        columns: Pictures in a row.

    Returns:
        An RGB picture.
    """
    if not can_write():
        lines, captions = (), ()
    height, width = (max(tile.shape[axis] for tile in tiles) for axis in (0, 1))
    columns = min(columns, len(tiles))
    canvas_width = max(LEAST_WIDTH, columns * (width + GAP) + GAP)
    room = canvas_width - 2 * GAP
    wrapped = [part for line in lines for part in Lettering(TITLE).wrapped(drawable_text(line), room)]
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


def draw_frame(frame: ImageArray, truth: Masks, predicted: Masks, side: int = FRAME_SIZE) -> ImageArray:
    """Tint, hatch and outline the prediction in its colour, outline the truth in white.

    Args:
        frame: uint8 RGB (H, W, 3).
        truth: bool (H, W).
        predicted: bool (H, W).
        side: How long the long side may be.

    Returns:
        uint8 RGB, as large as ``resized`` makes it.
    """
    picture, predicted, truth = (resized(layer, side) for layer in (frame, predicted, truth))
    mixed = (1 - OPACITY) * picture.astype(np.float32) + OPACITY * np.array(TINT, np.float32)
    picture[predicted] = mixed.round().astype(np.uint8)[predicted]
    rows, columns = np.ogrid[: picture.shape[0], : picture.shape[1]]
    picture[predicted & ((rows + columns) % HATCH < 2)] = TINT
    for mask, colour in ((predicted, TINT), (truth, WHITE)):  # the truth last: it may not be hidden
        core = mask
        for _ in range(OUTLINE):
            core = eroded(core)
        picture[mask & ~core] = colour
    return picture


def resized(image: npt.NDArray, longest: int) -> npt.NDArray:
    """A frame or a mask, enlarged by a whole number as far as its long side allows, or made smaller until it does."""
    side = max(image.shape[:2])
    if side <= longest:
        return image.repeat(longest // side, axis=0).repeat(longest // side, axis=1)
    width, height = (max(1, round(length * longest / side)) for length in (image.shape[1], image.shape[0]))
    way = Image.Resampling.NEAREST if image.dtype == np.bool_ else Image.Resampling.LANCZOS
    return np.array(Image.fromarray(image).resize((width, height), way))


def eroded(mask: Masks) -> Masks:
    """The pixels whose four neighbours are in the mask; beyond the border there is nothing."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
