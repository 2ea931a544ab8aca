"""Contents of a clip, and random scenes drawn from a recipe's distribution.

Lengths are in short sides of the frame, so that one recipe gives the same scenes at every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from refervos.errors import ConfigError
from refervos.worlds.motion import Floats, Motion, camera_path, simulate
from refervos.worlds.shapes import COLOURS, KINDS, ROUND_KINDS, TEXTURES
from refervos.worlds.sprites import Sprite, Sprites

BACKGROUNDS = ("gradient", "noise", "clouds", "checks", "stripes", "blobs")
"""Styles of background; all are dull, so that none has an object's colour."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        kind: One of ``KINDS``, or the subject of the sprite.
        colour: One of ``COLOURS``, or empty for a sprite without an unambiguous colour.
        radius: Radius of the enclosing circle at frame 0, in short sides.
        motion: Its movement.
        texture: One of ``TEXTURES``, or empty for sprites.
        angle: Rotation at frame 0, in radians, clockwise.
        tint: Added to the colour's RGB.
        sprite: The image, for cut-outs.
        mirrored: Whether the sprite is flipped horizontally.
    """

    kind: str
    colour: str
    radius: float
    motion: Motion
    texture: str = "plain"
    angle: float = 0.0
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    sprite: Sprite | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class Scene:
    """Objects over a background.

    Attributes:
        objects: From the back to the front.
        background: One of ``BACKGROUNDS``.
        background_seed: Seed of the background's colours and pattern.
        background_strength: Amplitude of its pattern, in grey levels.
        pan: Camera motion over the background, in short sides per frame.
        shadows: Whether objects cast soft shadows.
        photograph: RGB (h, w, 3) from which the background is cropped instead of being drawn.
    """

    objects: tuple[Thing, ...]
    background: str = "gradient"
    background_seed: int = 0
    background_strength: float = 12.0
    pan: tuple[float, float] = (0.0, 0.0)
    shadows: bool = True
    photograph: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class WorldConfig:
    """Distribution of random clips. Single floats are probabilities; lengths are in short sides of the frame.

    Attributes:
        height: Height of the frames, pixels.
        width: Width of the frames, pixels.
        frames: Frames per clip; 1 makes images.
        objects: Minimum and maximum number of objects.
        radius: Minimum and maximum radius of the circle around an object.
        speed: Minimum and maximum speed of moving objects, per frame.
        sprites: A folder of cut-outs with an alpha channel, see ``Sprites.open``.
        designs: Sub-folders of it to draw from, default all.
        mirrored: Cut-outs that are flipped horizontally.
        photographs: Clips whose background is cropped from one of the folder's photographs, if it has any.
        sprite_share: Objects that are sprites, if there is a folder of them.
        alike: Clips whose objects share one colour.
        same_kind: Clips whose objects share one kind.
        near_misses: Objects that share their colour or their kind with another.
        twins: Objects that look identical to another.
        textured: Objects with stripes or dots.
        still: Objects that do not move.
        turn_back: Objects that reverse in mid clip.
        curve: Objects that move along a curve.
        pace: Objects that stop, start or speed up in mid clip.
        late: Objects that enter after the first frame.
        leave: Objects that leave the frame for good.
        leave_and_return: Objects that leave the frame and come back.
        bounce: Moving objects placed so that they may soon meet a border; the others have room to go straight on.
        grow: Objects that grow; as many shrink.
        spin: Objects that spin; circles and rings spin only when textured, because otherwise it would be invisible.
        occlude: Clips in which one object passes behind another.
        pan: Clips with a moving camera.
        pan_speed: Maximum speed of the camera along either axis, per frame (no probability).
        backgrounds: Styles to choose from, of ``BACKGROUNDS``.
        background_strength: Minimum and maximum amplitude of the background's pattern, in grey levels.
        shadows: Clips in which objects cast shadows.
    """

    height: int = 128
    width: int = 128
    frames: int = 8
    objects: tuple[int, int] = (2, 5)
    radius: tuple[float, float] = (0.11, 0.24)
    speed: tuple[float, float] = (0.018, 0.05)
    sprites: str | None = None
    designs: tuple[str, ...] = ()
    mirrored: float = 0.3
    photographs: float = 0.3
    sprite_share: float = 0.5
    alike: float = 0.08
    same_kind: float = 0.08
    near_misses: float = 0.45
    twins: float = 0.12
    textured: float = 0.35
    still: float = 0.28
    turn_back: float = 0.08
    curve: float = 0.06
    pace: float = 0.08
    late: float = 0.14
    leave: float = 0.05
    leave_and_return: float = 0.04
    bounce: float = 0.2
    grow: float = 0.05
    spin: float = 0.12
    occlude: float = 0.15
    pan: float = 0.12
    pan_speed: float = 0.012
    backgrounds: tuple[str, ...] = BACKGROUNDS
    background_strength: tuple[float, float] = (4.0, 18.0)
    shadows: float = 0.6

    def __post_init__(self) -> None:
        for name in ("height", "width", "frames"):
            if getattr(self, name) < (1 if name == "frames" else 16):
                raise ConfigError(
                    f"world: {name} is {getattr(self, name)}; at least {1 if name == 'frames' else 16} is needed."
                )
        for name in ("objects", "radius", "speed", "background_strength"):
            bounds = getattr(self, name)
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1]:
                raise ConfigError(f"world: {name} is {bounds}; a minimum and a maximum are needed, such as [2, 5].")
        if self.objects[0] < 1 or self.objects[1] > 16:
            raise ConfigError(f"world: objects is {self.objects}; a clip has between 1 and 16 objects.")
        if self.radius[0] <= 0 or self.radius[1] > 0.5:
            raise ConfigError(f"world: radius is {self.radius}; it must be above 0 and at most 0.5 short sides.")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"world: {name} is {getattr(self, name)}; a probability lies between 0 and 1.")
        total = sum(getattr(self, name) for name in _PATHS)
        if total > 1 + 1e-6:
            raise ConfigError(
                f"world: {', '.join(_PATHS)} add up to {total:.3g}; they exclude each other, so at most 1 is possible."
            )
        if 2 * self.grow > 1:
            raise ConfigError(f"world: grow is {self.grow}; as many objects shrink, so it must be at most 0.5.")
        if not self.backgrounds or not set(self.backgrounds) <= set(BACKGROUNDS):
            raise ConfigError(f"world: backgrounds are {self.backgrounds}; choose from {', '.join(BACKGROUNDS)}.")

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the frame, in short sides."""
        short = min(self.height, self.width)
        return self.width / short, self.height / short


