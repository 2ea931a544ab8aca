"""Procedurally drawn clips with exact masks and sentences that are true of exactly one object, or of none.

A clip shows two to four coloured shapes that drift over a soft background, bounce at the borders, pass in front of
each other and sometimes enter late. Everything follows from a seed. Run as a program, it writes the demo video::

    python scripts/toy_clips.py --video examples/data/shapes.mp4

Coordinates are pixels, x to the right and y down; lengths of a scene are given in units of the frame's short side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (218, 44, 44),
    "orange": (243, 140, 28),
    "yellow": (246, 217, 60),
    "green": (56, 168, 72),
    "blue": (44, 96, 216),
    "purple": (134, 64, 186),
    "pink": (246, 142, 192),
    "white": (246, 246, 246),
}
"""The colour words and their RGB; backgrounds are dull and of middle brightness, so that all stand out."""

KINDS: dict[str, tuple[str, ...]] = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "ring": ("ring",),
    "cross": ("cross", "cross", "plus sign"),
}
"""The shapes and the nouns for each; a noun listed twice is used twice as often."""

CATEGORIES = ("colour+kind", "kind", "colour", "place", "motion", "size", "none")
"""What a sentence tells its object by; the last is true of no object in the clip."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        kind: One of ``KINDS``.
        colour: One of ``COLOURS``.
        radius: Of the circle around it, in short sides.
        start: Centre x, y at frame 0, in short sides; may lie outside the frame.
        velocity: Short sides per frame.
        angle: Rotation in radians.
        spin: Radians per frame.
        tint: Added to the colour's RGB.
    """

    kind: str
    colour: str
    radius: float
    start: tuple[float, float]
    velocity: tuple[float, float] = (0.0, 0.0)
    angle: float = 0.0
    spin: float = 0.0
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """Objects over a background; later objects are in front.

    Attributes:
        things: The objects, from the back to the front.
        background_seed: The background follows from it.
        pan: Camera motion over the background, in short sides per frame.
        shadows: Whether objects throw soft shadows.
        texture: Strength of the background's texture in grey levels.
    """

    things: tuple[Thing, ...]
    background_seed: int = 0
    pan: tuple[float, float] = (0.0, 0.0)
    shadows: bool = True
    texture: float = 12.0


@dataclass(frozen=True)
class Clip:
    """A drawn scene.

    Attributes:
        scene: What was drawn.
        frames: RGB (T, H, W, 3).
        masks: The visible part of each of the K objects (K, T, H, W).
        centres: Centres x, y in short sides (K, T, 2).
    """

    scene: Scene
    frames: Bytes
    masks: Bools
    centres: Floats


@dataclass(frozen=True)
class Question:
    """A sentence about a clip.

    Attributes:
        text: The sentence.
        target: Index of the one object that it is true of, None when there is none.
        category: One of ``CATEGORIES``.
    """

    text: str
    target: int | None
    category: str


# Shapes: signed distances in pixels, negative inside, of points (x, y) for a shape in a circle of radius r.


def _circle(x: Floats, y: Floats, r: float) -> Floats:
    return np.hypot(x, y) - 0.95 * r


def _square(x: Floats, y: Floats, r: float) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - 0.82 * r


def _triangle(x: Floats, y: Floats, r: float) -> Floats:
    y = y - 0.12 * r  # the centroid lies below the middle of the bounding box
    slant = np.abs(x) * np.float32(np.sqrt(0.75)) - 0.5 * y
    return np.maximum(slant, y) - 0.56 * r


def _star(x: Floats, y: Floats, r: float) -> Floats:
    turn = np.float32(2 * np.pi / 5)
    around = np.arctan2(x, -y)  # 0 at the upper tip
    fold = np.abs(around - turn * np.round(around / turn))  # [0, pi/5]: from a tip to the notch beside it
    length = np.hypot(x, y)
    along, across = length * np.cos(fold), length * np.sin(fold)
    notch = 0.47 * r
    edge_x, edge_y = notch * np.cos(np.pi / 5) - r, notch * np.sin(np.pi / 5)  # tip (r, 0) to notch
    norm = float(np.hypot(edge_x, edge_y))
    return ((along - r) * edge_y - across * edge_x) / np.float32(norm)


def _ring(x: Floats, y: Floats, r: float) -> Floats:
    return np.abs(np.hypot(x, y) - 0.72 * r) - 0.25 * r


def _cross(x: Floats, y: Floats, r: float) -> Floats:
    x, y = np.abs(x), np.abs(y)
    arm, half = 0.95 * r, 0.31 * r
    return np.minimum(np.maximum(x - arm, y - half), np.maximum(x - half, y - arm))


_SHAPES: dict[str, Callable[[Floats, Floats, float], Floats]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
}


# Drawing.


def trajectory(thing: Thing, frames: int, extent: tuple[float, float]) -> Floats:
    """Where an object is: straight on, bouncing at the borders once it is inside.

    Args:
        thing: The object.
        frames: T.
        extent: Width and height of the frame in short sides.

    Returns:
        Centres x, y in short sides (T, 2).
    """
    centres = np.empty((frames, 2), np.float32)
    for axis in range(2):
        low, high = 0.8 * thing.radius, extent[axis] - 0.8 * thing.radius
        place, speed = thing.start[axis], thing.velocity[axis]
        inside = low <= place <= high
        for time in range(frames):
            centres[time, axis] = place
            place += speed
            inside = inside or low <= place <= high
            if inside and not low <= place <= high:
                place = 2 * (low if place < low else high) - place
                speed = -speed
    return centres


def _background(scene: Scene, frames: int, size: tuple[int, int]) -> Floats:
    """The background of every frame, float32 (T, H, W, 3) in grey levels, or (1, H, W, 3) when the camera stands."""
    rng = np.random.default_rng(scene.background_seed)
    height, width = size
    short = min(size)
    reach = [int(np.ceil(abs(p) * short * (frames - 1))) for p in scene.pan]
    tall, wide = height + reach[1], width + reach[0]
    first, second = (rng.uniform(70, 165) + rng.uniform(-22, 22, 3) for _ in range(2))
    x, y = np.meshgrid(np.linspace(-1, 1, wide, dtype=np.float32), np.linspace(-1, 1, tall, dtype=np.float32))
    direction = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + 0.35 * (x * np.cos(direction) + y * np.sin(direction))
    canvas = (first + (second - first) * ramp[..., None]).astype(np.float32)  # (tall, wide, 3)
    style = rng.integers(4)
    if style == 1:  # soft clouds: a few waves of random direction
        clouds = np.zeros_like(x)
        for _ in range(5):
            fx, fy, phase = rng.uniform(-5, 5), rng.uniform(-5, 5), rng.uniform(0, 6.3)
            clouds += np.sin(fx * x + fy * y + phase, dtype=np.float32)
        canvas += (0.5 * scene.texture * clouds)[..., None]
    elif style == 2:  # grain, coarse enough to survive a video codec
        cell = max(1, short // 42)
        grain = rng.standard_normal((-(-tall // cell), -(-wide // cell))).astype(np.float32)
        canvas += (0.8 * scene.texture * grain.repeat(cell, 0).repeat(cell, 1)[:tall, :wide])[..., None]
    elif style == 3:  # stripes or a faint checker
        period = rng.uniform(0.1, 0.3) * short
        turn = rng.uniform(0, np.pi)
        columns, rows = np.arange(wide, dtype=np.float32), np.arange(tall, dtype=np.float32)[:, None]
        along, across = (
            columns * np.cos(turn) + rows * np.sin(turn),
            rows * np.cos(turn) - columns * np.sin(turn),
        )
        waves = np.sin(2 * np.pi * along / period)
        if rng.random() < 0.5:
            waves = waves * np.sin(2 * np.pi * across / period)
        canvas += (scene.texture * np.clip(3 * waves, -1, 1)).astype(np.float32)[..., None]
    if scene.pan == (0.0, 0.0):
        return canvas[None]
    views = []
    for time in range(frames):
        left, top = (round(abs(p) * short * (time if p > 0 else frames - 1 - time)) for p in scene.pan)
        views.append(canvas[min(top, reach[1]) :][:height, min(left, reach[0]) :][:, :width])
    return np.stack(views)


def draw(scene: Scene, frames: int, size: tuple[int, int]) -> Clip:
    """Draw a scene with smooth edges and exact masks.

    Args:
        scene: What to draw.
        frames: T.
        size: Height and width in pixels.

    Returns:
        The clip.
    """
    height, width = size
    short = min(size)
    things = scene.things
    extent = (width / short, height / short)
    centres = np.stack([trajectory(thing, frames, extent) for thing in things])  # (K, T, 2)
    masks = np.zeros((len(things), frames, height, width), np.bool_)
    background = _background(scene, frames, size)
    canvas = np.broadcast_to(background, (frames, height, width, 3)).copy()
    for time in range(frames):
        for index, thing in enumerate(things):
            radius = thing.radius * short
            cx, cy = centres[index, time] * short
            drop = 0.16 * radius if scene.shadows else 0.0
            margin = radius + drop + 2
            x0, x1 = max(0, int(cx - margin)), min(width, int(cx + margin) + 2)
            y0, y1 = max(0, int(cy - margin)), min(height, int(cy + margin) + 2)
            if x0 >= x1 or y0 >= y1:
                continue
            x = np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - cx)
            y = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5 - cy)
            turn = thing.angle + thing.spin * time
            cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
            shape = _SHAPES[thing.kind]
            view = canvas[time, y0:y1, x0:x1]
            if scene.shadows:
                sx, sy = x - np.float32(0.6 * drop), y - np.float32(drop)
                distance = shape(cos * sx + sin * sy, cos * sy - sin * sx, radius)
                shade = 0.3 * np.clip(0.5 - distance / np.float32(0.2 * radius), 0, 1)
                view *= 1 - shade[..., None]
            distance = shape(cos * x + sin * y, cos * y - sin * x, radius)
            cover = np.clip(0.5 - distance, 0, 1)[..., None]
            light = 1.0 - 0.14 * np.broadcast_to(y, distance.shape) / np.float32(radius)  # lit from above
            light = light - 0.18 * np.clip(1 + distance / np.float32(0.1 * radius), 0, 1)  # a darker rim
            colour = np.asarray(COLOURS[thing.colour], np.float32) + np.asarray(thing.tint, np.float32)
            view += cover * (light[..., None] * colour - view)
            hit = distance < 0
            masks[:index, time, y0:y1, x0:x1] &= ~hit
            masks[index, time, y0:y1, x0:x1] = hit
    return Clip(scene, np.clip(canvas + 0.5, 0, 255).astype(np.uint8), masks, centres)


# Random scenes.


@dataclass(frozen=True)
class Taste:
    """What random scenes are like.

    Attributes:
        counts: Least and greatest number of objects.
        late: Chance that an object enters after the first frame.
        twins: Chance that two objects share colour and kind, so that only place, motion or size tells them apart.
        pan: Chance of a moving camera.
        speeds: Least and greatest speed of a moving object, in short sides per frame.
        alike: Chance that all objects have one colour, so that only their shapes tell them apart.
    """

    counts: tuple[int, int] = (2, 4)
    late: float = 0.15
    twins: float = 0.12
    pan: float = 0.15
    speeds: tuple[float, float] = (0.006, 0.04)
    alike: float = 0.0


def random_scene(rng: np.random.Generator, frames: int, extent: tuple[float, float], taste: Taste) -> Scene:
    """Compose a scene.

    Args:
        rng: Where the randomness comes from.
        frames: T, so that late objects still arrive.
        extent: Width and height of the frame in short sides.
        taste: What scenes are like.

    Returns:
        The scene.
    """
    things: list[Thing] = []
    colours, kinds = list(COLOURS), list(KINDS)
    if rng.random() < taste.alike:
        colours = [str(rng.choice(colours))]
    for _ in range(int(rng.integers(taste.counts[0], taste.counts[1] + 1))):
        colour, kind = str(rng.choice(colours)), str(rng.choice(kinds))
        luck = rng.random()
        if things and luck < 0.45:  # near misses: half of the description fits another object
            other = things[int(rng.integers(len(things)))]
            colour, kind = (other.colour, kind) if luck < 0.225 else (colour, other.kind)
        if things and rng.random() < taste.twins:
            colour, kind = things[-1].colour, things[-1].kind
        elif any((t.colour, t.kind) == (colour, kind) for t in things):
            continue
        radius = float(rng.uniform(0.1, 0.15) if rng.random() < 0.4 else rng.uniform(0.15, 0.25))
        start = _free_place(rng, things, radius, extent)
        speed = float(rng.uniform(*taste.speeds))
        luck = rng.random()
        if luck < 0.25:
            velocity = (0.0, 0.0)
        else:
            heading = rng.integers(4) * np.pi / 2 if luck < 0.7 else rng.uniform(0, 2 * np.pi)
            velocity = (speed * float(np.cos(heading)), speed * float(np.sin(heading)))
        if frames > 1 and rng.random() < taste.late:
            start, velocity = _late_entry(rng, radius, extent, frames)
        things.append(
            Thing(
                kind=kind,
                colour=colour,
                radius=radius,
                start=start,
                velocity=velocity,
                angle=float(rng.uniform(-0.5, 0.5)),
                spin=float(rng.uniform(-0.04, 0.04)) if rng.random() < 0.3 else 0.0,
                tint=tuple(float(v) for v in rng.uniform(-14, 14, 3)),  # type: ignore[arg-type]
            )
        )
    pan = (0.0, 0.0)
    if frames > 1 and rng.random() < taste.pan:
        pan = (float(rng.uniform(-0.02, 0.02)), float(rng.uniform(-0.02, 0.02)))
    return Scene(
        tuple(things),
        background_seed=int(rng.integers(2**31)),
        pan=pan,
        shadows=bool(rng.random() < 0.6),
        texture=float(rng.uniform(4, 18)),
    )


def _free_place(
    rng: np.random.Generator, things: list[Thing], radius: float, extent: tuple[float, float]
) -> tuple[float, float]:
    """A start inside the frame, if possible clear of the objects that are there."""
    place = (0.0, 0.0)
    for _ in range(6):
        place = (
            float(rng.uniform(0.8 * radius, extent[0] - 0.8 * radius)),
            float(rng.uniform(0.8 * radius, extent[1] - 0.8 * radius)),
        )
        gaps = [np.hypot(place[0] - t.start[0], place[1] - t.start[1]) - t.radius - radius for t in things]
        if min(gaps, default=1.0) > -0.05:
            break
    return place


def _late_entry(
    rng: np.random.Generator, radius: float, extent: tuple[float, float], frames: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Start and velocity of an object that slides in from a side border within the clip."""
    speed = float(rng.uniform(0.03, 0.06))
    arrival = float(rng.uniform(1, max(2.0, 0.6 * frames)))
    height = float(rng.uniform(radius, extent[1] - radius))
    drift = float(rng.uniform(-0.3, 0.3)) * speed
    if rng.random() < 0.5:
        return (-radius - speed * arrival, height), (speed, drift)
    return (extent[0] + radius + speed * arrival, height), (-speed, drift)


