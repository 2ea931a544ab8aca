"""Scenes: what is in a clip, and random scenes to a recipe's taste.

Lengths are in short sides of the frame, so that one recipe gives the same scenes at every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from refervos.errors import ConfigError
from refervos.worlds.motion import Floats, Motion, camera_path, follow
from refervos.worlds.shapes import COLOURS, KINDS, ROUND_KINDS, TEXTURES
from refervos.worlds.sprites import Sprite, Sprites

BACKGROUNDS = ("gradient", "noise", "clouds", "checks", "stripes", "blobs")
"""The styles of background; all are dull, so that none has an object's colour."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    Attributes:
        kind: One of ``KINDS``, or what the sprite shows.
        colour: One of ``COLOURS``, or empty when no word is beyond doubt (sprites).
        radius: Of the circle around it at frame 0, in short sides.
        motion: How it moves.
        texture: One of ``TEXTURES``, or empty when it is not known (sprites).
        angle: Rotation at frame 0, in radians, clockwise.
        tint: Added to the colour's RGB.
        sprite: The picture, when the object is a cut-out.
        mirrored: Whether the picture is shown with left and right exchanged.
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
    """Objects over a background; later objects are in front.

    Attributes:
        objects: From the back to the front.
        background: One of ``BACKGROUNDS``.
        background_seed: The background's colours and pattern follow from it.
        background_strength: Of its pattern, in grey levels.
        pan: Camera motion over the background, in short sides per frame.
        shadows: Whether objects throw soft shadows.
        ground: A photograph, RGB (h, w, 3), from which the background is cut instead of being drawn.
    """

    objects: tuple[Thing, ...]
    background: str = "gradient"
    background_seed: int = 0
    background_strength: float = 12.0
    pan: tuple[float, float] = (0.0, 0.0)
    shadows: bool = True
    ground: npt.NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class WorldConfig:
    """What random clips are like. Shares are probabilities; lengths are in short sides of the frame.

    Attributes:
        height: Of the frames, pixels.
        width: Of the frames, pixels.
        frames: Per clip; 1 makes images.
        objects: Least and greatest number of objects.
        radius: Least and greatest radius of the circle around an object.
        speed: Least and greatest speed of what moves, per frame.
        sprites: A folder of cut-outs with an alpha channel, see ``Sprites.open``.
        designs: Sub-folders of it to draw from, default all.
        mirrored: Cut-outs that are shown mirrored.
        photographs: Clips whose background is cut out of one of the folder's photographs, where it has any.
        sprite_share: How many of the objects are sprites, where there is a folder.
        alike: Clips whose objects share one colour.
        same_kind: Clips whose objects share one kind.
        near_misses: Objects that share their colour or their kind with another.
        twins: Objects that look just like another.
        textured: Objects with stripes or dots.
        still: Objects that do not move.
        turn_back: Objects that reverse in mid clip.
        curve: Objects that move along a curve.
        pace: Objects that stop, start or speed up in mid clip.
        late: Objects that enter after the first frame.
        leave: Objects that leave the frame for good.
        leave_and_return: Objects that leave the frame and come back.
        bounce: Moving objects placed so that they may soon meet a border; the others have room to go straight on.
        grow: Objects that grow, and as many that shrink.
        spin: Objects that spin; circles and rings only do so when textured, for else it could not be seen.
        occlude: Clips in which one object is led behind another.
        pan: Clips with a moving camera.
        pan_speed: Greatest speed of the camera along either axis, per frame.
        backgrounds: The styles to choose from, of ``BACKGROUNDS``.
        background_strength: Least and greatest strength of the background's pattern, in grey levels.
        shadows: Clips in which objects throw shadows.
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
                raise ConfigError(
                    f"world: {name} is {bounds}; a least and a greatest value are needed, such as [2, 5]."
                )
        if self.objects[0] < 1 or self.objects[1] > 16:
            raise ConfigError(f"world: objects is {self.objects}; between 1 and 16 objects fit a clip.")
        if self.radius[0] <= 0 or self.radius[1] > 0.5:
            raise ConfigError(f"world: radius is {self.radius}; it must be above 0 and at most 0.5 short sides.")
        for name in SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"world: {name} is {getattr(self, name)}; a share lies between 0 and 1.")
        total = sum(getattr(self, name) for name in _PATHS)
        if total > 1 + 1e-6:
            raise ConfigError(
                f"world: {', '.join(_PATHS)} add up to {total:.3g}; an object moves in one way: at most 1."
            )
        if 2 * self.grow > 1:
            raise ConfigError(f"world: grow is {self.grow}; as many objects shrink, so at most 0.5 is possible.")
        if not self.backgrounds or not set(self.backgrounds) <= set(BACKGROUNDS):
            raise ConfigError(f"world: backgrounds are {self.backgrounds}; choose from {', '.join(BACKGROUNDS)}.")

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the frame in short sides."""
        short = min(self.height, self.width)
        return self.width / short, self.height / short