_PATHS = ("still", "turn_back", "curve", "pace", "late", "leave", "leave_and_return")
"""The movements of which an object gets at most one; the other objects move straight on."""

SHARES = (
    *_PATHS,
    *("sprite_share", "alike", "same_kind", "near_misses", "twins", "textured", "bounce", "grow", "spin"),
    *("occlude", "pan", "shadows", "mirrored", "photographs"),
)
"""Fields of ``WorldConfig`` that are probabilities."""

_MAX_OCCLUSION_SPEED = 0.08
"""Maximum speed of an object that passes behind another; it is high, so that the occlusion fits into short clips."""


def random_scene(rng: np.random.Generator, config: WorldConfig, sprites: Sprites | None = None) -> Scene:
    """Draw a random scene.

    Args:
        rng: Random number generator.
        config: Distribution of the scenes.
        sprites: Cut-outs to mix in, if any.

    Returns:
        The scene.
    """
    pan = (0.0, 0.0)
    if config.frames > 1 and rng.random() < config.pan:
        pan = (float(rng.uniform(-1, 1)) * config.pan_speed, float(rng.uniform(-1, 1)) * config.pan_speed)
    things: list[Thing] = []
    for thing in _appearances(rng, config, sprites):
        # Radii come from the two halves of the range with equal probability.
        least, most = config.radius
        middle = 0.5 * (least + most)
        radius = float(rng.uniform(least, middle) if rng.random() < 0.5 else rng.uniform(middle, most))
        motion = random_motion(rng, config, radius, pan, things)
        if config.frames > 1:
            motion = _with_growth_and_spin(rng, config, thing, radius, motion)
            if motion.growth > 1:
                radius *= 0.75  # leave room to grow
        things.append(replace(thing, radius=radius, motion=motion))
    if config.frames > 1 and len(things) > 1 and rng.random() < config.occlude:
        things = _add_occlusion(rng, config, things)
    photograph = None
    if sprites is not None and sprites.photographs and rng.random() < config.photographs:
        photograph = sprites.photographs[int(rng.integers(len(sprites.photographs)))]
    return Scene(
        tuple(things),
        background=str(rng.choice(config.backgrounds)),
        background_seed=int(rng.integers(2**31)),
        background_strength=float(rng.uniform(*config.background_strength)),
        pan=pan,
        shadows=bool(rng.random() < config.shadows),
        photograph=photograph,
    )