def random_clip(seed: int | list[int], frames: int, size: tuple[int, int], taste: Taste | None = None) -> Clip:
    """Compose and draw a clip.

    Args:
        seed: The clip follows from it.
        frames: T.
        size: Height and width in pixels.
        taste: What scenes are like.

    Returns:
        The clip; at least two objects.
    """
    rng = np.random.default_rng(seed)
    extent = (size[1] / min(size), size[0] / min(size))
    scene = random_scene(rng, frames, extent, taste or Taste())
    while len(scene.things) < 2:
        scene = random_scene(rng, frames, extent, taste or Taste())
    return draw(scene, frames, size)


# Sentences.

_PLAIN = ("the {}", "the {}", "a {}", "{}")
_PLACES = {
    "left": ("on the left", "at the left", "on the left side", "leftmost"),
    "right": ("on the right", "at the right", "on the right side", "rightmost"),
    "top": ("at the top", "on top", "in the upper part", "topmost"),
    "bottom": ("at the bottom", "in the lower part", "down at the bottom", "bottommost"),
}
_MOTIONS = {
    "right": ("moving to the right", "that moves right", "going right", "that moves to the right"),
    "left": ("moving to the left", "that moves left", "going left", "that moves to the left"),
    "up": ("moving up", "that moves up", "going upwards", "that rises"),
    "down": ("moving down", "that moves down", "going downwards", "that falls"),
    "still": ("that stays still", "that does not move", "standing still", "that is not moving"),
}


