"""Segment a short video by four sentences with the miniature model.

    python examples/demo.py --out demo_output

Writes an overlay video, the masks as COCO run lengths, and a contact sheet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

import refervos
from refervos.pipeline import segment_frames
from refervos.progress import progress
from refervos.video import OverlaySink, RleSink, draw_overlay, open_source, palette

DATA = Path(__file__).parent / "data"


def contact_sheet(images: list[np.ndarray], columns: int = 3) -> Image.Image:
    """Arrange images (H, W, 3) of one size in rows, separated by thin white lines."""
    gap = 4
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        sheet.paste(Image.fromarray(image), (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="folder for the results")
    out = parser.parse_args().out

    prompts = json.loads((DATA / "outing.json").read_text())
    sentences = [*prompts["sentences"], prompts["absent"]]
    model = refervos.load("miniature")
    session = model.open(sentences)
    colours = palette(len(sentences))
    seen = dict.fromkeys(sentences, 0)
    images: list[np.ndarray] = []
    with (
        open_source(DATA / "outing.mp4") as source,
        OverlaySink(out / "overlay.mp4", source.info, overwrite=True) as overlay,
        RleSink(out / "masks.jsonl", overwrite=True) as masks,
    ):
        total = source.info.frame_count or 1
        for frame, result in progress(segment_frames(source, session), total, "outing.mp4"):
            overlay.write(frame, result)
            masks.write(frame, result)
            for sentence, mask in zip(sentences, result.masks, strict=True):
                seen[sentence] += bool(mask.any())
            if frame.index * 6 // total == len(images):
                images.append(draw_overlay(frame.image, result, colours))
    contact_sheet(images).save(out / "contact_sheet.png")

    print(f"{result.frame_index + 1} frames, {len(sentences)} sentences:")
    for sentence, frames in seen.items():
        print(f"  {sentence!r}: seen in {frames} frames")
    print(f"Results: {out / 'overlay.mp4'} and {out / 'contact_sheet.png'}.")
    print(
        "\nThis is the MINIATURE model with 4.7 M parameters, trained by this project on drawings only.\n"
        "For real videos convert an official SAMWISE checkpoint:\n"
        "  refervos convert final_model_mevis.pth samwise-mevis\n"
        '  refervos segment video.mp4 "the dog that jumps over the fence" --model samwise-mevis'
    )


if __name__ == "__main__":
    main()