_PATHS = ("still", "turn_back", "curve", "pace", "late", "leave", "leave_and_return")
"""The shares of which an object gets at most one; the rest moves straight on."""

SHARES = (
    *_PATHS,
    *("sprite_share", "alike", "same_kind", "near_misses", "twins", "textured", "bounce", "grow", "spin"),
    *("occlude", "pan", "shadows", "mirrored", "photographs"),
)
"""The fields of ``WorldConfig`` that are probabilities."""

_FASTEST_BEHIND = 0.08
"""An object that is led behind another may be this fast, so that the passage fits short clips."""


def random_scene(rng: np.random.Generator, config: WorldConfig, sprites: Sprites | None = None) -> Scene:
    """Compose a scene.

    Args:
        rng: Where the randomness comes from.
        config: What scenes are like.
        sprites: The cut-outs to mix in, if any.

    Returns:
        The scene.
    """
    pan = (0.0, 0.0)
    if config.frames > 1 and rng.random() < config.pan:
        pan = (float(rng.uniform(-1, 1)) * config.pan_speed, float(rng.uniform(-1, 1)) * config.pan_speed)
    things: list[Thing] = []
    for thing in _looks(rng, config, sprites):
        # Small objects are as likely as large ones: sizes are drawn from either half of the range.
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
        things = _lead_behind(rng, config, things)
    ground = None
    if sprites is not None and sprites.grounds and rng.random() < config.photographs:
        ground = sprites.grounds[int(rng.integers(len(sprites.grounds)))]
    return Scene(
        tuple(things),
        background=str(rng.choice(config.backgrounds)),
        background_seed=int(rng.integers(2**31)),
        background_strength=float(rng.uniform(*config.background_strength)),
        pan=pan,
        shadows=bool(rng.random() < config.shadows),
        ground=ground,
    )


def _looks(rng: np.random.Generator, config: WorldConfig, sprites: Sprites | None) -> list[Thing]:
    """Objects with looks, but without a size and a movement yet."""
    colours, kinds = list(COLOURS), list(KINDS)
    luck = rng.random()
    if luck < config.alike:
        colours = [str(rng.choice(colours))]
    elif luck < config.alike + config.same_kind:
        kinds = [str(rng.choice(kinds))]
    things: list[Thing] = []
    for _ in range(int(rng.integers(config.objects[0], config.objects[1] + 1))):
        for _ in range(20):  # a look that nobody has yet; when there is none left, a twin will do
            thing = _look(rng, config, sprites, things, colours, kinds)
            if all(_look_of(thing) != _look_of(other) for other in things):
                break
        if things and rng.random() < config.twins:
            other = things[int(rng.integers(len(things)))]
            # A twin among cut-outs is another picture of the same, so that only its name is shared.
            sprite = other.sprite
            if sprites is not None and sprite is not None and rng.random() < 0.5:
                sprite = _one_of(rng, sprites.by_subject[sprite.subject])
            colour = other.colour if sprite is None else sprite.colour
            thing = replace(thing, kind=other.kind, colour=colour, texture=other.texture, sprite=sprite)
        things.append(thing)
    return things


def _look_of(thing: Thing) -> tuple[str, str, str]:
    return thing.kind, thing.colour, thing.texture


def _look(
    rng: np.random.Generator,
    config: WorldConfig,
    sprites: Sprites | None,
    others: Sequence[Thing],
    colours: Sequence[str],
    kinds: Sequence[str],
) -> Thing:
    """One object's look, perhaps half of it taken from another object."""
    nowhere = Motion((0.0, 0.0))
    if sprites is not None and rng.random() < config.sprite_share:
        # A subject first: a subject with many pictures is not more frequent.
        subject = sprites.subjects[int(rng.integers(len(sprites.subjects)))]
        cut_outs = [thing for thing in others if thing.sprite is not None]
        if cut_outs and rng.random() < config.near_misses:
            subject = cut_outs[int(rng.integers(len(cut_outs)))].kind
        picture = _one_of(rng, sprites.by_subject[subject])
        angle = float(rng.uniform(-0.25, 0.25))
        look = Thing(subject, picture.colour, 0.0, nowhere, texture="", angle=angle, sprite=picture)
        return replace(look, mirrored=bool(rng.random() < config.mirrored))
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
        nowhere,
        texture=texture,
        angle=float(rng.uniform(-0.4, 0.4)),
        tint=(float(rng.uniform(-9, 9)), float(rng.uniform(-9, 9)), float(rng.uniform(-9, 9))),
    )


