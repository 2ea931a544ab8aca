"""Teach a model words of your own: clips, fine-tuning, evaluation, publishing, and back by its hub id.

    python examples/own_model.py --out own_model
    python examples/own_model.py --out own_model --repository me/toys --private

The second command also publishes the model and loads it back. docs/own-model.md explains each step. The ten clips are
drawn, with two toys whose names the miniature does not know; for films of your own, write expressions.jsonl
instead of calling write_clips.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from pycocotools import mask as coco_mask

import refervos
from refervos.checkpoints.card import CardDetails
from refervos.evaluation.card_results import read_results
from refervos.evaluation.datasets import Part
from refervos.evaluation.evaluate import Request, evaluate
from refervos.pipeline import segment_frames
from refervos.training.recipe import Recipe, read_recipe
from refervos.training.trainer import train
from refervos.worlds import Clip, Motion, Scene, Thing, draw_scene

RECIPE = Path(__file__).parents[1] / "recipes" / "own-clips.yaml"
CLIPS, HELD_OUT = 10, 3
FRAMES, SIZE = 16, (128, 160)

TOYS = {"the marble": ("circle", "blue", "striped"), "the domino": ("square", "white", "dotted")}
"""Your own words, and what they look like: kind, colour and texture of a drawing."""

LOOK_ALIKES = (("circle", "blue", "plain"), ("square", "white", "plain"))


def draw_clip(number: int) -> Clip:
    """Draw a clip of both toys among plain shapes of the same colours, all of them moving."""
    random = np.random.default_rng([2026, number])
    places = random.permutation([(0.25, 0.28), (0.95, 0.3), (0.3, 0.75), (1.0, 0.72)])
    things = [
        Thing(
            kind,
            colour,
            random.uniform(0.13, 0.19),
            Motion(tuple(place), tuple(random.uniform(-0.02, 0.02, 2))),
            texture,
        )
        for (kind, colour, texture), place in zip([*TOYS.values(), *LOOK_ALIKES], places, strict=True)
    ]
    return draw_scene(Scene(tuple(things), background_seed=number), FRAMES, SIZE)


def write_video(path: Path, frames: np.ndarray) -> None:
    """Write frames (T, H, W, 3) as H.264, which plays everywhere."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12, options={"crf": "12"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def run_lengths(mask: np.ndarray) -> dict[str, object]:
    """Encode a mask (H, W) in COCO's format."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def write_clips(folder: Path) -> None:
    """Write the clips as video files, and expressions.jsonl with a line for each expression about each clip."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(CLIPS):
        clip, video = draw_clip(number), f"clip-{number}.mp4"
        write_video(folder / video, clip.frames)
        split = "val" if number >= CLIPS - HELD_OUT else "train"
        for expression, masks in zip(TOYS, clip.masks, strict=False):
            entries = {str(frame): run_lengths(mask) if mask.any() else None for frame, mask in enumerate(masks)}
            lines.append({"video": video, "expression": expression, "split": split, "masks": entries})
    (folder / "expressions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def recipe_for(clips: Path) -> Recipe:
    """Read the recipe, with the folder of the clips filled in."""
    recipe = read_recipe(RECIPE)
    (stage,) = recipe.stages
    settings = dict(stage.settings)
    for role in ("data", "validation"):
        settings[role] = [{**source, "folder": str(clips)} for source in settings[role]]
    return replace(recipe, stages=(replace(stage, settings=settings),))


def measure(model: str, clips: Path, out: Path) -> float:
    """Evaluate a model on the held-out clips; return J&F in percent."""
    evaluation = evaluate(Request(model, Part("json-lines", clips, "val"), out, mode="online"))
    evaluation.write(out)
    headline = evaluation.summary.groups[0].headline
    return 0.0 if headline is None else headline.mean


def main() -> None:
    """Run all steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("own_model"), help="folder for clips, training and results")
    parser.add_argument("--repository", help="hub id owner/name to publish the model under; default do not publish")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--steps", type=int, help="number of training steps, for a trial; default the recipe's")
    arguments = parser.parse_args()
    out: Path = arguments.out

    print("1. Your clips")
    write_clips(out / "my-clips")

    print("2. The model before")
    print(f"   J&F on the held-out clips: {measure('miniature', out / 'my-clips', out / 'before'):.1f}")

    print("3. Fine-tuning")
    train(recipe_for(out / "my-clips"), out / "runs", steps=arguments.steps)
    folder = out / "runs" / "adapters" / "model"

    print("4. The model after")
    print(f"   J&F on the held-out clips: {measure(str(folder), out / 'my-clips', out / 'after'):.1f}")
    if arguments.repository is None:
        print(f"The model is in {folder}; give --repository owner/name to publish it.")
        return

    print("5. Publishing")
    card = CardDetails(license="apache-2.0", datasets=("ten drawn clips of toys",))
    model = refervos.load(folder)
    address = model.push_to_hub(
        arguments.repository, private=arguments.private, card=card, results=read_results(out / "after")
    )
    print(f"   {address}")

    print("6. Back by its id")
    published = refervos.load(arguments.repository)
    session = published.open(list(TOYS))
    visible = dict.fromkeys(TOYS, 0)
    with refervos.open_source(out / "my-clips" / f"clip-{CLIPS - 1}.mp4") as source:
        for _, result in segment_frames(source, session):
            for expression, mask in zip(TOYS, result.masks, strict=True):
                visible[expression] += bool(mask.any())
    for expression, count in visible.items():
        print(f"   {expression}: segmented in {count} of {FRAMES} frames")


if __name__ == "__main__":
    main()