def _appearances(rng: np.random.Generator, config: WorldConfig, sprites: Sprites | None) -> list[Thing]:
    """Draw the appearance of all objects; sizes and movements follow later."""
    colours, kinds = list(COLOURS), list(KINDS)
    u = rng.random()
    if u < config.alike:
        colours = [str(rng.choice(colours))]
    elif u < config.alike + config.same_kind:
        kinds = [str(rng.choice(kinds))]
    things: list[Thing] = []
    for _ in range(int(rng.integers(config.objects[0], config.objects[1] + 1))):
        for _ in range(20):  # prefer an appearance that no other object has
            thing = _appearance(rng, config, sprites, things, colours, kinds)
            if all(_look_key(thing) != _look_key(other) for other in things):
                break
        if things and rng.random() < config.twins:
            other = things[int(rng.integers(len(things)))]
            # The twin of a cut-out may be another image of its subject, so that only the name is shared.
            sprite = other.sprite
            if sprites is not None and sprite is not None and rng.random() < 0.5:
                sprite = _pick(rng, sprites.by_subject[sprite.subject])
            colour = other.colour if sprite is None else sprite.colour
            thing = replace(thing, kind=other.kind, colour=colour, texture=other.texture, sprite=sprite)
        things.append(thing)
    return things


def _look_key(thing: Thing) -> tuple[str, str, str]:
    return thing.kind, thing.colour, thing.texture


def _appearance(
    rng: np.random.Generator,
    config: WorldConfig,
    sprites: Sprites | None,
    others: Sequence[Thing],
    colours: Sequence[str],
    kinds: Sequence[str],
) -> Thing:
    """Draw the appearance of one object, which may share colour or kind with another."""
    no_motion = Motion((0.0, 0.0))
    if sprites is not None and rng.random() < config.sprite_share:
        # Subject first, so that subjects with many images are not more frequent.
        subject = sprites.subjects[int(rng.integers(len(sprites.subjects)))]
        cut_outs = [thing for thing in others if thing.sprite is not None]
        if cut_outs and rng.random() < config.near_misses:
            subject = cut_outs[int(rng.integers(len(cut_outs)))].kind
        cutout = _pick(rng, sprites.by_subject[subject])
        angle = float(rng.uniform(-0.25, 0.25))
        thing = Thing(subject, cutout.colour, 0.0, no_motion, texture="", angle=angle, sprite=cutout)
        return replace(thing, mirrored=bool(rng.random() < config.mirrored))
    colour, kind = str(rng.choice(colours)), str(rng.choice(kinds))
    texture = str(rng.choice(TEXTURES[1:])) if rng.random() < config.textured else TEXTURES[0]
    shapes = [thing for thing in others if thing.sprite is None]
    if shapes and rng.random() < config.near_misses:
        other = shapes[int(rng.integers(len(shapes)))]
        which = rng.integers(4)
        if which != 1 and len(kinds) > 1:
            colour = other.colour
        elif which != 0 and len(colours) > 1:
            kind = other.kind
        if which == 3:  # all but the texture
            colour, kind = other.colour, other.kind
    return Thing(
        kind,
        colour,
        0.0,
        no_motion,
        texture=texture,
        angle=float(rng.uniform(-0.4, 0.4)),
        tint=(float(rng.uniform(-9, 9)), float(rng.uniform(-9, 9)), float(rng.uniform(-9, 9))),
    )


def _pick(rng: np.random.Generator, sprites: Sequence[Sprite]) -> Sprite:
    return sprites[int(rng.integers(len(sprites)))]