def _one_of(rng: np.random.Generator, pictures: Sequence[Sprite]) -> Sprite:
    return pictures[int(rng.integers(len(pictures)))]


def random_motion(
    rng: np.random.Generator, config: WorldConfig, radius: float, pan: tuple[float, float], others: Sequence[Thing]
) -> Motion:
    """A movement and a start that suits it.

    Args:
        rng: Where the randomness comes from.
        config: What scenes are like.
        radius: The object's radius, in short sides.
        pan: The camera's velocity.
        others: Objects already placed, which the start keeps clear of when it can.

    Returns:
        The movement, without growth and spin.
    """
    frames = config.frames
    if frames == 1:
        return Motion(_free_place(rng, config, radius, others, (0.0, 0.0)))
    speed = float(rng.uniform(*config.speed))
    velocity = _heading(rng, speed)
    path = _choose(rng, config)
    last = frames - 1
    if path == "still":
        return Motion(_free_place(rng, config, radius, others, (0.0, 0.0)))
    if path == "turn_back":
        turn = int(np.clip(round(last * rng.uniform(0.35, 0.65)), 1, last))
        way = (velocity[0] * turn, velocity[1] * turn)
        return Motion(_free_place(rng, config, radius, others, way), velocity, pace=((turn, -1.0),))
    if path == "curve":
        bend = float(rng.uniform(2.5, 6.0)) / frames * (1 if rng.random() < 0.5 else -1)
        circle = speed / abs(bend)  # radius of the curve
        middle = _free_place(rng, config, min(radius + circle, 0.45), others, (0.0, 0.0))
        away = float(np.arctan2(velocity[1], velocity[0])) - float(np.sign(bend)) * np.pi / 2
        start = (middle[0] + circle * float(np.cos(away)), middle[1] + circle * float(np.sin(away)))
        return Motion(start, velocity, turn=bend)
    if path == "pace":
        change = int(np.clip(round(last * rng.uniform(0.35, 0.6)), 1, last))
        before, after = ((1.0, 0.0), (0.0, 1.0), (0.4, 1.3))[int(rng.integers(3))]
        length = before * change + after * (last - change)
        way = (velocity[0] * length, velocity[1] * length)
        return Motion(_free_place(rng, config, radius, others, way), velocity, pace=((0, before), (change, after)))
    if path == "late":
        return _late(rng, config, radius, pan)
    if path in ("leave", "leave_and_return"):
        return _leaving(rng, config, radius, pan, returns=path == "leave_and_return")
    way = (0.0, 0.0) if rng.random() < config.bounce else (velocity[0] * last, velocity[1] * last)
    return Motion(_free_place(rng, config, radius, others, way), velocity)


def _choose(rng: np.random.Generator, config: WorldConfig) -> str:
    """One of the paths, or "straight"."""
    luck = rng.random()
    for path in _PATHS:
        luck -= getattr(config, path)
        if luck < 0:
            return path
    return "straight"


def _heading(rng: np.random.Generator, speed: float) -> tuple[float, float]:
    """A velocity: along an axis more often than not, for those are the movements that have short names."""
    luck = rng.random()
    angle = float(rng.integers(4)) * np.pi / 2 if luck < 0.65 else float(rng.uniform(0, 2 * np.pi))
    if luck < 0.3:
        angle += float(rng.uniform(-0.2, 0.2))
    return speed * float(np.cos(angle)), speed * float(np.sin(angle))


def _free_place(
    rng: np.random.Generator,
    config: WorldConfig,
    radius: float,
    others: Sequence[Thing],
    way: tuple[float, float],
) -> tuple[float, float]:
    """A start from which the way leads through the frame, if possible clear of the objects that are there."""
    place = (0.0, 0.0)
    for _ in range(8):
        place = (
            _start_within(rng, radius, config.extent[0], way[0]),
            _start_within(rng, radius, config.extent[1], way[1]),
        )
        gaps = [
            np.hypot(place[0] - t.motion.start[0], place[1] - t.motion.start[1]) - t.radius - radius for t in others
        ]
        if min(gaps, default=1.0) > -0.04:
            break
    return place


def _start_within(rng: np.random.Generator, radius: float, side: float, way: float) -> float:
    """A coordinate such that it and the end of the way are inside, when the way is short enough."""
    low, high = 0.85 * radius, side - 0.85 * radius
    if abs(way) >= high - low:
        return low if way > 0 else high
    return float(rng.uniform(low + max(0.0, -way), high - max(0.0, way)))