def questions(clip: Clip, rng: np.random.Generator) -> list[Question]:
    """Sentences about a clip, each checked against the scene: true of exactly one object, or of none.

    Args:
        clip: The clip.
        rng: Chooses among paraphrases.

    Returns:
        For each object at most one sentence of each category, and two of category ``none``.
    """
    things = clip.scene.things
    asked: list[Question] = []
    moves = _moves(clip)
    places = _places(clip)
    for index, thing in enumerate(things):
        same_kind = [j for j, t in enumerate(things) if t.kind == thing.kind and j != index]
        same_colour = [j for j, t in enumerate(things) if t.colour == thing.colour and j != index]
        both = [j for j in same_kind if j in same_colour]
        others = [j for j in range(len(things)) if j != index]
        noun = str(rng.choice(KINDS[thing.kind]))
        if not both:
            asked.append(Question(_colour_kind(thing.colour, noun, rng), index, "colour+kind"))
        if not same_kind:
            asked.append(Question(str(rng.choice(_PLAIN)).format(noun), index, "kind"))
        if not same_colour:
            text = str(rng.choice(("the {} one", "the {} object", "the {} thing", "something {}")))
            asked.append(Question(text.format(thing.colour), index, "colour"))
        # Which objects a noun phrase leaves open: all, those of this kind, or those of this colour and kind.
        phrase, rivals = [
            (str(rng.choice(("object", "one", "shape"))), others),
            (noun, same_kind),
            (f"{thing.colour} {noun}", both),
        ][int(rng.choice((0, 0, 1, 1, 2)))]
        for category, word in (("place", places), ("motion", moves)):
            told = [w for w in word[index] if all(word[j].get(w, 0) < 0 for j in rivals) and word[index][w] > 0]
            if told:
                chosen = str(rng.choice(told))
                asked.append(Question(_told(category, chosen, phrase, rng), index, category))
        radii = [things[j].radius for j in rivals]
        if radii and thing.radius > 1.35 * max(radii):
            size = str(rng.choice(("large", "big", "largest", "biggest")))
            asked.append(Question(f"the {size} {phrase}", index, "size"))
        elif radii and thing.radius < min(radii) / 1.35:
            size = str(rng.choice(("small", "little", "smallest")))
            asked.append(Question(f"the {size} {phrase}", index, "size"))
    return asked + _absent(things, rng)