def random_motion(
    rng: np.random.Generator, config: WorldConfig, radius: float, pan: tuple[float, float], others: Sequence[Thing]
) -> Motion:
    """Draw a movement with a suitable start.

    Args:
        rng: Random number generator.
        config: Distribution of the scenes.
        radius: The object's radius, in short sides.
        pan: The camera's velocity.
        others: Objects already placed; the start avoids them if possible.

    Returns:
        The movement, without growth and spin.
    """
    frames = config.frames
    if frames == 1:
        return Motion(_free_start(rng, config, radius, others, (0.0, 0.0)))
    speed = float(rng.uniform(*config.speed))
    velocity = _heading(rng, speed)
    path = _choose_path(rng, config)
    last = frames - 1
    if path == "still":
        return Motion(_free_start(rng, config, radius, others, (0.0, 0.0)))
    if path == "turn_back":
        turn = int(np.clip(round(last * rng.uniform(0.35, 0.65)), 1, last))
        displacement = (velocity[0] * turn, velocity[1] * turn)
        return Motion(_free_start(rng, config, radius, others, displacement), velocity, pace=((turn, -1.0),))
    if path == "curve":
        bend = float(rng.uniform(2.5, 6.0)) / frames * (1 if rng.random() < 0.5 else -1)
        curve_radius = speed / abs(bend)
        centre = _free_start(rng, config, min(radius + curve_radius, 0.45), others, (0.0, 0.0))
        outward = float(np.arctan2(velocity[1], velocity[0])) - float(np.sign(bend)) * np.pi / 2
        start = (
            centre[0] + curve_radius * float(np.cos(outward)),
            centre[1] + curve_radius * float(np.sin(outward)),
        )
        return Motion(start, velocity, turn=bend)
    if path == "pace":
        change = int(np.clip(round(last * rng.uniform(0.35, 0.6)), 1, last))
        before, after = ((1.0, 0.0), (0.0, 1.0), (0.4, 1.3))[int(rng.integers(3))]
        length = before * change + after * (last - change)
        displacement = (velocity[0] * length, velocity[1] * length)
        return Motion(
            _free_start(rng, config, radius, others, displacement), velocity, pace=((0, before), (change, after))
        )
    if path == "late":
        return _entering(rng, config, radius, pan)
    if path in ("leave", "leave_and_return"):
        return _leaving(rng, config, radius, pan, returns=path == "leave_and_return")
    displacement = (0.0, 0.0) if rng.random() < config.bounce else (velocity[0] * last, velocity[1] * last)
    return Motion(_free_start(rng, config, radius, others, displacement), velocity)


def _choose_path(rng: np.random.Generator, config: WorldConfig) -> str:
    """Draw the type of movement: one of ``_PATHS``, or "straight"."""
    u = rng.random()
    for path in _PATHS:
        u -= getattr(config, path)
        if u < 0:
            return path
    return "straight"


def _heading(rng: np.random.Generator, speed: float) -> tuple[float, float]:
    """Draw a velocity, mostly along an axis, because such movements have short names."""
    u = rng.random()
    angle = float(rng.integers(4)) * np.pi / 2 if u < 0.65 else float(rng.uniform(0, 2 * np.pi))
    if u < 0.3:
        angle += float(rng.uniform(-0.2, 0.2))
    return speed * float(np.cos(angle)), speed * float(np.sin(angle))


def _free_start(
    rng: np.random.Generator,
    config: WorldConfig,
    radius: float,
    others: Sequence[Thing],
    displacement: tuple[float, float],
) -> tuple[float, float]:
    """Draw a start from which the displacement stays in the frame, away from other objects if possible."""
    start = (0.0, 0.0)
    for _ in range(8):
        start = (
            _start_within(rng, radius, config.extent[0], displacement[0]),
            _start_within(rng, radius, config.extent[1], displacement[1]),
        )
        gaps = [
            np.hypot(start[0] - t.motion.start[0], start[1] - t.motion.start[1]) - t.radius - radius for t in others
        ]
        if min(gaps, default=1.0) > -0.04:
            break
    return start


def _start_within(rng: np.random.Generator, radius: float, side: float, displacement: float) -> float:
    """Draw a coordinate such that both ends of the displacement are inside, if it is short enough."""
    low, high = 0.85 * radius, side - 0.85 * radius
    if abs(displacement) >= high - low:
        return low if displacement > 0 else high
    return float(rng.uniform(low + max(0.0, -displacement), high - max(0.0, displacement)))


def _entering(rng: np.random.Generator, config: WorldConfig, radius: float, pan: tuple[float, float]) -> Motion:
    """Draw a movement that starts outside the frame and enters through one of the four borders."""
    speed = float(rng.uniform(*config.speed)) * 1.2
    arrival = float(rng.uniform(1, max(1.5, 0.55 * config.frames)))
    axis, forward = int(rng.integers(2)), bool(rng.random() < 0.5)
    along = speed if forward else -speed
    drift = float(rng.uniform(-0.25, 0.25)) * speed
    velocity = (along, drift) if axis == 0 else (drift, along)
    apparent = velocity[axis] - pan[axis], velocity[1 - axis] - pan[1 - axis]  # relative to the frame
    edge = -radius if forward else config.extent[axis] + radius
    across = float(rng.uniform(radius, max(radius, config.extent[1 - axis] - radius)))
    start = (edge - apparent[0] * arrival, across - apparent[1] * arrival)
    return Motion(start if axis == 0 else (start[1], start[0]), velocity)


