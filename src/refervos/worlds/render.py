"""Rendering of scenes into frames and exact masks, object by object from the back to the front."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refervos.worlds.backgrounds import crop_photograph, draw_background
from refervos.worlds.descriptions import Expression
from refervos.worlds.motion import camera_path
from refervos.worlds.scene import Scene, Thing, WorldConfig, random_scene, trajectories
from refervos.worlds.shapes import COLOURS, signed_distance, tone
from refervos.worlds.sprites import Sprites

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
Bytes = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]

_SHADOW_DROP = 0.16  # of the radius, downwards; a shadow falls a little to the right as well
_SHADOW_STRENGTH = 0.3


@dataclass(frozen=True, eq=False)
class Clip:
    """Rendered scene of K objects and T frames. Lengths are in short sides of the frame, areas in pixels.

    Attributes:
        scene: The scene.
        frames: RGB (T, H, W, 3).
        masks: The visible part of each object (K, T, H, W); no two overlap.
        centres: Centres x, y of the objects in the frame (K, T, 2), also while they are hidden or outside.
        radii: Radii of the circles around the objects (K, T).
        angles: Rotation of the objects, radians (K, T).
        camera: Offset of the frame's corner over the background (T, 2).
        areas: Pixels of each silhouette inside the frame, hidden ones included (K, T).
        covered: Pixels of object i that object j hides (K, K, T).
    """

    scene: Scene
    frames: Bytes
    masks: Bools
    centres: Floats
    radii: Floats
    angles: Floats
    camera: Floats
    areas: Ints
    covered: Ints

    @property
    def visible(self) -> Ints:
        """Visible pixels of each object (K, T)."""
        return self.areas - self.covered.sum(axis=1)

    def at(self, times: npt.NDArray[np.int64]) -> Clip:
        """Select frames by their indices, int64 (t,) in ascending order."""
        return replace(
            self,
            frames=self.frames[times],
            camera=self.camera[times],
            masks=self.masks[:, times],
            centres=self.centres[:, times],
            radii=self.radii[:, times],
            angles=self.angles[:, times],
            areas=self.areas[:, times],
            covered=self.covered[:, :, times],
        )

    def target_masks(self, expression: Expression) -> Bools:
        """Return the ground truth of an expression.

        Args:
            expression: An expression about this clip.

        Returns:
            The union of its targets' masks (T, H, W); empty when it has no target.
        """
        return np.any(self.masks[list(expression.targets)], axis=0)


def draw_clip(seed: int | Sequence[int], config: WorldConfig, sprites: Sprites | None = None) -> Clip:
    """Draw a random clip, determined by the seed and the configuration.

    Args:
        seed: Seed of the random number generator.
        config: Distribution of the clips.
        sprites: Cut-outs that are loaded already; default ``config.sprites`` is loaded, which takes a while.

    Returns:
        The clip.
    """
    if sprites is None and config.sprites is not None:
        sprites = Sprites.open(config.sprites, config.designs)
    scene = random_scene(np.random.default_rng(seed), config, sprites)
    return draw_scene(scene, config.frames, (config.height, config.width))


def draw_scene(scene: Scene, frames: int, size: tuple[int, int]) -> Clip:
    """Render a scene with smooth edges and exact masks.

    Args:
        scene: The scene.
        frames: T.
        size: Height and width in pixels.

    Returns:
        The clip.
    """
    height, width = size
    short = min(size)
    centres, radii, angles = trajectories(scene, frames, (width / short, height / short))
    count = len(scene.objects)
    camera = camera_path(scene.pan, frames)
    backgrounds = _backgrounds(scene, camera, size)
    images = np.empty((frames, height, width, 3), np.uint8)
    labels = np.full((frames, height, width), -1, np.int8)  # index of the frontmost object
    areas = np.zeros((count, frames), np.int64)
    covered = np.zeros((count, count, frames), np.int64)
    for time, canvas in enumerate(backgrounds):
        for index, thing in enumerate(scene.objects):
            pose = (centres[index, time] * short, radii[index, time] * short, angles[index, time])
            box, mask = _draw(thing, *pose, canvas, scene.shadows)
            if mask is None:
                continue
            below = labels[time][box][mask]
            areas[index, time] = below.size
            covered[:, index, time] = np.bincount(below + 1, minlength=count + 1)[1:]
            labels[time][box][mask] = index
        images[time] = (canvas + np.float32(0.5)).clip(0, 255)
    masks = labels == np.arange(count, dtype=np.int8)[:, None, None, None]
    return Clip(scene, images, masks, centres, radii, angles, camera, areas, covered)


def _backgrounds(scene: Scene, camera: Floats, size: tuple[int, int]) -> Iterator[Floats]:
    """Yield the visible part of the background for each frame, to be drawn on: RGB in grey levels (H, W, 3)."""
    height, width = size
    short = min(size)
    offsets = (camera - camera.min(axis=0)) * short
    reach = np.ceil(offsets.max(axis=0)).astype(int) + (offsets.max(axis=0) > 0)  # one more for interpolation
    extent = (height + int(reach[1]), width + int(reach[0]))
    if scene.photograph is not None:
        background = crop_photograph(scene.photograph, scene.background_seed, extent)
    else:
        background = draw_background(scene.background, scene.background_seed, scene.background_strength, extent, short)
    for x, y in offsets:
        yield _shifted(_shifted(background, float(y), height, 0), float(x), width, 1).copy()


def _shifted(canvas: Floats, offset: float, length: int, axis: int) -> Floats:
    """Crop a canvas at a fractional offset, by linear interpolation."""
    first = int(offset)
    share = np.float32(offset - first)
    window = canvas[first : first + length] if axis == 0 else canvas[:, first : first + length]
    if share == 0:
        return window
    following = canvas[first + 1 : first + 1 + length] if axis == 0 else canvas[:, first + 1 : first + 1 + length]
    return window + share * (following - window)


def _draw(
    thing: Thing, centre: Floats, radius: float, angle: float, frame: Floats, shadow: bool
) -> tuple[tuple[slice, slice], Bools | None]:
    """Draw one object into a frame, in place.

    Args:
        thing: The object.
        centre: x, y in pixels.
        radius: Radius in pixels.
        angle: Rotation in radians.
        frame: RGB in grey levels (H, W, 3).
        shadow: Whether it casts a shadow.

    Returns:
        Rows and columns of the drawn box, and the mask inside it; None when the object is entirely outside.
    """
    height, width = frame.shape[:2]
    cx, cy = float(centre[0]), float(centre[1])
    drop = _SHADOW_DROP * radius if shadow else 0.0
    margin = radius + drop + 2
    x0, x1 = max(0, int(cx - margin)), min(width, int(cx + margin) + 2)
    y0, y1 = max(0, int(cy - margin)), min(height, int(cy + margin) + 2)
    box = (slice(y0, y1), slice(x0, x1))
    if x0 >= x1 or y0 >= y1:
        return box, None
    x = np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - cx)
    y = np.arange(y0, y1, dtype=np.float32)[:, None] + np.float32(0.5 - cy)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    view = frame[box]
    if shadow:
        sx, sy = x - np.float32(0.6 * drop), y - np.float32(drop)
        if thing.sprite is not None:
            shade = thing.sprite.draw_alpha(box, (cx + 0.6 * drop, cy + drop), radius, angle, thing.mirrored)
        else:
            shade = _shade(thing, cos * sx + sin * sy, cos * sy - sin * sx, radius)
        view *= 1 - np.float32(_SHADOW_STRENGTH) * shade[..., None]
    if thing.sprite is not None:
        rgba = thing.sprite.draw(box, (cx, cy), radius, angle, thing.mirrored)
        alpha = rgba[..., 3]
        view *= 1 - alpha[..., None]
        view += rgba[..., :3]
        return box, alpha >= 0.5
    u, v = cos * x + sin * y, cos * y - sin * x  # in the object's own coordinates
    distance = signed_distance(thing.kind, u, v, radius)
    cover = np.clip(np.float32(0.5) - distance, 0, 1)
    light = 1 - np.float32(0.14 / radius) * y  # lit from above
    light = light - np.float32(0.18) * np.clip(1 + distance / np.float32(0.1 * radius), 0, 1)  # a darker rim
    light = light * tone(thing.texture, u, v, radius)
    colour = np.asarray(COLOURS[thing.colour], np.float32) + np.asarray(thing.tint, np.float32)
    view += cover[..., None] * (light[..., None] * colour - view)
    return box, distance <= 0


def _shade(thing: Thing, u: Floats, v: Floats, radius: float) -> Floats:
    """Compute the darkness of a shape's shadow at points of its own coordinates, in [0, 1]."""
    distance = signed_distance(thing.kind, u, v, radius)
    return np.clip(np.float32(0.5) - distance / np.float32(0.2 * radius), 0, 1)