def _late(rng: np.random.Generator, config: WorldConfig, radius: float, pan: tuple[float, float]) -> Motion:
    """A movement that starts outside and comes in through one of the four borders."""
    speed = float(rng.uniform(*config.speed)) * 1.2
    arrival = float(rng.uniform(1, max(1.5, 0.55 * config.frames)))
    axis, forward = int(rng.integers(2)), bool(rng.random() < 0.5)
    along = speed if forward else -speed
    drift = float(rng.uniform(-0.25, 0.25)) * speed
    velocity = (along, drift) if axis == 0 else (drift, along)
    seen = velocity[axis] - pan[axis], velocity[1 - axis] - pan[1 - axis]  # as the frame shows it
    edge = -radius if forward else config.extent[axis] + radius
    across = float(rng.uniform(radius, max(radius, config.extent[1 - axis] - radius)))
    start = (edge - seen[0] * arrival, across - seen[1] * arrival)
    return Motion(start if axis == 0 else (start[1], start[0]), velocity)


def _leaving(
    rng: np.random.Generator, config: WorldConfig, radius: float, pan: tuple[float, float], returns: bool
) -> Motion:
    """A movement out of the frame through one of the four borders, and back if wanted."""
    frames = config.frames
    gone = frames * float(rng.uniform(0.3, 0.4) if returns else rng.uniform(0.4, 0.8))  # frame at which it is out
    axis, forward = int(rng.integers(2)), bool(rng.random() < 0.5)
    # From well inside to just outside: short clips start nearer to the border, for they have less time.
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
    """Let an object grow, shrink or spin besides."""
    luck = rng.random()
    last = config.frames - 1
    if luck < 2 * config.grow:
        ratio = float(rng.uniform(1.5, 1.9))
        growth = ratio ** (1 / last) if luck < config.grow and radius < 0.2 else (1 / ratio) ** (1 / last)
        motion = replace(motion, growth=growth)
    if rng.random() < config.spin and not (thing.kind in ROUND_KINDS and thing.texture == "plain"):
        rate = float(rng.uniform(0.12, 0.3)) if config.frames < 16 else float(rng.uniform(0.07, 0.2))
        motion = replace(motion, spin=rate if rng.random() < 0.5 else -rate)
    return motion


def _lead_behind(rng: np.random.Generator, config: WorldConfig, things: list[Thing]) -> list[Thing]:
    """Lead one object straight behind another that stands still; gives up when no way fits the frame."""
    behind, front = (int(index) for index in sorted(rng.choice(len(things), 2, replace=False)))
    mover, stander = things[behind], things[front]
    # What passes is not larger than what it passes, or it would hardly be hidden.
    if mover.radius > stander.radius:
        mover, stander = replace(mover, radius=stander.radius), replace(stander, radius=mover.radius)
    extent = config.extent
    last = config.frames - 1
    for _ in range(12):
        place = tuple(float(rng.uniform(0.3, 0.7)) * side for side in extent)
        angle = float(rng.integers(4)) * np.pi / 2 + float(rng.uniform(-0.3, 0.3))
        length = float(rng.uniform(0.9, 1.1)) * 2 * (mover.radius + stander.radius)
        speed = min(length / last, _FASTEST_BEHIND)
        velocity = (speed * float(np.cos(angle)), speed * float(np.sin(angle)))
        half = 0.5 * last
        start = (place[0] - velocity[0] * half, place[1] - velocity[1] * half)
        end = (place[0] + velocity[0] * half, place[1] + velocity[1] * half)
        edge = 0.7 * mover.radius
        if all(edge < point[axis] < extent[axis] - edge for point in (start, end) for axis in range(2)):
            things = list(things)
            things[behind] = replace(mover, motion=Motion(start, velocity))
            things[front] = replace(stander, motion=Motion((place[0], place[1])))
            break
    return things


def tracks_of(scene: Scene, frames: int, extent: tuple[float, float]) -> tuple[Floats, Floats, Floats]:
    """Play all movements of a scene.

    Args:
        scene: The scene.
        frames: T.
        extent: Width and height of the frame in short sides.

    Returns:
        Centres x, y in short sides (K, T, 2), radii in short sides (K, T) and angles in radians (K, T).
    """
    camera = camera_path(scene.pan, frames)
    tracks = [follow(thing.motion, thing.radius, frames, extent, camera) for thing in scene.objects]
    centres = np.stack([track.centres for track in tracks])
    radii = np.stack([track.radii for track in tracks])
    angles = np.stack([track.turns + thing.angle for track, thing in zip(tracks, scene.objects, strict=True)])
    return centres, radii, angles