def _leaving(
    rng: np.random.Generator, config: WorldConfig, radius: float, pan: tuple[float, float], returns: bool
) -> Motion:
    """Draw a movement out of the frame through one of the four borders, optionally with a return."""
    frames = config.frames
    gone = frames * float(rng.uniform(0.3, 0.4) if returns else rng.uniform(0.4, 0.8))  # frame at which it is out
    axis, forward = int(rng.integers(2)), bool(rng.random() < 0.5)
    # From well inside to just outside; short clips leave less time, so they start closer to the border.
    inside = float(rng.uniform(0.75 * radius, max(0.75 * radius, min(0.45 * config.extent[axis], 0.07 * gone))))
    speed = (inside + radius) / gone
    along = speed if forward else -speed
    velocity = (along + pan[axis], pan[1 - axis])
    across = float(rng.uniform(radius, max(radius, config.extent[1 - axis] - radius)))
    start = (config.extent[axis] - inside if forward else inside, across)
    pace: tuple[tuple[int, float], ...] = ()
    if returns:
        back = min(frames - 1, int(np.ceil(gone + 0.08 * frames)))
        pace = ((back, -1.0),)
    if axis == 1:
        start, velocity = (start[1], start[0]), (velocity[1], velocity[0])
    return Motion(start, velocity, pace=pace, walls=False)


def _with_growth_and_spin(
    rng: np.random.Generator, config: WorldConfig, thing: Thing, radius: float, motion: Motion
) -> Motion:
    """Add growing, shrinking or spinning to a movement."""
    u = rng.random()
    last = config.frames - 1
    if u < 2 * config.grow:
        ratio = float(rng.uniform(1.5, 1.9))
        growth = ratio ** (1 / last) if u < config.grow and radius < 0.2 else (1 / ratio) ** (1 / last)
        motion = replace(motion, growth=growth)
    if rng.random() < config.spin and not (thing.kind in ROUND_KINDS and thing.texture == "plain"):
        rate = float(rng.uniform(0.12, 0.3)) if config.frames < 16 else float(rng.uniform(0.07, 0.2))
        motion = replace(motion, spin=rate if rng.random() < 0.5 else -rate)
    return motion


def _add_occlusion(rng: np.random.Generator, config: WorldConfig, things: list[Thing]) -> list[Thing]:
    """Make one object pass straight behind another that stands still, if such a path fits the frame."""
    behind, front = (int(index) for index in sorted(rng.choice(len(things), 2, replace=False)))
    moving, still = things[behind], things[front]
    # The moving object must not be larger, or it would hardly be hidden.
    if moving.radius > still.radius:
        moving, still = replace(moving, radius=still.radius), replace(still, radius=moving.radius)
    extent = config.extent
    last = config.frames - 1
    for _ in range(12):
        crossing = tuple(float(rng.uniform(0.3, 0.7)) * side for side in extent)
        angle = float(rng.integers(4)) * np.pi / 2 + float(rng.uniform(-0.3, 0.3))
        length = float(rng.uniform(0.9, 1.1)) * 2 * (moving.radius + still.radius)
        speed = min(length / last, _MAX_OCCLUSION_SPEED)
        velocity = (speed * float(np.cos(angle)), speed * float(np.sin(angle)))
        half = 0.5 * last
        start = (crossing[0] - velocity[0] * half, crossing[1] - velocity[1] * half)
        end = (crossing[0] + velocity[0] * half, crossing[1] + velocity[1] * half)
        edge = 0.7 * moving.radius
        if all(edge < point[axis] < extent[axis] - edge for point in (start, end) for axis in range(2)):
            things = list(things)
            things[behind] = replace(moving, motion=Motion(start, velocity))
            things[front] = replace(still, motion=Motion((crossing[0], crossing[1])))
            break
    return things


def trajectories(scene: Scene, frames: int, extent: tuple[float, float]) -> tuple[Floats, Floats, Floats]:
    """Simulate all movements of a scene.

    Args:
        scene: The scene.
        frames: T.
        extent: Width and height of the frame in short sides.

    Returns:
        Centres x, y in short sides (K, T, 2), radii in short sides (K, T) and angles in radians (K, T).
    """
    camera = camera_path(scene.pan, frames)
    paths = [simulate(thing.motion, thing.radius, frames, extent, camera) for thing in scene.objects]
    centres = np.stack([path.centres for path in paths])
    radii = np.stack([path.radii for path in paths])
    angles = np.stack([path.turns + thing.angle for path, thing in zip(paths, scene.objects, strict=True)])
    return centres, radii, angles
