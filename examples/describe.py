"""Let the miniature VideoGLaMM describe a held-out drawn clip, and draw the masks with the description below them.

    python examples/describe.py --out docs/images/described.png

The phrases of the description have the colours of their masks. The clip belongs to the held-out set, which is never
used in training; each sentence is printed with its verdict, which follows from the scene.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

import refervos
from refervos.evaluation.contact_sheets import GAP, evenly_spaced
from refervos.text.grounded import Phrase
from refervos.video import draw_overlay, palette
from refervos.video.lettering import Lettering
from refervos.worlds import Facts
from refervos.worlds.conversations import held_out_conversation
from refervos.worlds.judge import judge

QUESTION = "What is happening here?"
SHOWN, SIDE = 6, 256
"""Number of frames in the picture, and the side of each in pixels."""

FONT, LINE = 22, 34
"""Font size and distance of lines in pixels."""

BACKGROUND, INK = (255, 255, 255), (20, 20, 22, 255)

Colour = tuple[int, int, int]


def coloured_words(text: str, phrases: Sequence[Phrase], colours: Sequence[Colour]) -> list[tuple[str, Colour | None]]:
    """Split a text into words, each with the colour of its phrase or None."""
    words: list[tuple[str, Colour | None]] = []
    position = 0
    for word in text.split():
        position = text.index(word, position)
        inside = [k for k, phrase in enumerate(phrases) if phrase.start <= position < phrase.end]
        words.append((word, colours[inside[0]] if inside else None))
        position += len(word)
    return words


def write_words(words: Sequence[tuple[str, Colour | None]], width: int) -> Image.Image:
    """Write words in lines; those of phrases stand on a band of the phrase's colour."""
    lettering = Lettering(FONT)
    space = lettering.length(" ")
    left, line = 0.0, 0
    placed = []
    for word, colour in words:
        length = lettering.length(word)
        if left and left + length > width:
            left, line = 0.0, line + 1
        placed.append((left, line, word, colour, length))
        left += length + space
    image = Image.new("RGB", (width, (line + 1) * LINE), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for left, line, word, colour, length in placed:
        top = line * LINE
        if colour is not None:
            draw.rectangle((left - space / 2, top + LINE - 8, left + length + space / 2, top + LINE - 4), fill=colour)
        lettering.write(draw, left, top + LINE / 2 - 3, word, INK)
    return image


def enlarged(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Enlarge frames or masks (..., H, W) or (..., H, W, 3) of at most ``SIDE`` pixels by a whole number."""
    rows = array.ndim - 3 if array.shape[-1] == 3 else array.ndim - 2
    factor = max(1, SIDE // max(array.shape[rows : rows + 2]))
    return array.repeat(factor, rows).repeat(factor, rows + 1)


def main() -> None:
    """Describe the clip and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("described.png"), help="the picture")
    parser.add_argument("--model", default="videoglamm-miniature")
    parser.add_argument("--clip", type=int, default=0, help="number of the held-out clip")
    options = parser.parse_args()

    drawn = held_out_conversation(options.clip)
    model: Any = refervos.load(options.model, device="cpu")
    answer = model.converse(drawn.clip.frames).ask(QUESTION)
    print(answer.text)
    for sentence in judge(answer.text, Facts.of(drawn.clip)).sentences:
        print(f"  {sentence.verdict}: {sentence.text}")
    colours = palette(len(answer.phrases))
    overlays = [
        draw_overlay(
            enlarged(frame.image), replace(segmentation, masks=enlarged(segmentation.masks)), colours, legend=False
        )
        for frame, segmentation in answer.segmentations()
    ]
    shown = [overlays[index] for index in evenly_spaced(range(len(overlays)), SHOWN)] or [
        enlarged(drawn.clip.frames[index]) for index in evenly_spaced(range(len(drawn.clip.frames)), SHOWN)
    ]
    strip = np.concatenate([np.pad(tile, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for tile in shown], axis=1)
    caption = write_words(coloured_words(answer.text, answer.phrases, colours), strip.shape[1] - 2 * GAP)
    sheet = Image.new("RGB", (strip.shape[1], strip.shape[0] + GAP + caption.height), BACKGROUND)
    sheet.paste(Image.fromarray(strip), (0, 0))
    sheet.paste(caption, (GAP, strip.shape[0] + GAP))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out, optimize=True)
    print(f"Wrote {options.out}.")


if __name__ == "__main__":
    main()
