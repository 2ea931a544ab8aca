"""Measure on single images which object a model chooses, and how good its masks are with a true box.

    python -m refervos.worlds.drawings out/drawings
    python benchmarks/choices.py out/drawings miniature runs/mine/images/model

Each image shows three to five objects: shapes, drawings of the designs that may be trained on, or drawings of the
design that never is. ``right`` is the share of sentences for which the mask overlaps the target more than any other
object, ``IoU`` the mean over all sentences and ``IoU if right`` over those. ``by a box`` is the IoU of the
tracker, prompted with the true box of the object.
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import refervos
from refervos.errors import UnknownWordsWarning
from refervos.metrics.visual_grounding import boxes_around
from refervos.prompts import Prompt
from refervos.sam2.segmenter import Sam2Segmenter
from refervos.samwise.model import Samwise
from refervos.training.stages.world_tensors import draw_framed
from refervos.worlds import Sprites, WorldConfig, sample_expressions
from refervos.worlds.benchmark import BenchmarkDrawings

FAMILIES = ("kind", "colour+kind", "place", "relation", "size")
SHAPES = WorldConfig(frames=1, objects=(3, 5), late=0, occlude=0, twins=0.3)
DRAWINGS = replace(SHAPES, twins=0, sprite_share=1.0, near_misses=0)
SMALLEST = 60  # pixels of an object that is prompted with a box


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the IoU of two masks (H, W)."""
    return float((a & b).sum() / max(1, (a | b).sum()))


def measure(model: Samwise, world: WorldConfig, sprites: Sprites | None, images: int) -> list[str]:
    """Measure one kind of images; return the cells of a table's row."""
    tracker = Sam2Segmenter(model.tracker)
    scores: dict[str, list[tuple[float, bool]]] = {family: [] for family in FAMILIES}
    boxed: list[float] = []
    for number in range(images):
        clip = draw_framed([13, number], world, 1, (1.0,), 128, sprites)
        masks = clip.masks[:, 0]  # (K, H, W)
        subjects = () if sprites is None else sprites.subjects
        found = [
            expression
            for family in FAMILIES
            for expression in sample_expressions(clip, np.random.default_rng([3, number]), 2, {family: 1.0}, subjects)
            if expression.family == family and len(expression.targets) == 1
        ]
        if found:
            predicted = model.open([expression.text for expression in found]).step(clip.frames[0]).masks
            for expression, mask in zip(found, predicted, strict=True):
                ious = [iou(mask, other) for other in masks]
                target = expression.targets[0]
                right = ious[target] > 0.1 and max(ious) == ious[target]
                scores[expression.family].append((ious[target], right))
        for mask in masks:
            if mask.sum() >= SMALLEST:
                prompt = Prompt(box=boxes_around(mask).tolist())
                boxed.append(iou(tracker.open([prompt]).step(clip.frames[0]).masks[0], mask))
    cells = []
    for family in FAMILIES:
        rows_of = scores[family]
        chosen = [value for value, right in rows_of if right]
        cells.append(
            f"{len(rows_of)}: {np.mean([right for _, right in rows_of]):.2f}, "
            f"{np.mean([value for value, _ in rows_of]):.2f}, {np.mean(chosen) if chosen else np.nan:.2f}"
        )
    return [*cells, f"{len(boxed)}: {np.mean(boxed):.3f}"]


def main() -> None:
    """Print a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drawings", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--images", type=int, default=80)
    options = parser.parse_args()
    warnings.simplefilter("ignore", UnknownWordsWarning)
    drawings = BenchmarkDrawings.open(options.drawings)
    world = replace(DRAWINGS, sprites=str(options.drawings))
    for name in options.models:
        model = refervos.load(name, device="cpu")
        assert isinstance(model, Samwise)
        torch.manual_seed(0)
        print(f"{name}: number of sentences: right, IoU, IoU if right")
        print(f"| | {' | '.join(FAMILIES)} | by a box |")
        print("|---" * (len(FAMILIES) + 2) + "|")
        kinds = (("shapes", SHAPES, None), ("drawings", world, drawings.known), ("unseen", world, drawings.unseen))
        for label, config, sprites in kinds:
            print(f"| {label} | {' | '.join(measure(model, config, sprites, options.images))} |", flush=True)


if __name__ == "__main__":
    main()