def _colour_kind(colour: str, noun: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.25:
        text = str(rng.choice(("the {1} that is {0}", "the {1} which is {0}", "a {1} that is {0}")))
        return text.format(colour, noun)
    return str(rng.choice(_PLAIN)).format(f"{colour} {noun}").replace("a orange", "an orange")


def _told(category: str, word: str, phrase: str, rng: np.random.Generator) -> str:
    """A place or motion word as a sentence."""
    tail = str(rng.choice((_PLACES if category == "place" else _MOTIONS)[word]))
    return f"the {tail} {phrase}" if tail.endswith("most") else f"the {phrase} {tail}"


def _places(clip: Clip) -> list[dict[str, int]]:
    """For each object and place word: 1 when it is clearly true in every frame, -1 when clearly not, 0 between."""
    low, high = clip.centres.min(axis=1), clip.centres.max(axis=1)  # (K, 2)
    height, width = clip.frames.shape[1:3]
    short = min(height, width)
    answer: list[dict[str, int]] = [{} for _ in low]
    for axis, (before, after), side in ((0, ("left", "right"), width / short), (1, ("top", "bottom"), height / short)):
        for index in range(len(low)):
            rest = [j for j in range(len(low)) if j != index]
            # Left of all that could be meant is judged against all objects: harder to satisfy, never ambiguous.
            first = all(high[index, axis] < low[j, axis] - 0.12 for j in rest) and high[index, axis] < 0.5 * side
            last = all(low[index, axis] > high[j, axis] + 0.12 for j in rest) and low[index, axis] > 0.5 * side
            answer[index][before] = 1 if first else -1
            answer[index][after] = 1 if last else -1
    return answer


def _moves(clip: Clip) -> list[dict[str, int]]:
    """For each object and motion word: 1 when it is clearly true, -1 when it is clearly not, 0 between."""
    frames = clip.frames.shape[0]
    if frames < 4:
        return [{} for _ in clip.centres]
    answer: list[dict[str, int]] = []
    for track, mask in zip(clip.centres, clip.masks, strict=True):
        step = np.diff(track, axis=0)  # (T - 1, 2)
        net = track[-1] - track[0]
        path = float(np.abs(step).sum())
        seen = bool(mask[[0, -1]].any(axis=(1, 2)).all())
        verdict = {}
        for word, axis, sign in (("right", 0, 1), ("left", 0, -1), ("down", 1, 1), ("up", 1, -1)):
            forward, sideways = sign * float(net[axis]), abs(float(net[1 - axis]))
            steady = bool((sign * step[:, axis] > 0).all())
            clear = seen and steady and forward > 0.08 and forward > 2 * sideways
            verdict[word] = 1 if clear else -1 if float(np.max(sign * step[:, axis])) <= 1e-4 else 0
        moving = path > 0.08
        # With a moving camera nothing can be said to stand still.
        still = seen and path < 1e-6 and clip.scene.pan == (0.0, 0.0)
        verdict["still"] = 1 if still else -1 if moving else 0
        answer.append(verdict)
    return answer


def _absent(things: tuple[Thing, ...], rng: np.random.Generator) -> list[Question]:
    """Two sentences that are true of no object: half of the description may well be."""
    asked = []
    for _ in range(2):
        while True:
            colour, kind = str(rng.choice(list(COLOURS))), str(rng.choice(list(KINDS)))
            luck = rng.random()
            if luck < 0.3:
                colour = things[int(rng.integers(len(things)))].colour
            elif luck < 0.6:
                kind = things[int(rng.integers(len(things)))].kind
            noun = str(rng.choice(KINDS[kind]))
            luck = rng.random()
            if luck < 0.15 and all(t.kind != kind for t in things):
                text = str(rng.choice(_PLAIN)).format(noun)
            elif luck < 0.3 and all(t.colour != colour for t in things):
                text = f"the {colour} one"
            elif all((t.colour, t.kind) != (colour, kind) for t in things):
                text = _colour_kind(colour, noun, rng)
            else:
                continue
            break
        asked.append(Question(text, None, "none"))
    return asked


def vocabulary_sentences() -> list[str]:
    """Sentences with every word that ``questions`` can use, for training a tokenizer."""
    nouns = sorted({noun for names in KINDS.values() for noun in names} | {"object", "one", "shape", "thing"})
    tails = [tail for group in (_PLACES, _MOTIONS) for names in group.values() for tail in names]
    sizes = ("large", "big", "largest", "biggest", "small", "little", "smallest")
    sentences = [f"{article} {colour} {noun}" for article in ("the", "a") for colour in COLOURS for noun in nouns]
    sentences += [f"{noun} that is {colour} which is {colour}" for colour in COLOURS for noun in nouns]
    sentences += [f"the {noun} {tail}" for noun in nouns for tail in tails]
    sentences += [f"the {tail} {noun}" for noun in nouns for tail in tails if tail.endswith("most")]
    sentences += [f"the {size} {noun}" for size in sizes for noun in nouns]
    sentences += [f"something {colour}" for colour in COLOURS] + ["an orange one"]
    sentences += [*nouns, *COLOURS]
    return sentences


# The demo video.

DEMO_SIZE = (320, 480)
DEMO_FRAMES = 125
DEMO_RATE = 25
DEMO_SENTENCES = ("the red circle", "the blue star")
DEMO_ABSENT = "the green triangle"


def demo_scene() -> Scene:
    """Four shapes: a red circle passes behind a yellow square, a blue star enters late from the right."""
    return Scene(
        things=(
            Thing("circle", "red", 0.19, (0.24, 0.36), (0.0082, 0.0012)),
            Thing("square", "yellow", 0.2, (0.78, 0.5), (0.0, 0.0), angle=0.12),
            Thing("ring", "white", 0.15, (0.3, 0.82), (0.003, -0.0002)),
            Thing("star", "blue", 0.19, (1.5 + 0.19 + 0.36, 0.76), (-0.0095, -0.001), spin=-0.012),
        ),
        background_seed=5,
        shadows=True,
        texture=7.0,
    )


def write_video(path: Path, frames: Bytes, rate: int) -> None:
    """Write H.264 that plays everywhere.

    Args:
        path: An ``.mp4`` file.
        frames: RGB (T, H, W, 3), even sides.
        rate: Frames per second.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "slow"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    """Write the demo video and the sentences to ask it with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=Path("examples/data/shapes.mp4"))
    args = parser.parse_args()
    clip = draw(demo_scene(), DEMO_FRAMES, DEMO_SIZE)
    write_video(args.video, clip.frames, DEMO_RATE)
    answers = {"sentences": list(DEMO_SENTENCES), "absent": DEMO_ABSENT}
    args.video.with_suffix(".json").write_text(json.dumps(answers, indent=2) + "\n")
    print(f"{args.video}: {len(clip.frames)} frames, {args.video.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
